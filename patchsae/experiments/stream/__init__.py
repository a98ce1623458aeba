"""How images stream by: a fold that can be stopped anywhere, and the accumulators that several experiments feed."""
