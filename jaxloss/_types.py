"""Aliases that the signatures share."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = jax.typing.ArrayLike | Sequence[Any]
Number: TypeAlias = float | jax.Array
Tree: TypeAlias = Any  # a pytree

# What a reduction returns: an Array, or with "sum_and_weight" a pair of them. `Any` keeps `loss + penalty` and
# `total, weight = loss` both well typed without two overloads for every loss.
Reduced: TypeAlias = Array | Any

Reduction: TypeAlias = Literal["mean", "sum", "none", "sum_and_weight"]
BatchReduction: TypeAlias = Literal["mean", "sum", "none", "sum_and_weight", "batchmean"]
KernelImplementation: TypeAlias = Literal["auto", "xla", "pallas", "autodiff"]


class RowStatistics(NamedTuple):
    """What `aux=True` returns beside a cross entropy. No gradient flows through it."""

    log_sum_exp: Array
    z_loss: Reduced
    correct: Array
    entropy: Array
