"""Benchmarks of the kernels: `cases` are the work, `measure` the clock, `table` the print-out.

The pytest-benchmark suites in ``benches/`` run the same cases.
"""
