"""What the values of each loss's arguments may be: one line for each loss, behind `checked` and `diagnose`.

Dtypes, shapes and options are known while tracing, and each loss refuses them itself. This is about what is known only
at run time, in the entries that count.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from . import _check, _sequences
from ._calls import Activation, Call, Kind, Rule, Rules
from ._numerics import one_hot
from ._types import Array


class Finding(NamedTuple):
    """The entries of one argument that are not what they must be; `values` has them all."""

    argument: str
    expected: str
    values: Array
    bad: Array

    def first(self) -> tuple[tuple[Array, ...], Array]:
        """Where the first of them stands, and its value."""
        place = jnp.unravel_index(jnp.argmax(self.bad), self.bad.shape)
        return place, self.values[place]


def of(loss: Callable[..., Any]) -> Rules | None:
    """The rules of a loss of this package; a function of the same name from elsewhere has none."""
    ours = getattr(loss, "__module__", "").partition(".")[0] == __package__
    return RULES.get(loss.__name__) if ours else None


def findings(call: Call) -> Iterator[Finding]:
    """For each argument, what it holds that it must not."""
    for argument, rule in {**call.rules.arrays, **call.rules.options}.items():
        given = call.arguments.get(argument)
        if given is None or np.size(given) == 0:
            continue
        kind = rule if isinstance(rule, Kind) else rule(call)
        expected = kind.expected.replace("C)", f"{call.classes})") if "C)" in kind.expected else kind.expected
        x = _check.clipped(given)
        yield Finding(argument, expected, x, call.keep(argument) & ~kind.holds(x, call))


def _slack(x: Array) -> float:
    """What rounding may add to a number near 1."""
    return 1e-2 if x.dtype.itemsize < 4 else 1e-6


def _is_share(x: Array, _: Call) -> Array:
    if x.dtype == jnp.bool_:
        return jnp.ones(x.shape, bool)
    return (x >= 0) & (x <= 1 + _slack(x))


def _is_class(x: Array, call: Call) -> Array:
    return call.indices[0] != -1


def _is_logit(x: Array, call: Call) -> Array:
    """-inf rules a class out, which may not be the right one."""
    if call.has_indices:
        index = jnp.expand_dims(call.spread.own(call.indices[0], x.shape[call.axis]), call.axis)
        wanted = one_hot(index, x, call.axis)
    else:
        wanted = jnp.asarray(call.arguments["target"]) > 0
    return _is_bounded_above(x, call) & ~(wanted & (x == -jnp.inf))


def _is_bounded_above(x: Array, _: Call) -> Array:
    return x < jnp.inf


def _is_log_probability(x: Array, _: Call) -> Array:
    return x <= _slack(x)


def _is_listed_label(x: Array, call: Call) -> Array:
    listed = jnp.cumprod(x != -1, axis=call.axis).astype(bool)
    return ~listed | ((x >= 0) & (x < call.classes))


def _is_box(x: Array, call: Call) -> Array:
    corners = call.arguments["box_format"] in ("xyxy", "yxyx")
    size = x[..., 2:] - x[..., :2] if corners else x[..., 2:]
    return jnp.isfinite(x) & jnp.concatenate([jnp.ones(size.shape, bool), size >= 0], -1)


def _is_ctc_label(x: Array, call: Call) -> Array:
    return (x >= 0) & (x < call.classes)


def _is_input_length(x: Array, call: Call) -> Array:
    return (x >= 0) & (x <= _sequences.length_of(call.first, call.batch.layout))


def _is_target_length(x: Array, call: Call) -> Array:
    return (x >= 0) & (x <= call.batch.width)


def _class_or_share(call: Call) -> Kind:
    return CLASS if call.has_indices else SHARE


def _if(option: str, then: Kind, otherwise: Kind) -> Rule:
    """One kind or another, by a flag of the loss."""
    return lambda call: then if call.arguments[option] else otherwise


FINITE = Kind("finite", lambda x, _: jnp.isfinite(x))
NOT_NEGATIVE = Kind("finite and at least 0", lambda x, _: jnp.isfinite(x) & (x >= 0))
ABOVE_MINUS_ONE = Kind("finite and greater than -1", lambda x, _: jnp.isfinite(x) & (x > -1))
BOUNDED_ABOVE = Kind("finite, or -inf", _is_bounded_above)
LOGITS = Kind("finite, or -inf for a class that is not the target", _is_logit)
PROBABILITY = Kind("a probability in [0, 1]", lambda x, _: (x >= 0) & (x <= 1))
SHARE = Kind("a probability in [0, 1]", _is_share)
LOG_PROBABILITY = Kind("the logarithm of a probability, at most 0", _is_log_probability)
SIGN = Kind("1 or -1", lambda x, _: (x == 1) | (x == -1))
CLASS = Kind("a class index in [0, C)", _is_class)
LISTED_LABEL = Kind("a class index in [0, C) up to the first -1", _is_listed_label)
BOX = Kind("finite, with a size of at least 0", _is_box)
CTC_LABEL = Kind("a class index in [0, C)", _is_ctc_label)
INPUT_LENGTH = Kind("a length from 0 to the number of frames", _is_input_length)
TARGET_LENGTH = Kind("a length from 0 to the number of labels", _is_target_length)


def _numbers(target: Rule = FINITE, input: Rule = FINITE, **more: Rule) -> Rules:
    return Rules("entries", {"input": input, "target": target, **more})


def _binary(input: Rule = FINITE, applies: Activation | None = None, **options: Rule) -> Rules:
    return Rules("entries", {"input": input, "target": SHARE}, options, applies)


def _classes(
    target: Rule,
    input: Rule = FINITE,
    applies: Activation | None = None,
    more: Mapping[str, Rule] = MappingProxyType({}),
    **options: Rule,
) -> Rules:
    return Rules("classes", {"input": input, **more, "target": target}, options, applies)


def _vectors(*names: str, kind: Rule = FINITE, **more: Rule) -> Rules:
    return Rules("vectors", {**dict.fromkeys(names, kind), **more})


def _regions() -> Rules:
    return Rules("pixels", {"input": BOUNDED_ABOVE, "target": _class_or_share}, {"weight": FINITE})


def _sequences_of(scores: str, kind: Kind, applies: Activation | None = None) -> Rules:
    lengths = {"targets": CTC_LABEL, "input_lengths": INPUT_LENGTH, "target_lengths": TARGET_LENGTH}
    return Rules("frames", {scores: kind, **lengths}, {}, applies)


RULES: dict[str, Rules] = {
    "binary_cross_entropy": Rules("entries", {"input": PROBABILITY, "target": SHARE, "weight": FINITE}),
    "binary_cross_entropy_with_logits": Rules(
        "entries", {"input": FINITE, "target": SHARE, "weight": FINITE}, {"pos_weight": FINITE}, "sigmoid"
    ),
    "binary_sparsemax_loss": _binary(),
    "box_iou_loss": _vectors("boxes1", "boxes2", kind=BOX),
    "circle_loss": _vectors("input", target=FINITE),
    "clip_loss": _vectors("image_features", "text_features"),
    "complete_box_iou_loss": _vectors("boxes1", "boxes2", kind=BOX),
    "cosine_embedding_loss": _vectors("input1", "input2", target=SIGN),
    "cross_entropy": _classes(_class_or_share, LOGITS, "softmax", weight=FINITE),
    "ctc_loss": _sequences_of("log_probs", LOG_PROBABILITY),
    "ctc_loss_with_logits": _sequences_of("logits", BOUNDED_ABOVE, "softmax"),
    "dice_loss": _regions(),
    "distance_box_iou_loss": _vectors("boxes1", "boxes2", kind=BOX),
    "distillation_loss": _classes(CLASS, BOUNDED_ABOVE, "softmax", {"teacher": BOUNDED_ABOVE}),
    "expectile_loss": _numbers(),
    "focal_tversky_loss": _regions(),
    "gaussian_nll_loss": _numbers(var=NOT_NEGATIVE),
    "generalized_box_iou_loss": _vectors("boxes1", "boxes2", kind=BOX),
    "generalized_cross_entropy": _classes(_class_or_share, LOGITS, "softmax"),
    "generalized_dice_loss": _regions(),
    "generalized_kl_div": _classes(NOT_NEGATIVE, BOUNDED_ABOVE),
    "hinge_embedding_loss": _numbers(SIGN),
    "hinge_loss": _numbers(SIGN),
    "huber_loss": _numbers(weight=FINITE),
    "info_nce_loss": _vectors("query", "positive", "negatives"),
    "iou_loss": _regions(),
    "js_div": _classes(_if("log_target", LOG_PROBABILITY, SHARE), LOG_PROBABILITY),
    "kl_div": _numbers(_if("log_target", LOG_PROBABILITY, SHARE), LOG_PROBABILITY),
    "l1_loss": _numbers(weight=FINITE),
    "l2_loss": _numbers(),
    "linear_cross_entropy": Rules(
        "classes",
        {"input": FINITE, "target": _class_or_share},
        {"linear_weight": FINITE, "linear_bias": FINITE, "weight": FINITE},
    ),
    "log_cosh_loss": _numbers(),
    "margin_ranking_loss": Rules("entries", {"input1": FINITE, "input2": FINITE, "target": SIGN}),
    "mean_absolute_percentage_error": _numbers(),
    "mean_squared_logarithmic_error": _numbers(ABOVE_MINUS_ONE, ABOVE_MINUS_ONE),
    "mse_loss": _numbers(weight=FINITE),
    "multi_margin_loss": _classes(CLASS, weight=FINITE),
    "multiclass_hinge_loss": _classes(CLASS),
    "multiclass_perceptron_loss": _classes(CLASS),
    "multilabel_margin_loss": _classes(LISTED_LABEL),
    "multilabel_soft_margin_loss": _classes(SHARE, FINITE, "sigmoid", weight=FINITE),
    "nll_loss": _classes(CLASS, BOUNDED_ABOVE, weight=FINITE),  # log-densities, above 0, are as good
    "nt_xent_loss": _vectors("input", target=FINITE),
    "perceptron_loss": _numbers(SIGN),
    "poisson_nll_loss": _numbers(NOT_NEGATIVE, _if("log_input", BOUNDED_ABOVE, NOT_NEGATIVE)),
    "poly_cross_entropy": _classes(_class_or_share, LOGITS, "softmax"),
    "quantile_loss": _numbers(),
    "siglip_loss": _vectors("image_features", "text_features"),
    "sigmoid_focal_loss": _binary(FINITE, "sigmoid", alpha=FINITE),
    "smooth_l1_loss": _numbers(),
    "soft_margin_loss": _numbers(SIGN),
    "softmax_focal_loss": _classes(_class_or_share, LOGITS, "softmax", alpha=FINITE),
    "sparsemax_loss": _classes(_class_or_share),
    "squared_hinge_loss": _numbers(SIGN),
    "supervised_contrastive_loss": _vectors("input", target=FINITE),
    "triplet_margin_loss": _vectors("anchor", "positive", "negative"),
    "triplet_margin_with_distance_loss": _vectors("anchor", "positive", "negative"),
    "tversky_loss": _regions(),
}
