"""Kernels in Pallas. They know arrays and blocks, nothing of reductions, weights or ignored entries."""
