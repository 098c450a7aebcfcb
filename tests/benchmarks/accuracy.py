"""What rounding and edges do to each library, for docs/numerics.md: `python tests/benchmarks/accuracy.py`.

The true value is computed in float64, where that is exact, or follows from the formula. It needs torch and optax.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss

PAGE = Path(__file__).parents[2] / "docs" / "measured" / "accuracy.md"
INF, NAN = math.inf, math.nan


class Edge(NamedTuple):
    """A loss at an edge: the value is a number or a list, `true` too. The texts are Python for each library."""

    case: str
    true: Any
    ours: str
    torch: str = ""
    optax: str = ""


def grad(loss: Callable[..., Any], x: Any, dtype: Any = jnp.float32) -> jax.Array:
    """The gradient of the sum."""
    return jax.grad(lambda x: jnp.sum(loss(x)))(jnp.asarray(x, dtype))


def torch_grad(loss: Callable[..., Any], x: Any, dtype: Any = None) -> Any:
    """The same in torch."""
    import torch

    leaf = torch.tensor(x, dtype=dtype, requires_grad=True)
    loss(leaf).sum().backward()
    return leaf.grad


BIG = [1e6, 1e6 + 1, 1e6 + 0.25]
NEAR = "[200.0, 200.0, 190.0]"
EDGES = [
    Edge(
        "cross entropy of bfloat16 logits 200, 200, 190",
        math.log(2 + math.exp(-10)),
        f"ours.cross_entropy(bf({NEAR}), 0)",
        f"F.cross_entropy(tbf({NEAR}), t(0))",
        f"o.softmax_cross_entropy_with_integer_labels(bf({NEAR}), 0)",
    ),
    Edge(
        "cross entropy of float32 logits 10⁶, 10⁶ + 1, 10⁶ + ¼",
        math.log(1 + math.e + math.exp(0.25)),
        "ours.cross_entropy(f(BIG), 0)",
        "F.cross_entropy(t(BIG), t(0))",
        "o.softmax_cross_entropy_with_integer_labels(f(BIG), 0)",
    ),
    Edge(
        "its slope at logits 20, 0, the first right",
        -1 / (1 + math.exp(20)),
        "grad(lambda x: ours.cross_entropy(x, 0), [20.0, 0.0])[0]",
        "torch_grad(lambda x: F.cross_entropy(x, t(0)), [20.0, 0.0])[0]",
        "grad(lambda x: o.softmax_cross_entropy_with_integer_labels(x, 0), [20.0, 0.0])[0]",
    ),
    Edge(
        "the same in bfloat16, at 11",
        -1 / (1 + math.exp(11)),
        "grad(lambda x: ours.cross_entropy(x, 0), [11.0, 0.0], jnp.bfloat16)[0]",
        "torch_grad(lambda x: F.cross_entropy(x, t(0)), [11.0, 0.0], torch.bfloat16)[0]",
        "grad(lambda x: o.softmax_cross_entropy_with_integer_labels(x, 0), [11.0, 0.0], jnp.bfloat16)[0]",
    ),
    Edge(
        "gradient in an ignored row that holds NaN",
        [0, 0],
        "grad(lambda x: ours.cross_entropy(x, jnp.array([0, -100])), [[1.0, 2.0], [jnp.nan, 0.0]])[1]",
        "torch_grad(lambda x: F.cross_entropy(x, t([0, -100])), [[1.0, 2.0], [float('nan'), 0.0]])[1]",
    ),
    Edge(
        "class probabilities ½, ½, 0 at logits 1, 1, -∞",
        math.log(2),
        "ours.cross_entropy(f([1.0, 1.0, -jnp.inf]), f([0.5, 0.5, 0.0]))",
        "F.cross_entropy(t([1.0, 1.0, -INF]), t([0.5, 0.5, 0.0]))",
        "o.softmax_cross_entropy(f([1.0, 1.0, -jnp.inf]), f([0.5, 0.5, 0.0]))",
    ),
    Edge(
        "class -1 of three at logits 1, 2, 3",
        NAN,
        "ours.cross_entropy(f([1.0, 2.0, 3.0]), -1)",
        "",
        "o.softmax_cross_entropy_with_integer_labels(f([1.0, 2.0, 3.0]), -1)",
    ),
    Edge(
        "binary cross entropy at logit ∞, target 1",
        0,
        "ours.binary_cross_entropy_with_logits(jnp.inf, 1.0)",
        "F.binary_cross_entropy_with_logits(t(INF), t(1.0))",
        "o.sigmoid_binary_cross_entropy(f(jnp.inf), f(1.0))",
    ),
    Edge(
        "focal loss, γ = ½: slope at logit 100, target 1",
        0,
        "grad(lambda x: ours.sigmoid_focal_loss(x, 1.0, gamma=0.5), 100.0)",
        "",
        "grad(lambda x: o.sigmoid_focal_loss(x, f(1.0), gamma=0.5), 100.0)",
    ),
    Edge(
        "KL divergence, target 0 at log-probability -∞",
        0,
        "ours.kl_div(f([-jnp.inf]), f([0.0]))",
        "F.kl_div(t([-INF]), t([0.0]), reduction='sum')",
        "o.kl_divergence(f([-jnp.inf]), f([0.0]))",
    ),
    Edge(
        "soft margin at a score of -1000, label 1",
        1000,
        "ours.soft_margin_loss(-1000.0, 1.0)",
        "F.soft_margin_loss(t([-1000.0]), t([1.0]))",
    ),
    Edge(
        "log-cosh of an error of 0.001",
        math.log(math.cosh(1e-3)),
        "ours.log_cosh_loss(1e-3, 0.0)",
        "",
        "o.log_cosh(f(1e-3), f(0.0))",
    ),
    Edge(
        "slope of the absolute error at 0",
        0,
        "grad(lambda x: ours.l1_loss(x, 0.0), 0.0)",
        "torch_grad(lambda x: F.l1_loss(x, t(0.0)), 0.0)",
    ),
    Edge(
        "cosine of (1, 1)·10²⁰ and (1, 0)·10²⁰",
        math.sqrt(0.5),
        "ours.cosine_similarity(f([1e20, 1e20]), f([1e20, 0.0]), axis=-1)",
        "F.cosine_similarity(t([1e20, 1e20]), t([1e20, 0.0]), dim=-1)",
        "o.cosine_similarity(f([1e20, 1e20]), f([1e20, 0.0]))",
    ),
    Edge(
        "its gradient between a vector of zeros and (1, 0), finite?",
        True,
        "jnp.isfinite(grad(lambda x: ours.cosine_similarity(x, f([1.0, 0.0]), axis=-1), [0.0, 0.0])).all()",
        "torch_grad(lambda x: F.cosine_similarity(x, t([1.0, 0.0]), dim=-1), [0.0, 0.0]).isfinite().all()",
        "jnp.isfinite(grad(lambda x: o.cosine_similarity(x, f([1.0, 0.0])), [0.0, 0.0])).all()",
    ),
    Edge(
        "distance of (3, 4)·10²⁰ from 0",
        5e20,
        "ours.pairwise_distance(f([3e20, 4e20]), f([0.0, 0.0]))",
        "F.pairwise_distance(t([3e20, 4e20]), t([0.0, 0.0]))",
    ),
    Edge(
        "triplet, p = 1, margin 1: anchor 0, positive (0.3, 0.9), negative (1, 0)",
        1.2,
        "ours.triplet_margin_loss(f([0, 0]), f([0.3, 0.9]), f([1, 0]), p=1)",
        "F.triplet_margin_loss(t([0.0, 0.0]), t([0.3, 0.9]), t([1.0, 0.0]), p=1.0)",
        "o.triplet_margin_loss(f([0, 0]), f([0.3, 0.9]), f([1, 0]), norm_degree=1)",
    ),
    Edge(
        "CTC of 1, 1, 1 in four frames, which cannot be",
        INF,
        "ours.ctc_loss_with_logits(jnp.zeros((4, 3)), jnp.array([1, 1, 1]), jnp.array(4), jnp.array(3))",
        "F.ctc_loss(torch.zeros(4, 3).log_softmax(-1), t([1, 1, 1]), t(4), t(3))",
        "o.ctc_loss(jnp.zeros((1, 4, 3)), jnp.zeros((1, 4)), jnp.array([[1, 1, 1]]), jnp.zeros((1, 3)))[0]",
    ),
    Edge(
        "its gradient",
        0,
        "abs(grad(lambda x: ours.ctc_loss_with_logits(x, jnp.array([1, 1, 1]), jnp.array(4), jnp.array(3)),"
        " np.zeros((4, 3)))).max()",
        "abs(torch_grad(lambda x: F.ctc_loss(x.log_softmax(-1), t([1, 1, 1]), t(4), t(3)), [[0.0] * 3] * 4)).max()",
        "abs(grad(lambda x: o.ctc_loss(x, jnp.zeros((1, 4)), jnp.array([[1, 1, 1]]), jnp.zeros((1, 3))),"
        " np.zeros((1, 4, 3)))).max()",
    ),
]


def names(peer: bool = False) -> dict[str, Any]:
    """What the texts of `EDGES` speak of."""
    found = {"ours": jaxloss, "o": optax.losses, "grad": grad, "jnp": jnp, "np": np, "BIG": BIG, "INF": INF}
    found |= {"f": lambda a: jnp.asarray(a, jnp.float32), "bf": lambda a: jnp.asarray(a, jnp.bfloat16)}
    if peer:
        import torch

        found |= {"torch": torch, "F": torch.nn.functional, "t": torch.tensor, "torch_grad": torch_grad}
        found |= {"tbf": lambda a: torch.tensor(a, dtype=torch.bfloat16)}
    return found


def shown(value: Any) -> str:
    """As it stands in the table."""
    array = value.float().numpy() if hasattr(value, "detach") else np.asarray(value)
    if array.dtype == bool or "bool" in str(getattr(value, "dtype", "")):
        return "yes" if array else "no"
    return ", ".join(_number(float(x) + 0.0) for x in array.astype(np.float64).ravel())


def _number(x: float) -> str:
    """Five digits, a true minus, and powers of ten as one writes them."""
    digits, _, power = f"{x:.5g}".partition("e")
    text = digits.replace("nan", "NaN").replace("inf", "∞").replace("-", "−")
    if not power:
        return text
    return f"{text}·10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}".removeprefix("1·")


def edges() -> str:
    """The table of values."""
    lines = ["| case | true | jaxloss | torch | optax |", "| --- | --- | --- | --- | --- |"]
    known = names(peer=True)
    for edge in EDGES:
        cells = [shown(eval(text, known)) if text else "" for text in (edge.ours, edge.torch, edge.optax)]
        lines.append(f"| {edge.case} | {' | '.join([shown(edge.true), *cells])} |".replace("|  ", "| "))
    return "\n".join(lines)


def largest(got: Any, true: np.ndarray) -> str:
    """The largest error, against the largest number."""
    error = np.abs(np.asarray(got, np.float64) - true).max() / np.abs(true).max()
    return _number(float(f"{error:.1e}"))


def pair(case: str, peers: list[tuple[Any, Any]], true: tuple[Any, Any]) -> list[str]:
    """The rows of a loss and of its gradient."""
    named = enumerate(("loss", "gradient"))
    return [f"| {case}: {name} | {' | '.join(largest(p[i], true[i]) for p in peers)} |" for i, name in named]


def of_cross_entropy(dtype: str) -> list[str]:
    """Errors of the mean and of its gradient, over 2,048 rows of 5,000 confident classes."""
    import torch

    rng = np.random.default_rng(0)
    labels = rng.integers(5000, size=2048)
    logits = rng.normal(size=(2048, 5000)) * 4
    logits[np.arange(2048), labels] += 12
    x = jnp.asarray(logits, dtype)
    exact = np.asarray(x, np.float64)
    top = exact - exact.max(1, keepdims=True)
    p = np.exp(top) / np.exp(top).sum(1, keepdims=True)
    loss = (np.log(np.exp(top).sum(1)) - top[np.arange(2048), labels]).mean()
    p[np.arange(2048), labels] = -(p.sum(1) - p[np.arange(2048), labels])
    true = loss, p / 2048

    def theirs(x: jax.Array) -> jax.Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    leaf = torch.tensor(exact, dtype=getattr(torch, dtype), requires_grad=True)
    value = torch.nn.functional.cross_entropy(leaf, torch.tensor(labels))
    value.backward()
    ours = jax.jit(jax.value_and_grad(lambda x: jaxloss.cross_entropy(x, labels)))(x)
    peers = [ours, (value.item(), leaf.grad.double().numpy()), jax.jit(jax.value_and_grad(theirs))(x)]
    return pair(f"cross entropy, {dtype}", peers, true)


def of_linear() -> list[str]:
    """Errors of a last layer in bfloat16, and of the gradient of its 4,000 × 256 weights."""
    import torch

    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((1024, 256), (4000, 256)))
    w = w / 4
    labels = rng.integers(4000, size=1024)
    exact = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (x, w)]
    loss = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, torch.tensor(labels))
    loss.backward()
    true = loss.item(), exact[1].grad.numpy()

    def theirs(w: jax.Array) -> jax.Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(x @ w.T, labels).mean()

    leaf = exact[1].detach().bfloat16().requires_grad_()
    value = torch.nn.functional.linear_cross_entropy(exact[0].detach().bfloat16(), leaf, torch.tensor(labels))
    value.backward()
    ours = jax.jit(jax.value_and_grad(lambda w: jaxloss.linear_cross_entropy(x, w, labels)))(w)
    peers = [ours, (value.item(), leaf.grad.double().numpy()), jax.jit(jax.value_and_grad(theirs))(w)]
    return pair("last layer and loss, bfloat16", peers, true)


def of_ctc(frames: int, classes: int, labels: int, scale: float) -> str:
    """Errors of the float32 gradient for logits."""
    import torch

    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(frames, 1, classes)) * scale).astype(np.float32)
    targets = rng.integers(1, classes, size=(1, labels))
    lengths = np.array([frames]), np.array([labels])

    def torchs(dtype: torch.dtype) -> np.ndarray:
        leaf = torch.tensor(logits, dtype=dtype, requires_grad=True)
        given = (torch.tensor(a) for a in (targets, *lengths))
        torch.nn.functional.ctc_loss(leaf.log_softmax(-1), *given, reduction="sum").backward()
        return leaf.grad.double().numpy()

    def ours(x: jax.Array) -> jax.Array:
        return jaxloss.ctc_loss_with_logits(x, targets, *lengths, reduction="sum")

    def theirs(x: jax.Array) -> jax.Array:
        none = jnp.zeros((1, frames)), targets, jnp.zeros((1, labels))
        return optax.losses.ctc_loss(jnp.moveaxis(x, 0, 1), *none).sum()

    true = torchs(torch.float64)
    errors = [jax.jit(jax.grad(ours))(logits), torchs(torch.float32), jax.jit(jax.grad(theirs))(logits)]
    case = f"CTC, {frames} frames, {classes} classes, {labels} labels, logits of size {scale:g}: gradient"
    return f"| {case} | {' | '.join(largest(e, true) for e in errors)} |"


def errors() -> str:
    """The table of rounding errors."""
    lines = ["| case | jaxloss | torch | optax |", "| --- | --- | --- | --- |"]
    lines += of_cross_entropy("float32") + of_cross_entropy("bfloat16") + of_linear()
    lines += [of_ctc(1000, 32, 200, 1), of_ctc(1000, 32, 200, 5), of_ctc(2000, 128, 250, 1)]
    return "\n".join(lines)


def main() -> None:
    """Write both tables."""
    import torch

    versions = f"jax {jax.__version__}, torch {torch.__version__.split('+')[0]}, optax {optax.__version__}, on a CPU"
    PAGE.parent.mkdir(exist_ok=True)
    text = (
        f"With {versions}.\n\n## Edges\n\n{ABOUT_EDGES}\n\n{edges()}\n\n## Rounding\n\n{ABOUT_ERRORS}\n\n{errors()}\n"
    )
    PAGE.write_text(text)
    print(text)


ABOUT_EDGES = """In float32 unless it says otherwise. An empty cell: the library has no such function, or raises."""
ABOUT_ERRORS = """The largest error of each result, against its largest entry; the true values are computed in float64
from the rounded inputs, those of CTC by torch. The last layer is (1024, 256) × (256, 4000), its gradient that of the
weights: torch's own `linear_cross_entropy`, and `x @ w.T` before optax's loss."""

if __name__ == "__main__":
    main()
