"""Check and measure the kernels on one GPU in one command: ``python -m benches.gpu --out DIR``.

Needs the source tree, torch, triton and numpy; the masking line and the rate of the whole recipe need open_clip as well
and are skipped by name without it. `supervisor` runs the `stages` in a process of their own, which it replaces when an
item hangs or loses the device; `collected` keeps the results readable at any moment, and `merging` goes on with those
of an earlier run. Ops, checks and clock are those of `patchsae.bench`; `lines` and `steps` are the table as data,
`report` draws it from the JSON document alone.
"""
