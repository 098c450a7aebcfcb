"""Kernels in Pallas. They know arrays and blocks, nothing of reductions, weights or ignored entries."""

from typing import Any

try:
    from jax.experimental.pallas import triton as _triton
except ImportError:  # JAX 0.11 announces that a later version goes without it; then "auto" is XLA everywhere
    triton: Any = None
else:
    triton = _triton
