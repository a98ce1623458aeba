"""Check and measure the kernels on one GPU in one command: ``python -m benches.gpu --out DIR``.

Needs the source tree, torch, triton and numpy; the masking line needs open_clip as well and is skipped by name without
it. `supervisor` runs the `stages` in a process of their own, which it replaces when a stage hangs or loses the device;
`lines` is the table as data, `checks` compares with float64, `timing` is the clock, `report` draws the table from the
JSON document alone.
"""
