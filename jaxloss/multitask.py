"""Several losses trained at once: weights that are given, scheduled, learned or found, and one gradient from many.

The methods take named losses, or one gradient tree for each task, and know nothing of what computed them. Those that
remember something are a pair of pure functions, `init` and `apply`, whose state is a pytree, as in optax.
"""

from ._aggregation import cagrad, mgda, pcgrad, upgrad, value_and_grads
from ._gradnorm import GradNormState, gradnorm
from ._tasks import Terms
from ._weighting import (
    DynamicState,
    RandomState,
    Weighting,
    dynamic_weight_average,
    random_weighting,
    uncertainty,
    weighted_sum,
)

__all__ = [
    "DynamicState",
    "GradNormState",
    "RandomState",
    "Terms",
    "Weighting",
    "cagrad",
    "dynamic_weight_average",
    "gradnorm",
    "mgda",
    "pcgrad",
    "random_weighting",
    "uncertainty",
    "upgrad",
    "value_and_grads",
    "weighted_sum",
]
