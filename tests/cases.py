"""One table of losses, shared by every test that states a property of all of them."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracles
import oracles_ctc

import jaxloss

IGNORED = -100
CUSTOM_VJP = (
    *(jaxloss.cross_entropy, jaxloss.linear_cross_entropy),
    *(jaxloss.ctc_loss, jaxloss.ctc_loss_with_logits),
)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A loss with one setting of its options.

    `draw(rng, shape)` makes the array arguments, away from kinks; `shapes[0]` is the shape that most tests use.
    `numbers` are float options, which may be traced. `rows` names the arguments that a mask can poison: those with
    one entry for each entry of the unreduced loss, give or take the axes `inner`, which that loss no longer has:
    "class" is torch's class axis. In losses over `regions` a mask is over pixels, which the unreduced loss has not, or
    over a batch in which every row meets every other. A loss with a part `held` constant has not the derivative of its
    value.
    """

    name: str
    loss: Callable[..., Any]
    oracle: Callable[..., tuple[np.ndarray, np.ndarray]]
    draw: Callable[[np.random.Generator, tuple[int, ...]], Arrays]
    numbers: dict[str, float] = field(default_factory=dict)
    static: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((3, 5), (), (1,), (7,), (2, 3, 4))
    rows: tuple[str, ...] = ("input", "target")
    inner: int | str | tuple[int, ...] | None = None
    regions: bool = False
    held: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def options(self) -> dict[str, Any]:
        return {**self.numbers, **self.static}

    @property
    def forward_mode(self) -> bool:
        """A custom_vjp refuses forward mode; `autodiff` stands in the table too."""
        return self.loss not in CUSTOM_VJP or self.static.get("implementation") == "autodiff"

    def data(self, seed: int = 0, shape: tuple[int, ...] | None = None) -> Arrays:
        return self.draw(np.random.default_rng(seed), self.shapes[0] if shape is None else shape)

    def expected(self, arrays: Arrays, **numbers: float) -> tuple[np.ndarray, np.ndarray]:
        ways = ("implementation", "chunk_size", "distance_function")  # of computing the same
        options = {name: value for name, value in self.options.items() if name not in ways}
        return self.oracle(**arrays, **{**options, **numbers})

    @property
    def first(self) -> str:
        """The argument that is differentiated twice."""
        return self.rows[0]

    def inner_axes(self, arrays: Arrays) -> tuple[int, ...]:
        """The axes that `first` has and the unreduced loss has not, counted from the front."""
        ndim = arrays[self.first].ndim
        if self.inner == "class":
            return ((0 if ndim == 1 else 1) if "axis" not in self.static else self.static["axis"] % ndim,)
        axes = () if self.inner is None else self.inner if isinstance(self.inner, tuple) else (self.inner,)
        return tuple(axis % ndim for axis in axes)


def differentiable(arrays: Arrays) -> Arrays:
    return {name: a for name, a in arrays.items() if np.issubdtype(a.dtype, np.floating)}


def real_pair(rng, shape):
    return {"input": rng.normal(size=shape) * 2, "target": rng.normal(size=shape)}


def weighted(draw, name="weight", of=lambda shape: shape):
    def draw_more(rng, shape):
        return {**draw(rng, shape), name: rng.uniform(0.3, 2.0, size=of(shape))}

    return draw_more


def counts(rng, shape):
    return {"input": rng.normal(size=shape), "target": rng.poisson(2.0, size=shape) + 0.25}


def rates(rng, shape):
    return {"input": rng.uniform(0.2, 4.0, size=shape), "target": rng.poisson(2.0, size=shape) + 0.25}


def gaussian(of):
    def draw(rng, shape):
        return {**real_pair(rng, shape), "var": rng.uniform(0.3, 3.0, size=of(shape))}

    return draw


def probability_pair(rng, shape):
    return {"input": rng.uniform(0.1, 0.9, size=shape), "target": rng.uniform(0.05, 0.95, size=shape)}


def logit_pair(rng, shape):
    return {"input": rng.normal(size=shape) * 3, "target": rng.uniform(0.05, 0.95, size=shape)}


def log_probability_pair(rng, shape):
    return {"input": np.log(rng.uniform(0.02, 0.98, size=shape)), "target": rng.uniform(0.05, 0.95, size=shape)}


def two_log_probabilities(rng, shape):
    return {name: np.log(rng.uniform(0.02, 0.98, size=shape)) for name in ("input", "target")}


def labelled(axis=None, ignored=IGNORED):
    def draw(rng, shape):
        classes = (0 if len(shape) == 1 else 1) if axis is None else axis % len(shape)
        target = np.asarray(rng.integers(0, shape[classes], size=shape[:classes] + shape[classes + 1 :]))
        if target.size > 2:
            target.flat[1] = ignored
        return {"input": rng.normal(size=shape) * 3, "target": target}

    return draw


def soft(rng, shape):
    q = rng.uniform(0.1, 1.0, size=shape)
    axis = 0 if len(shape) == 1 else 1
    return {"input": rng.normal(size=shape) * 3, "target": q / q.sum(axis, keepdims=True)}


def linear(draw, turned=False):
    """Features, and a layer of seven classes; `turned` is a kernel (H, C)."""

    def draw_more(rng, shape):
        arrays = draw(rng, (*shape[:-1], 7))
        w = rng.normal(size=(7, shape[-1]))
        layer = {"linear_weight": w.T if turned else w, "linear_bias": rng.normal(size=7)}
        return {"input": rng.normal(size=shape) * 2, **layer, "target": arrays["target"]}

    return draw_more


def soft_last(rng, shape):
    q = rng.uniform(0.1, 1.0, size=shape)
    return {"target": q / q.sum(-1, keepdims=True)}


def vector_pair(rng, shape):
    return {
        "input1": rng.normal(size=shape),
        "input2": rng.normal(size=shape),
        "target": np.asarray(rng.choice([-1, 1], size=shape[:-1])),
    }


def triplet(rng, shape):
    return {name: rng.normal(size=shape) for name in ("anchor", "positive", "negative")}


def cosine_distance(x, y):
    return 1 - jaxloss.cosine_similarity(x, y, axis=-1)


def signed(rng, shape):
    return {"input": rng.normal(size=shape) * 2, "target": np.asarray(rng.choice([-1, 1], size=shape))}


def ranked(rng, shape):
    labels = np.asarray(rng.choice([-1, 1], size=shape))
    return {"input1": rng.normal(size=shape), "input2": rng.normal(size=shape), "target": labels}


def listed(rng, shape):
    """Some labels, once or twice, then -1, then what must not be read."""
    axis = 0 if len(shape) == 1 else 1
    return {"input": rng.normal(size=shape), "target": np.asarray(rng.integers(-1, shape[axis], size=shape))}


def sequences(name):
    """Targets of one label or none, whose mean divides by their number alone; longer ones have tests of their own."""

    def draw(rng, shape):
        *count, length, classes = shape
        scores = rng.normal(size=shape) * 2
        return {
            name: oracles_ctc.log_softmax(scores) if name == "log_probs" else scores,
            "targets": np.asarray(rng.integers(1, classes, size=(*count, 2))),
            "input_lengths": np.asarray(rng.integers(2, length + 1, size=count)),
            "target_lengths": np.asarray(rng.integers(0, 2, size=count)),
        }

    return draw


def class_weights(shape):
    return shape[0 if len(shape) == 1 else 1]


ROWS = ((4, 5), (5,), (1, 5), (3, 4, 2), (2, 3, 2, 2))
VECTORS = ((4, 3), (3,), (1, 3), (2, 3, 4))
IMAGES = ((3, 4, 2), (2, 5), (2, 3, 2, 2))
LAST = ((2, 3, 5), (5,), (4, 3))

CASES = [
    Case("l1", jaxloss.l1_loss, oracles.l1_loss, real_pair),
    Case("l1 weight", jaxloss.l1_loss, oracles.l1_loss, weighted(real_pair), rows=("input", "target", "weight")),
    Case("mse", jaxloss.mse_loss, oracles.mse_loss, real_pair),
    Case("mse weight", jaxloss.mse_loss, oracles.mse_loss, weighted(real_pair), rows=("input", "target", "weight")),
    Case("smooth_l1", jaxloss.smooth_l1_loss, oracles.smooth_l1_loss, real_pair, {"beta": 1.0}),
    Case("smooth_l1 narrow", jaxloss.smooth_l1_loss, oracles.smooth_l1_loss, real_pair, {"beta": 0.07}),
    Case("huber", jaxloss.huber_loss, oracles.huber_loss, real_pair, {"delta": 1.7}),
    Case(
        "huber weight",
        jaxloss.huber_loss,
        oracles.huber_loss,
        weighted(real_pair),
        {"delta": 0.6},
        rows=("input", "target", "weight"),
    ),
    Case("poisson", jaxloss.poisson_nll_loss, oracles.poisson_nll_loss, counts),
    Case("poisson full", jaxloss.poisson_nll_loss, oracles.poisson_nll_loss, counts, static={"full": True}),
    Case(
        "poisson rate",
        jaxloss.poisson_nll_loss,
        oracles.poisson_nll_loss,
        rates,
        {"eps": 1e-3},
        {"log_input": False, "full": True},
    ),
    Case(
        "gaussian",
        jaxloss.gaussian_nll_loss,
        oracles.gaussian_nll_loss,
        gaussian(lambda shape: shape),
        {"eps": 1e-6},
        rows=("input", "target", "var"),
    ),
    Case(
        "gaussian short",
        jaxloss.gaussian_nll_loss,
        oracles.gaussian_nll_loss,
        gaussian(lambda shape: shape[:-1]),
        static={"full": True},
    ),
    Case(
        "gaussian one axis",
        jaxloss.gaussian_nll_loss,
        oracles.gaussian_nll_loss,
        gaussian(lambda shape: (*shape[:-1], 1)),
        shapes=((3, 5), (1,), (2, 3, 4)),
    ),
    Case("bce", jaxloss.binary_cross_entropy, oracles.binary_cross_entropy, probability_pair),
    Case(
        "bce weight",
        jaxloss.binary_cross_entropy,
        oracles.binary_cross_entropy,
        weighted(probability_pair),
        rows=("input", "target", "weight"),
    ),
    Case(
        "bce trailing weight",
        jaxloss.binary_cross_entropy,
        oracles.binary_cross_entropy,
        weighted(probability_pair, of=lambda shape: shape[-1:]),
    ),
    Case("bce logits", jaxloss.binary_cross_entropy_with_logits, oracles.binary_cross_entropy_with_logits, logit_pair),
    Case(
        "bce logits weights",
        jaxloss.binary_cross_entropy_with_logits,
        oracles.binary_cross_entropy_with_logits,
        weighted(weighted(logit_pair, "pos_weight", lambda shape: shape[-1:])),
        rows=("input", "target", "weight"),
    ),
    Case("ce", jaxloss.cross_entropy, oracles.cross_entropy, labelled(), shapes=ROWS, inner="class"),
    Case(
        "ce all options",
        jaxloss.cross_entropy,
        oracles.cross_entropy,
        weighted(labelled(), of=class_weights),
        {"label_smoothing": 0.2, "z_loss": 0.1, "logit_softcap": 4.0},
        shapes=ROWS,
        inner="class",
    ),
    Case(
        "ce ignored class",
        jaxloss.cross_entropy,
        oracles.cross_entropy,
        weighted(labelled(-1, 2), of=lambda shape: shape[-1]),
        {"label_smoothing": 0.7},
        {"ignore_index": 2, "axis": -1},
        shapes=LAST,
        inner="class",
    ),
    Case("ce soft", jaxloss.cross_entropy, oracles.cross_entropy, soft, shapes=ROWS, inner="class"),
    Case(
        "ce soft all options",
        jaxloss.cross_entropy,
        oracles.cross_entropy,
        weighted(soft, of=class_weights),
        {"label_smoothing": 0.3, "z_loss": 0.2},
        shapes=ROWS,
        inner="class",
    ),
    Case(
        "ce autodiff",
        jaxloss.cross_entropy,
        oracles.cross_entropy,
        weighted(labelled(), of=class_weights),
        {"label_smoothing": 0.2, "z_loss": 0.1, "logit_softcap": 4.0},
        {"implementation": "autodiff"},
        shapes=ROWS,
        inner="class",
    ),
    Case(
        "ce soft autodiff",
        jaxloss.cross_entropy,
        oracles.cross_entropy,
        soft,
        {"label_smoothing": 0.1},
        {"implementation": "autodiff"},
        shapes=ROWS,
        inner="class",
    ),
    *(
        Case(
            f"linear_ce{name}",
            jaxloss.linear_cross_entropy,
            oracles.linear_cross_entropy,
            draw,
            numbers,
            static,
            shapes=((5, 3), (3,), (1, 3), (2, 2, 4)),
            inner=-1,
        )
        for name, draw, numbers, static in (
            (
                " autodiff",
                weighted(linear(labelled(-1)), of=lambda shape: 7),
                {"label_smoothing": 0.2, "logit_softcap": 3.0},
                {"implementation": "autodiff", "chunk_size": 2},
            ),
            (
                " soft",
                weighted(linear(soft_last, turned=True), of=lambda shape: 7),
                {"label_smoothing": 0.1},
                {"feature_axis": 0, "chunk_size": 3},
            ),
            (
                " all options",
                weighted(linear(labelled(-1, 3)), of=lambda shape: 7),
                {"label_smoothing": 0.2, "z_loss": 0.1, "logit_softcap": 3.0},
                {"ignore_index": 3, "chunk_size": 3},
            ),
        )
    ),
    Case("nll", jaxloss.nll_loss, oracles.nll_loss, labelled(), shapes=ROWS, inner="class"),
    Case(
        "nll weight",
        jaxloss.nll_loss,
        oracles.nll_loss,
        weighted(labelled(-1, 1), of=lambda shape: shape[-1]),
        static={"ignore_index": 1, "axis": -1},
        shapes=LAST,
        inner="class",
    ),
    Case("kl", jaxloss.kl_div, oracles.kl_div, log_probability_pair),
    Case("kl log", jaxloss.kl_div, oracles.kl_div, two_log_probabilities, static={"log_target": True}),
    Case(
        "cosine_embedding",
        jaxloss.cosine_embedding_loss,
        oracles.cosine_embedding_loss,
        vector_pair,
        {"margin": 0.1},
        shapes=VECTORS,
        rows=("input1", "input2", "target"),
        inner=-1,
    ),
    *(
        Case(
            f"triplet p={p}{' swap' * swap}",
            jaxloss.triplet_margin_loss,
            oracles.triplet_margin_loss,
            triplet,
            {"margin": 1.3, "eps": 1e-3},
            {"p": p, "swap": swap},
            shapes=VECTORS,
            rows=("anchor", "positive", "negative"),
            inner=-1,
        )
        for p, swap in ((1, False), (2, True), (3.5, False), (math.inf, False))
    ),
    Case(
        "triplet by cosine",
        jaxloss.triplet_margin_with_distance_loss,
        oracles.triplet_by_cosine,
        triplet,
        {"margin": 0.7},
        {"distance_function": cosine_distance, "swap": True},
        shapes=VECTORS,
        rows=("anchor", "positive", "negative"),
        inner=-1,
    ),
    Case("hinge_embedding", jaxloss.hinge_embedding_loss, oracles.hinge_embedding_loss, signed, {"margin": 1.2}),
    Case(
        "margin_ranking",
        jaxloss.margin_ranking_loss,
        oracles.margin_ranking_loss,
        ranked,
        {"margin": 0.4},
        rows=("input1", "input2", "target"),
    ),
    Case("soft_margin", jaxloss.soft_margin_loss, oracles.soft_margin_loss, signed),
    Case(
        "multilabel_soft_margin",
        jaxloss.multilabel_soft_margin_loss,
        oracles.multilabel_soft_margin_loss,
        weighted(logit_pair, of=lambda shape: shape[-1]),
        shapes=VECTORS,
        inner=-1,
    ),
    *(
        Case(
            f"multi_margin p={p}",
            jaxloss.multi_margin_loss,
            oracles.multi_margin_loss,
            weighted(labelled(ignored=0), of=class_weights),
            {"margin": 1.4},
            {"p": p},
            shapes=ROWS,
            inner="class",
        )
        for p in (1, 2)
    ),
    Case(
        "multilabel_margin",
        jaxloss.multilabel_margin_loss,
        oracles.multilabel_margin_loss,
        listed,
        shapes=ROWS,
        inner="class",
    ),
    Case(
        "softmax_focal",
        jaxloss.softmax_focal_loss,
        oracles.softmax_focal_loss,
        weighted(labelled(), "alpha", class_weights),
        {"gamma": 1.7},
        shapes=ROWS,
        inner="class",
    ),
    Case(
        "softmax_focal soft",
        jaxloss.softmax_focal_loss,
        oracles.softmax_focal_loss,
        soft,
        {"gamma": 0.5, "alpha": 0.25},
        shapes=ROWS,
        inner="class",
    ),
    Case(
        "sigmoid_focal",
        jaxloss.sigmoid_focal_loss,
        oracles.sigmoid_focal_loss,
        logit_pair,
        {"gamma": 1.5, "alpha": 0.3},
    ),
    Case(
        "sigmoid_focal per label",
        jaxloss.sigmoid_focal_loss,
        oracles.sigmoid_focal_loss,
        weighted(logit_pair, "alpha", lambda shape: shape[-1:]),
        {"gamma": 0.5},
    ),
    Case("dice", jaxloss.dice_loss, oracles.dice_loss, logit_pair, {"smooth": 1.0}, regions=True),
    Case(
        "dice multiclass",
        jaxloss.dice_loss,
        oracles.dice_loss,
        weighted(labelled(), of=class_weights),
        {"smooth": 0.5},
        {"mode": "multiclass", "per_sample": True, "empty": "skip"},
        shapes=IMAGES,
        regions=True,
    ),
    Case(
        "iou multilabel",
        jaxloss.iou_loss,
        oracles.iou_loss,
        logit_pair,
        {"smooth": 1.0},
        {"mode": "multilabel", "classes": (1, 2)},
        shapes=IMAGES,
        regions=True,
    ),
    Case(
        "tversky soft multiclass",
        jaxloss.tversky_loss,
        oracles.tversky_loss,
        soft,
        {"alpha": 0.3, "beta": 0.8, "smooth": 1e-3},
        {"mode": "multiclass"},
        shapes=IMAGES,
        regions=True,
    ),
    *(
        Case(
            f"{loss.__name__} {implementation}",
            loss,
            oracle,
            sequences(scores),
            static={"batch_first": True, "implementation": implementation},
            shapes=((3, 4, 5), (4, 5), (1, 4, 5)),
            rows=(scores, "targets", "input_lengths", "target_lengths"),
            inner=(-2, -1),
        )
        for loss, oracle, scores, implementation in (
            (jaxloss.ctc_loss, oracles_ctc.ctc_loss, "log_probs", "auto"),
            (jaxloss.ctc_loss, oracles_ctc.ctc_loss, "log_probs", "autodiff"),
            (jaxloss.ctc_loss_with_logits, oracles_ctc.ctc_loss_with_logits, "logits", "auto"),
        )
    ),
]


def one_of_each(cases: list[Case]) -> list[Case]:
    """For every loss the row with most options and arrays, for what does not hang on the formula."""
    return _largest(cases, lambda case: case.loss)


def one_of_each_family(cases: list[Case]) -> list[Case]:
    """For every file of losses one such row, for what hangs on the steps that its losses share."""
    return _largest(cases, lambda case: case.loss.__module__)


def _largest(cases: list[Case], key: Callable[[Case], Any]) -> list[Case]:
    cases = list(cases)
    if os.environ.get("JAXLOSS_TESTS") == "all":
        return cases
    found: dict[Any, tuple[int, Case]] = {}
    for case in cases:
        size = len(case.options) + len(case.data())
        if key(case) not in found or size > found[key(case)][0]:
            found[key(case)] = size, case
    return [case for _, case in found.values()]


from cases_more import MORE  # noqa: E402 - its rows are made of what stands above

CASES += MORE
