"""The option grid on which values and gradients are held against torch, live and as stored golden values."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """One call of a loss of torch.nn.functional, in every reduction. `moving` are differentiated."""

    id: str
    loss: str
    arrays: Arrays
    options: dict[str, Any] = field(default_factory=dict)
    moving: tuple[str, ...] = ("input", "target")

    def __str__(self) -> str:
        return self.id

    @property
    def reductions(self) -> tuple[str, ...]:
        if self.loss in ("pairwise_distance", "cosine_similarity"):
            return ("none",)
        return ("mean", "sum", "none", "batchmean") if self.loss == "kl_div" else ("mean", "sum", "none")

    def call(self, arrays: dict[str, Any], reduction: str) -> dict[str, Any]:
        """Keyword arguments of one call."""
        options = self.options if self.reductions == ("none",) else {**self.options, "reduction": reduction}
        return {**arrays, **options}

    def cotangent(self, shape: tuple[int, ...]) -> np.ndarray:
        """What an unreduced loss is multiplied by before its gradient is taken."""
        return np.random.default_rng(99).normal(size=shape)


def _entries(loss, arrays, moving=("input", "target"), **options):
    """The product of all options; a value that is a dict names array arguments."""
    for number, chosen in enumerate(itertools.product(*options.values())):
        entry_arrays, entry_options = dict(arrays), {}
        for name, value in zip(options, chosen, strict=True):
            if isinstance(value, np.ndarray):
                entry_arrays[name] = value
            elif value is not None:
                entry_options[name] = value
        shape = "x".join(map(str, next(iter(arrays.values())).shape)) or "scalar"
        soft = loss in ("cross_entropy", "linear_cross_entropy") and arrays["target"].dtype == np.float64
        kind = "-soft" if soft else ""
        yield Entry(f"{loss}{kind}-{shape}-{number}", loss, entry_arrays, entry_options, moving)


def _regression(rng):
    for shape in ((4, 3), (), (2, 3, 2)):
        t = rng.normal(size=shape)
        x = t + rng.normal(size=shape) * 1.5
        if x.size > 2:
            x.flat[0] = t.flat[0]  # the kink at 0
            t.flat[1], x.flat[1] = 0.5, 1.5  # the seam at 1
        pair, weight = {"input": x, "target": t}, rng.uniform(0.2, 2, size=shape)
        yield from _entries("l1_loss", pair, weight=[None, weight])
        yield from _entries("mse_loss", pair, weight=[None, weight])
        yield from _entries("smooth_l1_loss", pair, beta=[None, 0.0, 0.3, 1.0, 2.5])
        yield from _entries("huber_loss", pair, delta=[None, 0.3, 1.0, 2.5], weight=[None, weight])
        for log_input in (True, False):
            positive = {"input": x if log_input else np.abs(x) + 0.1, "target": np.abs(t) * 3}
            yield from _entries(
                "poisson_nll_loss", positive, full=[False, True], log_input=[log_input], eps=[None, 1e-2]
            )
        var = rng.uniform(0.1, 2, size=shape)
        variances = [var, var[..., :1], var[..., 0]] if shape else [var]
        for v in (*variances, np.full(shape, 1e-9)):
            arrays = {**pair, "var": v}
            yield from _entries(
                "gaussian_nll_loss", arrays, ("input", "target", "var"), full=[False, True], eps=[None, 0.5]
            )


def _binary(rng):
    for shape in ((4, 3), (), (2, 3, 2)):
        x, t = rng.normal(size=shape) * 2, rng.uniform(size=shape)
        if x.size > 3:
            t.flat[:4] = 0, 1, 0.5, 1
            x.flat[:3] = 0  # where a loss built on |x| has the wrong slope
        weights = [None, rng.uniform(0.2, 2, size=shape), rng.uniform(0.2, 2, size=shape[-1:])]
        yield from _entries(
            "binary_cross_entropy_with_logits",
            {"input": x, "target": t},
            weight=weights,
            pos_weight=[None, rng.uniform(0.2, 4, size=shape[-1:]), rng.uniform(0.2, 4, size=shape)],
        )
        p = 1 / (1 + np.exp(-x))
        if p.size > 3:
            p.flat[4:6] = 0, 1
            t.flat[4:6] = 1, 1
        # torch's derivative for the target is infinite at p = 0 and 1, ours is not.
        yield from _entries("binary_cross_entropy", {"input": p, "target": t}, ("input",), weight=weights)
        q, log_p = rng.uniform(0.01, 1, size=shape), np.log(rng.uniform(0.01, 1, size=shape))
        yield from _entries("kl_div", {"input": log_p, "target": q})
        yield from _entries("kl_div", {"input": log_p, "target": np.log(q)}, log_target=[True])


def _signs(rng, shape):
    return np.asarray(rng.choice([-1.0, 1.0], size=shape))


def _margins(rng):
    for shape in ((4, 3), (), (2, 3, 2)):
        x, y = rng.normal(size=shape), _signs(rng, shape)
        if x.size > 3:
            x.flat[:3], y.flat[:3] = (1.0, -1.0, 0.3), (-1.0, 1.0, 3.0)  # the kink, and a label that is none
        yield from _entries("hinge_embedding_loss", {"input": x, "target": y}, ("input",), margin=[None, 1.0, 0.4])
        yield from _entries("soft_margin_loss", {"input": x, "target": y}, ("input",))
        others = x + rng.normal(size=shape)
        if x.size > 3:
            others.flat[0] = x.flat[0]  # the kink at margin 0
        arrays = {"input1": x, "input2": others, "target": y}
        yield from _entries("margin_ranking_loss", arrays, ("input1", "input2"), margin=[None, 0.6])
    for shape in ((5,), (4, 5)):
        x = np.round(rng.normal(size=shape), 1)  # ties, and margins met exactly
        y = np.asarray(rng.integers(0, 5, size=shape[:-1]))
        weights = [None, rng.uniform(0.2, 2, size=5)]
        arrays = {"input": x, "target": y}
        yield from _entries("multi_margin_loss", arrays, ("input",), p=[1, 2], margin=[None, 0.5], weight=weights)
        lists = rng.integers(-1, 5, size=shape)
        yield from _entries("multilabel_margin_loss", {"input": x, "target": lists}, ("input",))
        t = rng.uniform(size=shape).round()
        yield from _entries("multilabel_soft_margin_loss", {"input": x, "target": t}, ("input",), weight=weights)


def _embeddings(rng):
    for shape in ((4, 3), (3,)):
        a, p, n = (rng.normal(size=shape) for _ in range(3))
        if len(shape) > 1:
            p[0] = a[0]  # equal points
            a[1] = 0  # a vector of zeros
        arrays = {"input1": a, "input2": p, "target": _signs(rng, shape[:-1])}
        yield from _entries("cosine_embedding_loss", arrays, ("input1", "input2"), margin=[None, 0.3])
        triplet = {"anchor": a, "positive": p, "negative": n}
        yield from _entries(
            "triplet_margin_loss",
            triplet,
            tuple(triplet),
            p=[None, 1.0, 3.0],
            margin=[None, 0.4],
            swap=[False, True],
            eps=[None, 1e-2],
        )
        yield from _entries(
            "triplet_margin_with_distance_loss", triplet, tuple(triplet), swap=[False, True], margin=[0.7]
        )
        pair = {"x1": a, "x2": n}
        yield from _entries("pairwise_distance", pair, ("x1", "x2"), p=[None, 1.0, 2.5, np.inf], keepdim=[False, True])
        yield from _entries("cosine_similarity", pair, ("x1", "x2"), axis=[-1, 0], eps=[None, 0.5])


def _classes(rng):
    for shape in ((5,), (4, 5), (3, 5, 2), (2, 5, 2, 3)):
        axis = 0 if len(shape) == 1 else 1
        x = rng.normal(size=shape) * 3
        y = np.asarray(rng.integers(0, 5, size=shape[:axis] + shape[axis + 1 :]))
        if y.size > 3:
            y.flat[:2] = -100, 1
        q = rng.uniform(size=shape)
        q /= q.sum(axis, keepdims=True)
        weights = [None, rng.uniform(0.2, 2, size=5)]
        for ignore_index in (None, 1):
            ignored = np.where(y == -100, 2, y) if ignore_index == 1 else y
            arrays = {"input": x, "target": np.asarray(ignored)}
            options = {"weight": weights, "ignore_index": [ignore_index]}
            yield from _entries("cross_entropy", arrays, ("input",), **options, label_smoothing=[None, 0.3, 1.0])
            yield from _entries("nll_loss", arrays, ("input",), **options)
        yield from _entries("cross_entropy", {"input": x, "target": q}, weight=weights, label_smoothing=[None, 0.3])


def _linear(rng):
    for shape, places in (((4, 3), ()), ((3,), ()), ((4, 3), (2,))):
        logits = (*shape[:-1], 5, *places)
        layer = {"input": rng.normal(size=shape) * 2, "linear_weight": rng.normal(size=(5, *places, 3))}
        y = np.asarray(rng.integers(0, 5, size=shape[:-1] + places))
        if y.size > 3:
            y.flat[:2] = -100, 1
        q = rng.uniform(size=logits)
        weights, smoothing = [None, rng.uniform(0.2, 2, size=5)], [None, 0.3]
        moving = ("input", "linear_weight")
        biased, all_moving = {**layer, "linear_bias": rng.normal(size=(5, *places))}, (*moving, "linear_bias")
        yield from _entries("linear_cross_entropy", {**layer, "target": y}, moving, weight=weights)
        yield from _entries(
            "linear_cross_entropy",
            {**biased, "target": np.where(y == -100, 2, y)},
            all_moving,
            weight=weights,
            label_smoothing=smoothing,
            ignore_index=[1],
        )
        yield from _entries(
            "linear_cross_entropy", {**biased, "target": q}, all_moving, weight=weights, label_smoothing=smoothing
        )


def _sequences(rng):
    """Logits, which both sides put through log_softmax: torch's gradient is that of logits whatever it is given."""
    for length, count, classes, labels in ((12, 4, 5, 4), (30, 3, 9, 7), (7, 2, 3, 0)):
        for blank in (0, classes - 1, 1):
            y = rng.integers(0, classes - 1, size=(count, labels))
            y += y >= blank
            y[0] = y[0, :1]  # one label again and again
            frames = rng.integers(2 * labels + 1, length + 1, size=count)
            sizes = rng.integers(0, labels + 1, size=count)
            frames[0], sizes[0] = length, labels
            arrays = {
                "log_probs": rng.normal(size=(length, count, classes)) * 3,
                "targets": y,
                "input_lengths": frames,
                "target_lengths": sizes,
            }
            yield from _entries("ctc_loss", arrays, ("log_probs",), blank=[blank])
            if blank == 0 and labels:
                joined = np.concatenate([row[:size] for row, size in zip(y, sizes, strict=True)])
                yield from _entries("ctc_loss", {**arrays, "targets": joined}, ("log_probs",))
                one = {name: a[:, 0] if name == "log_probs" else np.asarray(a[0]) for name, a in arrays.items()}
                yield from _entries("ctc_loss", one, ("log_probs",))
                # The first sample cannot be aligned; torch's gradient for it is a NaN unless its cost is made 0.
                short = {**arrays, "input_lengths": np.array([labels - 1, *frames[1:]])}
                yield from _entries("ctc_loss", short, ("log_probs",), zero_infinity=[True])


def grid() -> list[Entry]:
    """Every entry, with an id of its own."""
    rng = np.random.default_rng(20260713)
    entries = [*_regression(rng), *_binary(rng), *_classes(rng), *_margins(rng), *_embeddings(rng), *_sequences(rng)]
    entries += _linear(rng)
    seen: dict[str, int] = {}
    unique = []
    for entry in entries:
        seen[entry.id] = seen.get(entry.id, -1) + 1
        letter = "abcdefgh"[seen[entry.id]]
        unique.append(Entry(entry.id + letter, entry.loss, entry.arrays, entry.options, entry.moving))
    return unique
