"""How images stream by and a result is written: a fold that can be stopped anywhere, accumulators that several
experiments feed, and the `Job` by which each of them begins, saves, reports and finishes.
"""
