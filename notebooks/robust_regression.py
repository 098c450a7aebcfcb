# %% [markdown]
# # What a few households do to a line: squared, absolute, Huber and quantile loss
#
# In 1857 Ernst Engel published what 235 Belgian working-class households earned and what they spent on food; the table
# comes with statsmodels. Most lie near a line, but spread out as income grows, and a few lie far away: the richest
# earned three quarters more than the next. This example fits lines to it with `jaxloss.mse_loss`, `l1_loss`,
# `huber_loss` and `quantile_loss`, and shows how far that one household moves each of them, and what share of held-out
# households lies between two quantiles.
#
#     python notebooks/robust_regression.py
#
# It takes about a quarter of a minute on two CPU cores, and writes TensorBoard scalars and two pictures to
# `notebooks/runs/robust_regression`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `robust_regression.ipynb` is this script, executed. To make it again:
# `python notebooks/render.py robust_regression`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Fit lines to Engel's table of food expenses with squared, absolute, Huber and quantile loss of `jaxloss`."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from statsmodels.datasets import engel
from statsmodels.regression.quantile_regression import QuantReg
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
DELTA = 0.05  # thousand francs beyond which the Huber loss is no longer squared
LEARNING_RATE = 0.05
STEPS = 4000
PERIOD = 200  # steps of one compiled loop
SPLITS = 200
HELD_OUT = 75
SPLIT_SEED = 0

# %% [markdown]
# ## The table
#
# Both columns are in thousands of francs a year. That keeps parameters and gradients near 1, which suits an optimiser;
# `DELTA` of the Huber loss has the target's unit.


# %%
class Table(NamedTuple):
    """Income (N,) and food expense (N,) of each household, in thousands of francs."""

    income: jax.Array
    food: jax.Array


def load_data() -> Table:
    """All 235 households."""
    columns = engel.load().data
    return Table(*(jnp.asarray(columns[name].to_numpy() / 1000, jnp.float32) for name in ("income", "foodexp")))


# %% [markdown]
# ## Losses
#
# Every loss is minimised by something else: the squared error by the mean, the absolute error by the median, the
# quantile loss by its quantile, and the Huber loss by something between mean and median. `quantile_loss` takes several
# quantiles at once: five lines are fitted in one go, for an input of (N, 5).
#
# `where` chooses the households that count. A fit without one of them, and 200 fits to random parts, need no other
# arrays: only other masks, over which `vmap` maps.

# %%
Loss: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def mse(lines: jax.Array, food: jax.Array, mask: jax.Array) -> jax.Array:
    """Squared error."""
    return jaxloss.mse_loss(lines, food, where=mask)


def l1(lines: jax.Array, food: jax.Array, mask: jax.Array) -> jax.Array:
    """Absolute error."""
    return jaxloss.l1_loss(lines, food, where=mask)


def huber(lines: jax.Array, food: jax.Array, mask: jax.Array) -> jax.Array:
    """Squared for small errors, absolute for large ones."""
    return jaxloss.huber_loss(lines, food, delta=DELTA, where=mask)


def quantiles(lines: jax.Array, food: jax.Array, mask: jax.Array) -> jax.Array:
    """Pinball loss, with a line for each quantile."""
    return jaxloss.quantile_loss(lines, food, quantile=jnp.array(QUANTILES), where=mask)


LOSSES: dict[str, tuple[Loss, int]] = {"mse": (mse, 1), "l1": (l1, 1), "huber": (huber, 1), "quantile": (quantiles, 5)}

# %% [markdown]
# ## Fitting
#
# One line or five, each with intercept and slope, by Adam with a learning rate that falls to 0: plenty for two
# parameters, and the same for every loss.


# %%
class Lines(NamedTuple):
    """Intercept (Q,) and slope (Q,) of each line."""

    intercept: jax.Array
    slope: jax.Array


def at(lines: Lines, income: jax.Array) -> jax.Array:
    """What the lines say for each household, (N, Q)."""
    return lines.intercept + lines.slope * income[:, None]


OPTIMIZER = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))


@partial(jax.jit, static_argnums=0)
def train_period(loss: Loss, lines: Lines, state: optax.OptState, data: Table, masks: jax.Array) -> tuple:
    """`PERIOD` steps of a fit to each part of the table; `masks` (S, N) says which households each part has."""

    def value_of(lines: Lines, mask: jax.Array) -> jax.Array:
        predicted = at(lines, data.income)
        # Nothing is broadcast in silence: a target for each line is asked for in so many words.
        target = jnp.broadcast_to(data.food[:, None], predicted.shape)
        return loss(predicted, target, mask[:, None])

    def step(carry: tuple[Lines, optax.OptState], _: None) -> tuple[tuple[Lines, optax.OptState], jax.Array]:
        lines, state = carry
        values, gradients = jax.vmap(jax.value_and_grad(value_of))(lines, masks)
        updates, state = OPTIMIZER.update(gradients, state)
        return (optax.apply_updates(lines, updates), state), jnp.mean(values)

    (lines, state), values = jax.lax.scan(step, (lines, state), length=PERIOD)
    return lines, state, values[-1]


def fit(name: str, data: Table, masks: np.ndarray, *, out: Path) -> Lines:
    """Lines (S, Q) for each part of the table."""
    loss, number = LOSSES[name]
    lines = Lines(*jnp.zeros((2, len(masks), number)))
    state = OPTIMIZER.init(lines)
    folder = out / "tensorboard" / name
    remove_old_events(folder)
    with SummaryWriter(str(folder)) as writer:
        for end in tqdm(range(PERIOD, STEPS + 1, PERIOD), name, unit="period"):
            lines, state, value = train_period(loss, lines, state, data, jnp.asarray(masks))
            writer.add_scalar("loss/train", float(value), end)
    return jax.device_get(lines)


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


# %% [markdown]
# ## Parts of the table
#
# The first part is the whole table, the second is without the richest household. All others are random: 160
# households to fit, 75 held out.


# %%
def parts(data: Table, splits: int) -> np.ndarray:
    """Which households are fitted, (2 + splits, N)."""
    rng = np.random.default_rng(SPLIT_SEED)
    masks = np.ones((2 + splits, len(data.income)), bool)
    masks[1, np.argmax(data.income)] = False
    for mask in masks[2:]:
        mask[rng.choice(len(mask), HELD_OUT, replace=False)] = False
    return masks


# %% [markdown]
# ## Are these the right lines?
#
# For some of the losses the answer is known by other means: least squares in closed form, and statsmodels'
# quantile regression, which solves the same problem by another method.


# %%
def distance_from_known(fits: dict[str, Lines], data: Table) -> float:
    """The largest difference of a slope from the known one, on the whole table."""
    income, food = np.float64(data.income), np.float64(data.food)
    design = np.column_stack([np.ones_like(income), income])
    known = [np.polyfit(income, food, 1)[0], *(QuantReg(food, design).fit(q).params[1] for q in (0.5, *QUANTILES))]
    ours = np.concatenate([fits[name].slope[0] for name in ("mse", "l1", "quantile")])
    return float(np.max(np.abs(ours - known)))


# %% [markdown]
# ## Held-out households
#
# Lines are judged by the absolute and by the squared error on what they were not fitted to. A band between two lines
# is judged by the share of households inside: between the quantiles 0.1 and 0.9 it should be 80 %. The usual band
# around least squares has the same width everywhere, 1.28 standard deviations of the errors to either side.


# %%
def errors(lines: Lines, data: Table, held_out: np.ndarray) -> tuple[float, float]:
    """Mean absolute and root mean squared error in francs, over all splits."""
    misses = 1000 * (predictions(lines, data)[..., 0] - np.asarray(data.food))[held_out]
    return float(np.mean(np.abs(misses))), float(np.sqrt(np.mean(misses**2)))


def predictions(lines: Lines, data: Table) -> np.ndarray:
    """(S, N, Q)."""
    return np.asarray(jax.vmap(at, (0, None))(lines, data.income))


def quantile_band(lines: Lines, data: Table) -> tuple[np.ndarray, np.ndarray]:
    """Its lower and upper end, (S, N)."""
    lines_at = predictions(lines, data)
    return lines_at[..., 0], lines_at[..., -1]


def usual_band(lines: Lines, data: Table, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """That around least squares, with the standard deviation of what was fitted."""
    line = predictions(lines, data)[..., 0]
    variance = np.mean((line - np.asarray(data.food)) ** 2, axis=1, where=fitted, keepdims=True)
    return line - 1.2816 * np.sqrt(variance), line + 1.2816 * np.sqrt(variance)


def coverage(band: tuple[np.ndarray, np.ndarray], data: Table, held_out: np.ndarray) -> tuple[float, float, float]:
    """The share of held-out households in the band, in percent: of all, of the poorer half, of the richer half."""
    inside = (band[0] <= np.asarray(data.food)) & (np.asarray(data.food) <= band[1])
    poorer = np.asarray(data.income <= jnp.median(data.income))
    return tuple(100 * float(np.mean(inside[held_out & half])) for half in (poorer | True, poorer, ~poorer))


# %% [markdown]
# ## Pictures


# %%
def plot_lines(fits: dict[str, Lines], data: Table, path: Path) -> None:
    """Saves the lines of three losses, with and without the richest household."""
    figure = Figure(figsize=(9, 4), layout="constrained")  # without pyplot, so no display is needed (Agg)
    names = ("mse", "l1", "huber")
    for n, (axes, name) in enumerate(zip(figure.subplots(1, 3, sharey=True), names, strict=True)):
        scatter(axes, data)
        for part, style, label in ((0, "-", "all households"), (1, "--", "without the richest")):
            draw(axes, fits[name], part, 0, color=f"C{n}", linestyle=style, label=label)
        axes.set_title(name)
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def plot_bands(fits: dict[str, Lines], data: Table, masks: np.ndarray, path: Path) -> None:
    """Saves the lines of five quantiles, and the usual band around least squares."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    scatter(left, data)
    for n, q in enumerate(QUANTILES):
        draw(left, fits["quantile"], 0, n, color=f"C{n}", label=f"{q:g}")
    left.legend(title="quantile", loc="lower right")
    scatter(right, data)
    draw(right, fits["mse"], 0, 0, color="C0", label="least squares")
    order = np.argsort(data.income)
    low, high = (end[0][order] for end in usual_band(fits["mse"], data, masks))
    right.fill_between(
        np.asarray(data.income)[order], low, high, color="C0", alpha=0.2, label="80 % if errors are alike"
    )
    right.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def scatter(axes: Axes, data: Table) -> None:
    """The households."""
    axes.plot(*data, ".", color="grey", markersize=4)
    axes.set(xlabel="income (1,000 francs)", ylabel="food (1,000 francs)", ylim=(0, 2.7))
    axes.label_outer()
    axes.grid(alpha=0.3)


def draw(axes: Axes, lines: Lines, part: int, n: int, **style: str) -> None:
    """One line, over the whole range of incomes."""
    ends = np.array([0.3, 5.0])
    axes.plot(ends, lines.intercept[part, n] + lines.slope[part, n] * ends, **style)


# %% [markdown]
# ## Run
#
# The held-out figures are means over 200 random splits, with the households pooled. The poorer half are those that
# earn at most the median.
#
# One household of 235 moves the slope of least squares nearly five times as far as that of the absolute error. On
# held-out households the errors differ little. The bands do: the usual one, as wide for the poor as for the rich, holds
# nearly all of the poorer half where 80 % are wanted. That between two quantiles follows the spread, and misses the
# 80 % by a few points in either half.


# %%
def main() -> None:
    """Fits all lines, draws them and judges them on held-out households."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_data()
    masks = parts(data, args.splits)
    fits = {name: fit(name, data, masks, out=args.out) for name in LOSSES}
    plot_lines(fits, data, args.out / "lines.png")
    plot_bands(fits, data, masks, args.out / "bands.png")
    for picture in ("lines.png", "bands.png"):
        show(args.out / picture)
    print(f"largest difference of a slope from its known value: {distance_from_known(fits, data):.0e}")
    for name in ("mse", "l1", "huber"):
        (whole,), (without,) = fits[name].slope[:2]
        print(f"slope {name:5}  {whole:.3f}, without the richest household {without:.3f}")
    report(*({name: Lines(*(a[2:] for a in lines)) for name, lines in fits.items()}, data, masks[2:]))


def report(fits: dict[str, Lines], data: Table, fitted: np.ndarray) -> None:
    """Prints what the lines and bands are worth on households they were not fitted to."""
    for name in ("mse", "l1", "huber"):
        absolute, squared = errors(fits[name], data, ~fitted)
        print(f"held-out {name:5}  mean absolute error {absolute:.1f} francs, root mean square {squared:.1f} francs")
    bands = {
        "quantile band": quantile_band(fits["quantile"], data),
        "mse band": usual_band(fits["mse"], data, fitted),
    }
    for name, band in bands.items():
        whole, poorer, richer = coverage(band, data, ~fitted)
        print(
            f"held-out {name:13}  holds {whole:.1f} %: {poorer:.1f} % of the poorer half, {richer:.1f} % of the richer"
        )


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    out = here / "runs" / "robust_regression"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=SPLITS, help=f"random splits (default: {SPLITS})")
    parser.add_argument("--out", type=Path, default=out, help="folder for everything written")
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
