"""A picture of each loss and of its slope along one line, drawn from the package whenever the site is built.

`python docs/pictures.py` draws the one that the README shows, which is committed: docs/_static/losses.svg.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxloss

# Compiling is most of what the pictures cost: without LLVM's optimiser it is a third.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
Curve = Callable[[jax.Array], Any]
# They stand on white and on black: middle tones, nothing behind them.
LOSS, SLOPE, FRAME = "#2f8fc4", "#dd7a1f", "#808890"
COLOURED = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")
STYLE = {"svg.hashsalt": "jaxloss", "svg.fonttype": "path", "font.size": 9} | dict.fromkeys(COLOURED, FRAME)


class Slice(NamedTuple):
    """What is moved, from where to where, and the loss as a function of it."""

    over: str
    span: tuple[float, float]
    curve: Curve

    @property
    def caption(self) -> str:
        """Below the picture."""
        return f"Loss (blue) and slope (orange, dashed) over: {self.over}."


def _error(name: str, **options: Any) -> Slice:
    more = "".join(f", {key} {value}" for key, value in options.items())
    loss = getattr(jaxloss, name)
    return Slice(f"prediction, target 0{more}", (-3.0, 3.0), lambda x: loss(x, 0.0, **options))


def _score(name: str) -> Slice:
    loss = getattr(jaxloss, name)
    return Slice("score, label 1", (-3.0, 3.0), lambda x: loss(x, 1.0))


def _logit(name: str) -> Slice:
    loss = getattr(jaxloss, name)
    return Slice("logit, target 1", (-5.0, 5.0), lambda x: loss(x, 1.0))


def _two_classes(name: str, what: str = "logit") -> Slice:
    loss = getattr(jaxloss, name)
    over = f"{what} of the right class, that of one other class is 0"
    return Slice(over, (-4.0, 4.0), lambda x: loss(jnp.stack([x, 0 * x]), 0))


def _pixels(name: str, shape: tuple[int, ...] = (5,), **options: Any) -> Slice:
    loss, truth = getattr(jaxloss, name), jnp.array([1.0, 1.0, 0.0, 0.0, 0.0]).reshape(shape)
    over = "logit x of two pixels of the region, three others at -x"
    return Slice(over, (-5.0, 5.0), lambda x: loss(x * (2 * truth - 1), truth, **options))


def _shift(name: str) -> Slice:
    loss, square = getattr(jaxloss, name), jnp.array([0.0, 0.0, 1.0, 1.0])
    side = jnp.array([1.0, 0.0, 1.0, 0.0])
    return Slice("shift of a unit square against another", (-2.5, 2.5), lambda x: loss(square + x * side, square))


def _turned(degrees: jax.Array) -> jax.Array:
    angle = jnp.deg2rad(degrees)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def _two_views(name: str) -> Slice:
    """Two pairs at right angles; each one's second view is turned."""
    loss = getattr(jaxloss, name)

    def curve(x: jax.Array) -> Any:
        return loss(jnp.eye(2), jnp.stack([_turned(x), _turned(x + 90)]))

    return Slice("degrees between the views of each of two pairs", (-180.0, 180.0), curve)


def _labelled(name: str) -> Slice:
    loss, fixed = getattr(jaxloss, name), jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])

    def curve(x: jax.Array) -> Any:
        return loss(jnp.concatenate([fixed, _turned(x)[None]]), jnp.array([0, 1, 1, 0]))

    return Slice("degrees between two of one label; two of another at 90", (-180.0, 180.0), curve)


def _cosine(x: jax.Array) -> Any:
    return jaxloss.cosine_embedding_loss(jnp.array([1.0, 0.0]), _turned(x), jnp.array(1))


def _triplet(name: str) -> Slice:
    loss = getattr(jaxloss, name)

    def curve(x: jax.Array) -> Any:
        return loss(jnp.zeros(2), jnp.array([0.5, 0.0]), jnp.stack([x, 0 * x]))

    return Slice("place of the negative on a line, anchor at 0, positive at 0.5", (-3.0, 3.0), curve)


def _frames(p: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.stack([jnp.log1p(-p), jnp.log(p)]), (3, 2))


def _widths(x: jax.Array) -> Any:
    square = jnp.array([0.0, 0.0, 1.0, 1.0])
    return jaxloss.complete_box_iou_loss(jnp.stack([0 * x, 0 * x, x, 1 + 0 * x]), square)


def _taught(x: jax.Array) -> Any:
    return jaxloss.distillation_loss(jnp.stack([x, 0 * x]), jnp.array([1.0, 0.0]))


def _shares(x: jax.Array) -> Any:
    return jaxloss.js_div(jax.nn.log_softmax(jnp.stack([x, 0 * x])), jnp.array([0.7, 0.3]))


def _layer(x: jax.Array) -> Any:
    return jaxloss.linear_cross_entropy(x[None], jnp.array([[1.0], [0.0]]), jnp.array(0))


# One entry for each loss: what is moved, from where to where, and the loss as a function of it.
SLICES: dict[str, Slice] = {
    **{name: _error(name) for name in ("l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss")},
    **{name: _error(name) for name in ("l2_loss", "log_cosh_loss")},
    "quantile_loss": _error("quantile_loss", quantile=0.8),
    "expectile_loss": _error("expectile_loss", expectile=0.8),
    "gaussian_nll_loss": Slice(
        "prediction, target 0, variance 0.5", (-3.0, 3.0), lambda x: jaxloss.gaussian_nll_loss(x, 0.0, 0.5)
    ),
    "poisson_nll_loss": Slice(
        "logarithm of the rate, 2 counted", (-3.0, 2.5), lambda x: jaxloss.poisson_nll_loss(x, 2.0)
    ),
    "mean_absolute_percentage_error": Slice(
        "prediction, target 1", (-1.0, 3.0), lambda x: jaxloss.mean_absolute_percentage_error(x, 1.0)
    ),
    "mean_squared_logarithmic_error": Slice(
        "prediction, target 1", (-0.4, 6.0), lambda x: jaxloss.mean_squared_logarithmic_error(x, 1.0)
    ),
    "binary_cross_entropy": Slice(
        "probability, target 1", (0.12, 0.999), lambda x: jaxloss.binary_cross_entropy(x, 1.0)
    ),
    **{name: _logit(name) for name in ("binary_cross_entropy_with_logits", "sigmoid_focal_loss")},
    "binary_sparsemax_loss": _logit("binary_sparsemax_loss"),
    **{name: _two_classes(name) for name in ("cross_entropy", "softmax_focal_loss", "poly_cross_entropy")},
    **{name: _two_classes(name) for name in ("generalized_cross_entropy", "sparsemax_loss")},
    **{name: _two_classes(name, "score") for name in ("multi_margin_loss", "multiclass_hinge_loss")},
    "multiclass_perceptron_loss": _two_classes("multiclass_perceptron_loss", "score"),
    "nll_loss": Slice(
        "log-probability of the right class", (-5.0, 0.0), lambda x: jaxloss.nll_loss(jnp.stack([x, 0 * x]), 0)
    ),
    "kl_div": Slice("log-probability, target 0.5", (-5.0, 0.0), lambda x: jaxloss.kl_div(x, 0.5)),
    "generalized_kl_div": Slice(
        "logarithm of a measure, target 1", (-3.0, 2.0), lambda x: jaxloss.generalized_kl_div(x[None], jnp.ones(1))
    ),
    "js_div": Slice("logit of one of two classes, whose target is 0.7", (-5.0, 5.0), _shares),
    "distillation_loss": Slice("difference of the student's two logits, the teacher's is 1", (-4.0, 6.0), _taught),
    "linear_cross_entropy": Slice("a feature, which is the logit of the right class of two", (-4.0, 4.0), _layer),
    **{name: _score(name) for name in ("soft_margin_loss", "hinge_loss", "squared_hinge_loss", "perceptron_loss")},
    "hinge_embedding_loss": Slice(
        "distance, label -1", (0.0, 3.0), lambda x: jaxloss.hinge_embedding_loss(x, jnp.array(-1))
    ),
    "margin_ranking_loss": Slice(
        "first score, second 0, label 1, margin 1",
        (-3.0, 3.0),
        lambda x: jaxloss.margin_ranking_loss(x, 0 * x, jnp.array(1), margin=1.0),
    ),
    "multilabel_margin_loss": Slice(
        "score of the only label of two classes",
        (-3.0, 3.0),
        lambda x: jaxloss.multilabel_margin_loss(jnp.stack([x, 0 * x]), jnp.array([0, -1])),
    ),
    "multilabel_soft_margin_loss": Slice(
        "logit of a label, target 1", (-5.0, 5.0), lambda x: jaxloss.multilabel_soft_margin_loss(x[None], jnp.ones(1))
    ),
    "cosine_embedding_loss": Slice("degrees between the vectors, label 1", (-180.0, 180.0), _cosine),
    **{name: _triplet(name) for name in ("triplet_margin_loss", "triplet_margin_with_distance_loss")},
    **{name: _two_views(name) for name in ("info_nce_loss", "clip_loss", "siglip_loss")},
    **{name: _labelled(name) for name in ("nt_xent_loss", "supervised_contrastive_loss", "circle_loss")},
    **{name: _pixels(name) for name in ("dice_loss", "iou_loss", "focal_tversky_loss")},
    "tversky_loss": _pixels("tversky_loss", alpha=0.3, beta=0.7),
    "generalized_dice_loss": _pixels("generalized_dice_loss", (5, 1), mode="multilabel"),
    **{name: _shift(name) for name in ("box_iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss")},
    "complete_box_iou_loss": Slice("width of a box of height 1, against a unit square", (0.2, 4.0), _widths),
    "ctc_loss": Slice(
        "probability of the only label in each of 3 frames, otherwise blank",
        (0.1, 0.99),
        lambda x: jaxloss.ctc_loss(_frames(x), jnp.array([1]), jnp.array(3), jnp.array(1)),
    ),
    "ctc_loss_with_logits": Slice(
        "logit of the only label in each of 3 frames, that of blank is 0",
        (-5.0, 5.0),
        lambda x: jaxloss.ctc_loss_with_logits(
            jnp.broadcast_to(jnp.stack([0 * x, x]), (3, 2)), jnp.array([1]), jnp.array(3), jnp.array(1)
        ),
    ),
}


def points(name: str, count: int = 241) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a loss is looked at, what it is there, and its slope, per radian where the line is an angle."""
    _, (low, high), curve = SLICES[name]
    x = jnp.linspace(low, high, count)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(curve)), compiler_options=QUICK)(x)
    if not np.isfinite(np.stack([value, slope])).all():
        raise ValueError(f"{name} is not finite over {SLICES[name].over}")
    turn = 180 / np.pi if high == 180 else 1.0
    return np.asarray(x), np.asarray(value), np.asarray(slope) * turn


def write(folder: Path) -> None:
    """One SVG for each loss."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name in SLICES:
            _draw(name).savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})


def _draw(name: str) -> Figure:
    figure = Figure(figsize=(3.6, 2.3), layout="constrained")
    _curves(figure.subplots(), name)
    return figure


def _curves(axes: Axes, name: str) -> None:
    x, value, slope = points(name)
    axes.axhline(0, color=FRAME, linewidth=0.6)
    axes.plot(x, slope, color=SLOPE, linestyle=(0, (4, 2)), linewidth=1.6)
    axes.plot(x, value, color=LOSS, linewidth=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    if x[-1] == 180:
        axes.set_xticks([-180, -90, 0, 90, 180])


SHOWN = ("cross_entropy", "huber_loss", "sigmoid_focal_loss", "dice_loss", "ctc_loss_with_logits", "info_nce_loss")


def _overview() -> Figure:
    """Six losses in two rows."""
    figure = Figure(figsize=(7.6, 3.9), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, SHOWN, strict=True):
        _curves(axes, name)
        axes.set_title(name, fontsize=9, family="monospace")
        axes.set_xlabel(SLICES[name].over.split(",")[0], fontsize=6.5)
    return figure


if __name__ == "__main__":
    with mpl.rc_context(STYLE):
        path = Path(__file__).parent / "_static" / "losses.svg"
        _overview().savefig(path, transparent=True, metadata={"Date": None})
