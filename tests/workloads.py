"""One table of real work: every public loss at sizes that it is trained with, beside what others have for it.

The benchmark times the table (`benchmarks/losses.py`); the tests hold its columns against each other at small sizes and
lower it at the real ones for every platform (`test_workloads.py`).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss

Arrays = dict[str, np.ndarray]
SIZES = ("cpu", "gpu", "small")


@dataclass(frozen=True)
class Workload:
    """A loss, what it is used for, and the arrays of one training step; the first `moving` of them are differentiated.

    `ours` takes the arrays in order, and so does `plain`, the formula as one writes it in jnp, if anybody would.
    `peers` are by module: each takes that module first, then the arrays. `sizes` has a shape for a CPU, for a GPU and
    for tests. `reads` is how often the first array has to be read for value and gradient; `flops` counts the matmuls
    that a value needs, for each shape.
    """

    name: str
    field: str
    ours: Callable[..., Any]
    plain: Callable[..., Any] | None
    draw: Callable[[np.random.Generator, tuple[int, ...]], Arrays]
    sizes: dict[str, tuple[int, ...]]
    peers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    moving: int = 1
    reads: int = 1
    flops: Callable[..., float] = lambda *shape: 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def loss(self) -> str:
        """The public name."""
        return self.name.split()[0]

    @property
    def apart(self) -> bool:
        """Whether no row has to do with another."""
        return self.sizes not in (BATCH, SPEECH)

    def arrays(self, size: str) -> Arrays:
        return self.draw(np.random.default_rng(0), self.sizes[size])

    def real(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of the arrays for a GPU, from the small ones: to draw them would take gigabytes."""
        small, real = self.sizes["small"], self.sizes["gpu"]
        assert len(set(small)) == len(small), "each axis is known by its size"
        size = dict(zip(small, real, strict=True))
        return [jax.ShapeDtypeStruct([size[n] for n in a.shape], a.dtype) for a in self.arrays("small").values()]

    def least(self, arrays: list[Any], gradient: bool) -> int:
        """Bytes that have to move: of the arrays read and the gradients written."""
        sizes = [a.size * a.dtype.itemsize for a in arrays]
        reads = self.reads if gradient else min(self.reads, 1)
        return sizes[0] * reads + sum(sizes[1:]) + (sum(sizes[: self.moving]) if gradient else 0)


def in_dtype(arrays, dtype):
    """The numbers among the arrays in another dtype."""
    return [a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arrays]


def sizes(cpu, gpu, small):
    return dict(zip(SIZES, (cpu, gpu, small), strict=True))


# What the peers call a loss: with its own defaults, reduced to one number.


def _torch(name, **options):
    return lambda torch, *arrays: getattr(torch.nn.functional, name)(*arrays, **options)


def _optax(name, **options):
    return lambda optax, *arrays: getattr(optax.losses, name)(*arrays, **options).mean()


def _keras(name, **options):
    """Keras has the target first."""
    return lambda keras, x, t: getattr(keras.losses, name)(t, x, **options).mean()


def _peers(torch=None, optax=None, keras=None):
    made = {"torch": (_torch, torch), "optax": (_optax, optax), "keras": (_keras, keras)}
    return {module: make(name) if isinstance(name, str) else name for module, (make, name) in made.items() if name}


# Numbers for which the formula matters: predictions off by about as much as the losses have for a seam.


def _pair(rng, shape):
    t = rng.standard_normal(shape, np.float32)
    return {"input": t + rng.standard_normal(shape, np.float32), "target": t}


def _signs(rng, shape):
    return rng.integers(0, 2, shape).astype(np.float32) * 2 - 1


def _signed(rng, shape):
    return {"input": rng.standard_normal(shape, np.float32), "target": _signs(rng, shape)}


def _binary(rng, shape):
    return {"input": rng.standard_normal(shape, np.float32), "target": (rng.random(shape) < 0.3).astype(np.float32)}


def _probabilities(rng, shape):
    return {"input": rng.uniform(0.02, 0.98, shape).astype(np.float32), "target": _binary(rng, shape)["target"]}


def _positive(rng, shape):
    return {name: rng.uniform(0.2, 4, shape).astype(np.float32) for name in ("input", "target")}


def _counts(rng, shape):
    return {"input": rng.standard_normal(shape, np.float32), "target": rng.poisson(2, shape).astype(np.float32)}


def _three(rng, shape):
    return {**_pair(rng, shape), "var": rng.uniform(0.3, 3, shape).astype(np.float32)}


def _mean_and_variance(rng, shape):
    arrays = _three(rng, shape)
    return {name: arrays[name] for name in ("input", "var", "target")}


def _masked(draw):
    """With a mask of what counts, as numbers: most of it."""
    return lambda rng, shape: {**draw(rng, shape), "mask": (rng.random(shape) < 0.8).astype(np.float32)}


def _ranked(rng, shape):
    return {
        "input1": rng.standard_normal(shape, np.float32),
        "input2": rng.standard_normal(shape, np.float32),
        "target": _signs(rng, shape),
    }


def _logits(rng, shape):
    return {"input": rng.standard_normal(shape, np.float32)}


def _labelled(rng, shape):
    labels = rng.integers(0, shape[1], (shape[0], *shape[2:])).astype(np.int32)
    return {**_logits(rng, shape), "target": labels}


def _softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _soft(rng, shape):
    return {**_logits(rng, shape), "target": _softmax(rng.standard_normal(shape, np.float32))}


def _log_probabilities(rng, shape):
    logits = rng.standard_normal(shape, np.float32)
    return {"input": np.log(_softmax(logits)), "target": _softmax(rng.standard_normal(shape, np.float32))}


def _log_probabilities_labelled(rng, shape):
    return {**_labelled(rng, shape), "input": np.log(_softmax(rng.standard_normal(shape, np.float32)))}


def _taught(rng, shape):
    return {**_logits(rng, shape), "teacher": rng.standard_normal(shape, np.float32)}


def _listed(rng, shape):
    """Five labels for each row, then -1."""
    target = np.full(shape, -1, np.int32)
    target[:, :5] = rng.integers(0, shape[1], (shape[0], 5))
    return {**_logits(rng, shape), "target": target}


def _features(rng, shape):
    rows, width, classes = shape
    return {
        "input": rng.standard_normal((rows, width), np.float32),
        "linear_weight": rng.standard_normal((classes, width), np.float32) * width**-0.5,
        "target": rng.integers(0, classes, rows).astype(np.int32),
    }


def _vectors(*names):
    def draw(rng, shape):
        return {name: rng.standard_normal(shape, np.float32) for name in names}

    return draw


def _alike(rng, shape):
    return {**_vectors("input1", "input2")(rng, shape), "target": _signs(rng, shape[:1])}


def _grouped(rng, shape):
    """Four samples of each label."""
    return {**_logits(rng, shape), "target": (np.arange(shape[0]) // 4).astype(np.int32)}


def _boxes(rng, shape):
    """Corners in order, of boxes that overlap as often as not."""
    corner = rng.uniform(0, 2, (2, *shape[:-1], 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 2.5, corner.shape)], -1).astype(np.float32)
    return {"boxes1": boxes[0], "boxes2": boxes[1]}


def _sequences(scores):
    def draw(rng, shape):
        length, count, classes, labels = shape
        x = rng.standard_normal((length, count, classes), np.float32)
        return {
            scores: x - np.log(np.exp(x).sum(-1, keepdims=True)) if scores == "log_probs" else x,
            "targets": rng.integers(1, classes, (count, labels)).astype(np.int32),
            "input_lengths": rng.integers(length * 3 // 4, length + 1, count).astype(np.int32),
            "target_lengths": rng.integers(labels // 2, labels + 1, count).astype(np.int32),
        }

    return draw


# The formulas in jnp, as one writes them.


def _mean(formula):
    return lambda *arrays: jnp.mean(formula(*arrays))


def _huber(x, t):
    d = jnp.abs(x - t)
    return jnp.where(d < 1, 0.5 * d * d, d - 0.5)


def _plain_gaussian(x, t, v):
    v = jnp.maximum(v, 1e-6)
    return 0.5 * (jnp.log(v) + (x - t) ** 2 / v)


def _plain_bce(x, t):
    return -(t * jax.nn.log_sigmoid(x) + (1 - t) * jax.nn.log_sigmoid(-x))


def _plain_focal(x, t):
    p = jax.nn.sigmoid(x)
    weight = jnp.where(t == 1, 0.25, 0.75) * (1 - (p * t + (1 - p) * (1 - t))) ** 2
    return weight * _plain_bce(x, t)


def _own(x, y, axis=1):
    return jnp.take_along_axis(x, jnp.expand_dims(y, axis), axis).squeeze(axis)


def _plain_ce(x, y):
    return -_own(jax.nn.log_softmax(x, 1), y)


def _plain_soft_ce(x, q):
    return -jnp.sum(q * jax.nn.log_softmax(x, 1), 1)


def _plain_smooth_ce(x, y):
    log_p = jax.nn.log_softmax(x, 1)
    return -0.9 * _own(log_p, y) - 0.1 * jnp.mean(log_p, 1)


def _plain_softmax_focal(x, y):
    log_p = _own(jax.nn.log_softmax(x, 1), y)
    return -((1 - jnp.exp(log_p)) ** 2) * log_p


def _plain_poly(x, y):
    log_p = _own(jax.nn.log_softmax(x, 1), y)
    return 2 * (1 - jnp.exp(log_p)) - log_p


def _plain_generalized_ce(x, y):
    return (1 - _own(jax.nn.softmax(x, 1), y) ** 0.7) / 0.7


def _plain_sparsemax(x, y):
    ordered = -jnp.sort(-x, 1)
    count = jnp.arange(1, x.shape[1] + 1)
    total = jnp.cumsum(ordered, 1)
    size = jnp.sum(1 + count * ordered > total, 1)
    threshold = (_own(total, size - 1) - 1) / size
    p = jax.lax.stop_gradient(jnp.maximum(x - threshold[:, None], 0))
    return jnp.sum(p * x, 1) - 0.5 * jnp.sum(p * p, 1) - _own(x, y) + 0.5


def _others(x, y):
    return jnp.max(jnp.where(jax.nn.one_hot(y, x.shape[1], dtype=bool), -jnp.inf, x), 1)


def _plain_multi_margin(x, y):
    hinge = jnp.maximum(1 - _own(x, y)[:, None] + x, 0)
    return jnp.sum(jnp.where(jax.nn.one_hot(y, x.shape[1], dtype=bool), 0, hinge), 1) / x.shape[1]


def _plain_multilabel_margin(x, y):
    valid = jnp.cumprod(y >= 0, 1).astype(bool)
    rows = jnp.arange(x.shape[0])[:, None]
    named = jnp.zeros(x.shape, bool).at[rows, jnp.where(valid, y, x.shape[1])].set(True, mode="drop")
    own = jnp.take_along_axis(x, jnp.where(valid, y, 0)[:, :5], 1)  # no row has more
    hinge = jnp.maximum(1 - own[:, :, None] + x[:, None, :], 0)
    return jnp.sum(jnp.where(valid[:, :5, None] & ~named[:, None, :], hinge, 0), (1, 2)) / x.shape[1]


def _plain_js(log_p, q):
    m = (jnp.exp(log_p) + q) / 2
    return jnp.sum(jnp.exp(log_p) * (log_p - jnp.log(m)) + jax.scipy.special.xlogy(q, q / m), 1) / 2


def _plain_distillation(x, teacher):
    q = jax.nn.softmax(teacher / 2, 1)
    return 4 * jnp.sum(q * (jnp.log(q) - jax.nn.log_softmax(x / 2, 1)), 1)


def _norm(x, eps=1e-8):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), eps)


def _plain_cosine(x, y):
    return jnp.sum(_norm(x) * _norm(y), -1)


def _plain_cosine_embedding(x, y, t):
    similarity = _plain_cosine(x, y)
    return jnp.where(t == 1, 1 - similarity, jnp.maximum(similarity, 0))


def _plain_distance(x, y):
    return jnp.linalg.norm(x - y + 1e-6, axis=-1)


def _plain_triplet(a, p, n):
    return jnp.maximum(_plain_distance(a, p) - _plain_distance(a, n) + 1, 0)


def _plain_pairs(a, b, scale):
    return scale * _norm(a) @ _norm(b).T


def _plain_info_nce(a, b):
    return _plain_ce(_plain_pairs(a, b, 1 / 0.1), jnp.arange(len(a)))


def _plain_clip(a, b):
    z = _plain_pairs(a, b, 1 / 0.07)
    own = jnp.arange(len(a))
    return (_plain_ce(z, own) + _plain_ce(z.T, own)) / 2


def _plain_siglip(a, b):
    z = _plain_pairs(a, b, 10.0) - 10
    return -jnp.sum(jax.nn.log_sigmoid(z * (2 * jnp.eye(len(a), dtype=z.dtype) - 1)), 1)


def _plain_supcon(x, y):
    z = _plain_pairs(x, x, 1 / 0.1)
    own = jnp.eye(len(x), dtype=bool)
    positive = (y[:, None] == y) & ~own
    log_p = z - jax.nn.logsumexp(jnp.where(own, -jnp.inf, z), 1, keepdims=True)
    return -jnp.sum(jnp.where(positive, log_p, 0), 1) / jnp.sum(positive, 1)


def _plain_nt_xent(x, y):
    """Each positive against the negatives and itself; the mean over pairs."""
    z = _plain_pairs(x, x, 1 / 0.1)
    same = y[:, None] == y
    positive = same & ~jnp.eye(len(x), dtype=bool)
    negative = jax.nn.logsumexp(jnp.where(same, -jnp.inf, z), 1, keepdims=True)
    return jnp.sum(jnp.where(positive, jnp.logaddexp(z, negative) - z, 0)) / jnp.sum(positive)


def _plain_circle(x, y):
    s = _plain_pairs(x, x, 1.0)
    same, own = y[:, None] == y, jnp.eye(len(x), dtype=bool)
    up = 80 * jax.lax.stop_gradient(jnp.maximum(1.4 - s, 0)) * (0.6 - s)
    down = 80 * jax.lax.stop_gradient(jnp.maximum(s + 0.4, 0)) * (s - 0.4)
    up = jax.nn.logsumexp(jnp.where(same & ~own, up, -jnp.inf), 1)
    return jax.nn.softplus(up + jax.nn.logsumexp(jnp.where(same, -jnp.inf, down), 1))


def _areas(a, b):
    size = jnp.prod(a[:, 2:] - a[:, :2], 1), jnp.prod(b[:, 2:] - b[:, :2], 1)
    both = jnp.prod(jnp.maximum(jnp.minimum(a[:, 2:], b[:, 2:]) - jnp.maximum(a[:, :2], b[:, :2]), 0), 1)
    return both, size[0] + size[1] - both


def _hull(a, b):
    return jnp.maximum(a[:, 2:], b[:, 2:]) - jnp.minimum(a[:, :2], b[:, :2])


def _plain_iou(a, b):
    both, either = _areas(a, b)
    return 1 - both / (either + 1e-7)


def _plain_giou(a, b):
    _, either = _areas(a, b)
    hull = jnp.prod(_hull(a, b), 1)
    return _plain_iou(a, b) + (hull - either) / (hull + 1e-7)


def _plain_diou(a, b):
    apart = jnp.sum((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) ** 2, 1) / 4
    return _plain_iou(a, b) + apart / (jnp.sum(_hull(a, b) ** 2, 1) + 1e-7)


def _plain_ciou(a, b):
    width, height = (a[:, 2] - a[:, 0], b[:, 2] - b[:, 0]), (a[:, 3] - a[:, 1], b[:, 3] - b[:, 1])
    v = 4 / math.pi**2 * (jnp.arctan(width[1] / height[1]) - jnp.arctan(width[0] / height[0])) ** 2
    alpha = jax.lax.stop_gradient(v / (_plain_iou(a, b) + v + 1e-7))
    return _plain_diou(a, b) + alpha * v


def _counted(x, y):
    """True positives, predicted and actual pixels of each class."""
    p = jax.nn.softmax(x, 1)
    t = jnp.moveaxis(jax.nn.one_hot(y, x.shape[1], dtype=p.dtype), -1, 1)
    axes = (0, *range(2, x.ndim))
    return jnp.sum(p * t, axes), jnp.sum(p, axes), jnp.sum(t, axes)


def _region(formula):
    return lambda x, y: jnp.mean(1 - formula(*_counted(x, y)))


def _plain_tversky(tp, p, t):
    return tp / (tp + 0.5 * (p - tp) + 0.5 * (t - tp))


def _plain_focal_tversky(x, y):
    tp, p, t = _counted(x, y)
    return (1 - tp / (tp + 0.3 * (p - tp) + 0.7 * (t - tp))) ** (3 / 4)


def _plain_generalized_dice(x, y):
    tp, p, t = _counted(x, y)
    w = 1 / jnp.maximum(t, 1) ** 2
    return 1 - 2 * jnp.sum(w * tp) / jnp.sum(w * (p + t))


def _optax_dice(optax, x, y):
    """The batch as one sample, as ours takes it."""
    x = jnp.moveaxis(x, 1, -1).reshape(1, -1, x.shape[1])
    return optax.losses.dice_loss(x, _onehot(x, y.reshape(1, -1)), smooth=0.0).mean()


def _plain_ctc(log_p, y, frames, sizes):
    """optax has the plain form: a scan over an interleaved lattice, differentiated by JAX."""
    import optax

    behind = (jnp.arange(log_p.shape[0]) >= frames[:, None]).astype(log_p.dtype)
    padding = (jnp.arange(y.shape[1]) >= sizes[:, None]).astype(log_p.dtype)
    return optax.losses.ctc_loss(jnp.swapaxes(log_p, 0, 1), behind, y, padding)


def _torch_linear(torch, x, w, y):
    return torch.nn.functional.cross_entropy(x @ w.T, y)


def _torch_linear_chunks(torch, x, w, y):
    options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=False)
    return torch.nn.functional.linear_cross_entropy(x, w, y, options=options)


def _torch_ctc(logits):
    def loss(torch, x, y, frames, sizes):
        x = x.log_softmax(-1) if logits else x
        return torch.nn.functional.ctc_loss(x, y, frames, sizes, reduction="sum")

    return loss


def _torch_focal(torch, x, t):
    bce = torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    p = x.sigmoid()
    share = p * t + (1 - p) * (1 - t)
    return ((0.25 * t + 0.75 * (1 - t)) * (1 - share) ** 2 * bce).mean()


def _onehot(x, y):
    return jax.nn.one_hot(y, x.shape[-1], dtype=x.dtype)


TABLE = sizes((65536, 64), (2**21, 64), (6, 4))
CLASSES = sizes((8192, 1000), (65536, 1000), (6, 7))
WORDS = sizes((2048, 32000), (8192, 131072), (6, 11))
DISTRIBUTIONS = sizes((1024, 8000), (8192, 32000), (6, 7))
COLUMN = sizes((2**21, 1), (2**27, 1), (6, 1))
POINTS = sizes((2**20, 3), (2**25, 3), (8, 3))
FEW = sizes((2**18, 10), (2**22, 10), (6, 3))
PIXELS = sizes((8, 21, 128, 128), (32, 21, 512, 512), (2, 3, 4, 5))
ANCHORS = sizes((69856, 80), (69856 * 16, 80), (6, 4))
LABELS = sizes((65536, 80), (2**20, 80), (6, 9))
VECTORS = sizes((8192, 512), (2**17, 1024), (8, 5))
BATCH = sizes((1024, 256), (8192, 1024), (8, 5))
BOXES = sizes((2**18, 4), (2**23, 4), (6, 4))
SPEECH = sizes((200, 16, 32, 40), (1000, 32, 32, 200), (9, 2, 5, 3))


def _row(label, kind, plain, draw, size, peers=None, options=None, **more):
    """A loss with options, all that it returns reduced to one number."""
    loss = functools.partial(getattr(jaxloss, label.split()[0]), **(options or {}))
    return Workload(label, kind, loss, _mean(plain), draw, size, peers or {}, **more)


def _total(label, kind, plain, draw, size, peers=None, options=None, **more):
    """The same for a function whose result is an array."""
    loss = functools.partial(getattr(jaxloss, label.split()[0]), **(options or {}))
    return Workload(label, kind, _mean(loss), _mean(plain), draw, size, peers or {}, **more)


def _elementwise():
    def table(*args, **more):
        return _row(args[0], "tabular", args[1], args[2], TABLE, **more)

    yield table("l1_loss", lambda x, t: jnp.abs(x - t), _pair, peers=_peers("l1_loss", None, "mean_absolute_error"))
    yield table(
        "mse_loss",
        lambda x, t: (x - t) ** 2,
        _pair,
        peers=_peers("mse_loss", "squared_error", "mean_squared_error"),
    )
    yield table("l2_loss", lambda x, t: (x - t) ** 2 / 2, _pair, peers=_peers(optax="l2_loss"))
    yield table("smooth_l1_loss", _huber, _pair, peers=_peers("smooth_l1_loss"))
    yield table("huber_loss", _huber, _pair, peers=_peers("huber_loss", "huber_loss", "huber"))
    yield table(
        "log_cosh_loss", lambda x, t: jnp.log(jnp.cosh(x - t)), _pair, peers=_peers(None, "log_cosh", "log_cosh")
    )
    yield table(
        "quantile_loss",
        lambda x, t: jnp.maximum(0.9 * (t - x), -0.1 * (t - x)),
        _pair,
        options={"quantile": 0.9},
    )
    yield table(
        "expectile_loss",
        lambda x, t: jnp.where(t < x, 0.1, 0.9) * (t - x) ** 2,
        _pair,
        options={"expectile": 0.9},
    )
    yield table(
        "mean_absolute_percentage_error",
        lambda x, t: 100 * jnp.abs((t - x) / jnp.maximum(jnp.abs(t), 1e-7)),
        _positive,
        peers=_peers(keras="mean_absolute_percentage_error"),
    )
    yield table(
        "mean_squared_logarithmic_error",
        lambda x, t: (jnp.log1p(x) - jnp.log1p(t)) ** 2,
        _positive,
        peers=_peers(keras="mean_squared_logarithmic_error"),
    )
    yield table("poisson_nll_loss", lambda x, t: jnp.exp(x) - t * x, _counts, peers=_peers("poisson_nll_loss"))
    yield table("gaussian_nll_loss", _plain_gaussian, _three, peers=_peers("gaussian_nll_loss"))
    yield table(
        "hinge_loss", lambda x, t: jnp.maximum(1 - x * t, 0), _signed, peers=_peers(None, "hinge_loss", "hinge")
    )
    yield table(
        "squared_hinge_loss",
        lambda x, t: jnp.maximum(1 - x * t, 0) ** 2,
        _signed,
        peers=_peers(keras="squared_hinge"),
    )
    yield table("perceptron_loss", lambda x, t: jnp.maximum(-x * t, 0), _signed, peers=_peers(optax="perceptron_loss"))
    yield table(
        "binary_sparsemax_loss",
        lambda x, t: jnp.where(x < -1, 0, jnp.where(x > 1, x, (x + 1) ** 2 / 4)) - x * t,
        _binary,
        peers=_peers(optax="sparsemax_loss"),
    )
    yield table("soft_margin_loss", lambda x, t: jnp.log1p(jnp.exp(-x * t)), _signed, peers=_peers("soft_margin_loss"))
    yield table(
        "hinge_embedding_loss",
        lambda x, t: jnp.where(t == 1, x, jnp.maximum(1 - x, 0)),
        _signed,
        peers=_peers("hinge_embedding_loss"),
    )
    yield table(
        "margin_ranking_loss",
        lambda a, b, t: jnp.maximum(-t * (a - b), 0),
        _ranked,
        peers=_peers("margin_ranking_loss"),
        moving=2,
    )
    yield table(
        "binary_cross_entropy",
        lambda p, t: -(t * jnp.log(p) + (1 - t) * jnp.log1p(-p)),
        _probabilities,
        peers=_peers("binary_cross_entropy", None, "binary_crossentropy"),
    )
    yield table(
        "binary_cross_entropy_with_logits",
        _plain_bce,
        _binary,
        peers=_peers(
            "binary_cross_entropy_with_logits",
            "sigmoid_binary_cross_entropy",
            _keras("binary_crossentropy", from_logits=True),
        ),
    )
    yield _row(
        "sigmoid_focal_loss",
        "detection",
        _plain_focal,
        _binary,
        ANCHORS,
        _peers(
            _torch_focal,
            _optax("sigmoid_focal_loss", alpha=0.25),
            _keras("binary_focal_crossentropy", from_logits=True, apply_class_balancing=True),
        ),
    )


def _probability():
    yield _row(
        "kl_div",
        "language model",
        lambda x, q: jax.scipy.special.xlogy(q, q) - q * x,
        _log_probabilities,
        DISTRIBUTIONS,
        _peers("kl_div", lambda optax, x, q: optax.losses.kl_divergence(x, q).mean() / x.shape[-1]),
    )
    yield _row(
        "generalized_kl_div",
        "language model",
        lambda x, q: jnp.sum(jax.scipy.special.xlogy(q, q) - q * x - q + jnp.exp(x), 1),
        _log_probabilities,
        DISTRIBUTIONS,
        _peers(optax="generalized_kl_divergence"),
    )
    yield _row("js_div", "language model", _plain_js, _log_probabilities, DISTRIBUTIONS)
    two = {"temperature": 2.0}
    yield _row("distillation_loss", "language model", _plain_distillation, _taught, DISTRIBUTIONS, {}, two, reads=2)
    yield _row(
        "nll_loss",
        "image classification",
        lambda x, y: -_own(x, y),
        _log_probabilities_labelled,
        CLASSES,
        _peers("nll_loss"),
        reads=0,
    )
    for name, plain in (("log_softmax", jax.nn.log_softmax), ("logsumexp", jax.nn.logsumexp)):
        peer = {"torch": lambda torch, x, name=name: getattr(torch, name)(x, -1).mean()}
        yield _total(name, "language model", functools.partial(plain, axis=-1), _logits, WORDS, peer, reads=2)
    yield Workload(
        "smooth_labels",
        "image classification",
        lambda y, x: jnp.mean(jaxloss.smooth_labels(y, x.shape[1]) * x),
        lambda y, x: jnp.mean(jnp.where(jax.nn.one_hot(y, x.shape[1], dtype=bool), 0.9, 0.1 / (x.shape[1] - 1)) * x),
        lambda rng, shape: dict(reversed(_labelled(rng, shape).items())),
        CLASSES,
        moving=0,
    )


def _as_they_are_used():
    """What the rows above leave out: one number for each sample, masks, reductions by the caller, short vectors."""
    squares = _peers("mse_loss", "squared_error", "mean_squared_error")
    yield _row("mse_loss one column", "tabular", lambda x, t: (x - t) ** 2, _pair, COLUMN, squares)
    logits = _peers(
        "binary_cross_entropy_with_logits",
        "sigmoid_binary_cross_entropy",
        _keras("binary_crossentropy", from_logits=True),
    )
    yield _row("binary_cross_entropy_with_logits one column", "tabular", _plain_bce, _binary, COLUMN, logits)
    yield Workload(
        "gaussian_nll_loss both learned",
        "tabular",
        lambda x, v, t: jaxloss.gaussian_nll_loss(x, t, v),
        lambda x, v, t: jnp.mean(_plain_gaussian(x, t, v)),
        _mean_and_variance,
        TABLE,
        {"torch": lambda torch, x, v, t: torch.nn.functional.gaussian_nll_loss(x, t, v)},
        moving=2,
    )

    def by_caller(unreduced):
        return lambda *arrays: jnp.sum(arrays[-1] * unreduced(*arrays[:-1])) / jnp.sum(arrays[-1])

    def torch_by_caller(name):
        def masked(torch, x, t, mask):
            loss = getattr(torch.nn.functional, name)(x, t, reduction="none")
            return (mask * loss).sum() / mask.sum()

        return masked

    yield Workload(
        "binary_cross_entropy_with_logits unreduced",
        "tabular",
        by_caller(functools.partial(jaxloss.binary_cross_entropy_with_logits, reduction="none")),
        by_caller(_plain_bce),
        _masked(_binary),
        TABLE,
        {
            "torch": torch_by_caller("binary_cross_entropy_with_logits"),
            "optax": lambda optax, *arrays: by_caller(optax.losses.sigmoid_binary_cross_entropy)(*arrays),
        },
    )
    yield Workload(
        "huber_loss masked",
        "tabular",
        lambda x, t, mask: jaxloss.huber_loss(x, t, where=mask > 0),
        lambda x, t, mask: jnp.mean(_huber(x, t), where=mask > 0),
        _masked(_pair),
        TABLE,
        {"torch": torch_by_caller("huber_loss")},
    )
    yield _total(
        "pairwise_distance points",
        "metric learning",
        _plain_distance,
        _vectors("x1", "x2"),
        POINTS,
        _peers(lambda torch, *a: torch.nn.functional.pairwise_distance(*a).mean()),
        moving=2,
    )
    yield _row("softmax_focal_loss few classes", "tabular", _plain_softmax_focal, _labelled, FEW, reads=2)


def _cross_entropies():
    index = _peers(
        "cross_entropy",
        "softmax_cross_entropy_with_integer_labels",
        _keras("sparse_categorical_crossentropy", from_logits=True),
    )
    for label, kind, size in (
        ("language model", "language model", WORDS),
        # GPT-2's, 29 · 1733: it has no parts of a length that a loop likes.
        ("odd vocabulary", "language model", sizes((1024, 50257), (8192, 50257), (6, 2003))),
        ("image classification", "image classification", CLASSES),
        ("tabular", "tabular", sizes((65536, 10), (2**22, 10), (6, 3))),
    ):
        yield _row(f"cross_entropy {label}", kind, _plain_ce, _labelled, size, index, reads=2)
    yield _row(
        "cross_entropy dense prediction",
        "dense prediction",
        _plain_ce,
        _labelled,
        PIXELS,
        _peers(
            "cross_entropy",
            lambda optax, x, y: optax.losses.softmax_cross_entropy_with_integer_labels(x, y, axis=1).mean(),
        ),
        reads=2,
    )
    yield _row(
        "cross_entropy label_smoothing",
        "image classification",
        _plain_smooth_ce,
        _labelled,
        CLASSES,
        _peers(
            _torch("cross_entropy", label_smoothing=0.1),
            lambda optax, x, y: optax.losses.softmax_cross_entropy(x, optax.smooth_labels(_onehot(x, y), 0.1)).mean(),
        ),
        {"label_smoothing": 0.1},
        reads=2,
    )
    yield _row(
        "cross_entropy probabilities",
        "image classification",
        _plain_soft_ce,
        _soft,
        CLASSES,
        _peers("cross_entropy", "softmax_cross_entropy", _keras("categorical_crossentropy", from_logits=True)),
        reads=2,
    )
    yield _row(
        "linear_cross_entropy",
        "language model",
        lambda x, w, y: _plain_ce(x @ w.T, y),
        _features,
        sizes((2048, 512, 32000), (8192, 4096, 131072), (6, 4, 7)),
        {"torch": _torch_linear, "torch chunks": _torch_linear_chunks},
        moving=2,
        flops=lambda n, h, v: 2.0 * n * h * v,
    )


def _classes():
    def images(*args, **more):
        return _row(args[0], "image classification", args[1], args[2], CLASSES, **more)

    yield images("softmax_focal_loss", _plain_softmax_focal, _labelled, reads=2)
    yield images(
        "poly_cross_entropy",
        _plain_poly,
        _labelled,
        peers=_peers(optax=lambda optax, x, y: optax.losses.poly_loss_cross_entropy(x, _onehot(x, y)).mean()),
        reads=2,
    )
    yield images("generalized_cross_entropy", _plain_generalized_ce, _labelled, reads=2)
    yield images(
        "sparsemax_loss",
        _plain_sparsemax,
        _labelled,
        peers=_peers(optax="multiclass_sparsemax_loss"),
        reads=2,
    )
    yield images("multi_margin_loss", _plain_multi_margin, _labelled, peers=_peers("multi_margin_loss"))
    yield images(
        "multiclass_hinge_loss",
        lambda x, y: jnp.maximum(1 + _others(x, y) - _own(x, y), 0),
        _labelled,
        peers=_peers(optax="multiclass_hinge_loss"),
        reads=2,
    )
    yield images(
        "multiclass_perceptron_loss",
        lambda x, y: jnp.max(x, 1) - _own(x, y),
        _labelled,
        peers=_peers(optax="multiclass_perceptron_loss"),
        reads=2,
    )
    yield _row(
        "multilabel_margin_loss",
        "detection",
        _plain_multilabel_margin,
        _listed,
        LABELS,
        _peers(lambda torch, x, y: torch.nn.functional.multilabel_margin_loss(x, y.long())),
    )
    yield _row(
        "multilabel_soft_margin_loss", "detection", _plain_bce, _binary, LABELS, _peers("multilabel_soft_margin_loss")
    )


def _vectors_and_batches():
    def metric(*args, **more):
        return args[0], "metric learning", args[1], args[2], args[3]

    yield _total(
        *metric("cosine_similarity", _plain_cosine, _vectors("x1", "x2"), VECTORS),
        _peers(
            lambda torch, *a: torch.nn.functional.cosine_similarity(*a).mean(),
            _optax("cosine_similarity"),
            lambda keras, x, t: -keras.losses.cosine_similarity(t, x).mean(),
        ),
        moving=2,
    )
    yield _total(
        *metric("pairwise_distance", _plain_distance, _vectors("x1", "x2"), VECTORS),
        _peers(lambda torch, *a: torch.nn.functional.pairwise_distance(*a).mean()),
        moving=2,
    )
    yield _row(
        *metric("cosine_embedding_loss", _plain_cosine_embedding, _alike, VECTORS),
        _peers("cosine_embedding_loss"),
        moving=2,
    )
    three = _vectors("anchor", "positive", "negative")
    for name in ("triplet_margin_loss", "triplet_margin_with_distance_loss"):
        optax = _optax(name) if name == "triplet_margin_loss" else None
        yield _row(*metric(name, _plain_triplet, three, VECTORS), _peers(name, optax), moving=3)

    def matmul(n, d):
        return 2.0 * n * n * d

    two = _vectors("image_features", "text_features")
    yield _row(*metric("info_nce_loss", _plain_info_nce, _vectors("query", "positive"), BATCH), moving=2, flops=matmul)
    yield _row(*metric("clip_loss", _plain_clip, two, BATCH), {}, {"logit_scale": 1 / 0.07}, moving=2, flops=matmul)
    yield _row(
        *metric("siglip_loss", _plain_siglip, two, BATCH),
        {},
        {"logit_scale": 10.0, "logit_bias": -10.0},
        moving=2,
        flops=matmul,
    )
    yield _row(*metric("supervised_contrastive_loss", _plain_supcon, _grouped, BATCH), flops=matmul)
    yield _row(
        *metric("nt_xent_loss", _plain_nt_xent, _grouped, BATCH),
        _peers(optax=_optax("ntxent", temperature=0.1)),
        flops=matmul,
    )
    yield _row(
        *metric("circle_loss", _plain_circle, _grouped, BATCH),
        _peers(keras=lambda keras, x, y: keras.losses.circle(y, _norm(x)).mean()),
        flops=matmul,
    )


def _detection_and_dense():
    for name, plain in (
        ("box_iou_loss", _plain_iou),
        ("generalized_box_iou_loss", _plain_giou),
        ("distance_box_iou_loss", _plain_diou),
        ("complete_box_iou_loss", _plain_ciou),
    ):
        yield _row(name, "detection", plain, _boxes, BOXES)
    options = {"mode": "multiclass", "smooth": 0.0}
    for name, plain in (
        ("dice_loss", _region(_plain_tversky)),
        ("iou_loss", _region(lambda tp, p, t: tp / (p + t - tp))),
        ("tversky_loss", _region(_plain_tversky)),
        ("focal_tversky_loss", _plain_focal_tversky),
        ("generalized_dice_loss", _plain_generalized_dice),
    ):
        mode = {"smooth": 0.0} if name == "generalized_dice_loss" else options
        peer = _peers(optax=_optax_dice if name == "dice_loss" else None)
        yield _row(name, "dense prediction", plain, _labelled, PIXELS, peer, mode, reads=2)


def _speech():
    for name, scores in (("ctc_loss", "log_probs"), ("ctc_loss_with_logits", "logits")):
        yield Workload(
            name,
            "speech",
            functools.partial(getattr(jaxloss, name), reduction="sum"),
            lambda *arrays: jnp.sum(_plain_ctc(*arrays)),
            _sequences(scores),
            SPEECH,
            _peers(_torch_ctc(scores == "logits")),
            reads=2,
        )
    for name in ("ctc_posteriors", "ctc_alignment"):
        yield Workload(
            name, "speech", functools.partial(_sum_of, name), None, _sequences("log_probs"), SPEECH, moving=0
        )


def _sum_of(name, *arrays):
    """One number that needs all of the result."""
    return sum(jnp.sum(a) for a in jax.tree.leaves(getattr(jaxloss, name)(*arrays)))


WORKLOADS = [
    *_elementwise(),
    *_as_they_are_used(),
    *_probability(),
    *_cross_entropies(),
    *_classes(),
    *_vectors_and_batches(),
    *_detection_and_dense(),
    *_speech(),
]
