"""What is timed and how, for `patchsae bench`, ``python -m benches``, ``python -m benches.gpu`` and pytest-benchmark.

`sizes` and `inputs` are given to the ops of `ours`, whose answers `checks` compares with float64; `cases` puts them
beside `dense` PyTorch. `measure` runs a case, by the clock of `timing`; `records` writes down what came out, `tables`
prints it, `run` is the verb. What needs a GPU, or more than an op, is in ``benches/``.
"""
