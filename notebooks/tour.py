# %% [markdown]
# # A tour: port a PyTorch training step, side by side
#
# Each stop has a piece of PyTorch, the same in JAX with `jaxloss`, and the numbers of both. Weights and data are the
# same, so the losses have to be the same over several steps of SGD, and they are, up to rounding in float32.
#
#     python notebooks/tour.py
#
# It takes a few seconds. PyTorch is not needed: its numbers, from torch 2.13.0 on a CPU, are stored below. Where torch
# is installed, its half runs as well. A picture is written to `notebooks/runs/tour`. It needs the extra packages of
# `pip install "jaxloss[notebooks]"`.
#
# `tour.ipynb` is this script, executed with torch 2.13.0. To make it again: `python notebooks/render.py tour`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Port PyTorch training steps to `jaxloss`, with the numbers of both."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import jaxloss

try:
    import torch
    import torch.nn.functional as F
except ModuleNotFoundError:
    torch = None

STEPS = 10
LEARNING_RATE, MOMENTUM = 0.1, 0.9
IGNORED = -100
Arrays: TypeAlias = dict[str, np.ndarray]
Numbers: TypeAlias = dict[str, list[float]]

# %% [markdown]
# ## The numbers of torch
#
# Stored for those who do not have it, with nine digits, which say what a float32 is. `python notebooks/tour.py --store`
# prints them.

# %%
# fmt: off
STORED: Numbers = {
    "cross_entropy": [
        2.32065082, 2.31336617, 2.29954457, 2.28026748, 2.25662184, 2.22950864, 2.19862771, 2.16484189, 2.12843084,
        2.08916616,
    ],
    "huber_loss": [
        0.0133453207, 0.00888230838, 0.00518334378, 0.00562846055, 0.00773093943, 0.00722092064, 0.00419076998,
        0.00197127904, 0.00204610778, 0.00308285863,
    ],
    "binary_cross_entropy_with_logits": [
        0.999237001, 0.997522891, 0.994378209, 0.99009186, 0.984958053, 0.979237556, 0.973146379, 0.966823399,
        0.96032393, 0.953581095,
    ],
    "reduction=mean": [1.66659772],
    "reduction=sum": [11.6661844],
    "reduction=none": [0.877774954, 5.69450617, 0.853299797, 1.72050071, 1.29781556, 1.22228742],
    "masked value": [1.05311847],
    "masked gradient": [-0.0191426128, -0.306846142, 0.0, 0.577596068, -0.790556967, 0.0],
    "whole batch": [3.54124045],
    "micro-batches": [3.54124069],
    "mean of means": [3.74135113],
    "silent broadcast": [1.40087271, 1.03216469],
}
# fmt: on

# %% [markdown]
# `compare` prints the numbers of one stop: torch's, those of `jaxloss`, and how far they are apart in proportion to the
# largest of the row's kind.

# %%
theirs: Numbers = {}
ours: Numbers = {}


def compare(in_torch: Callable[..., Numbers], in_jax: Callable[..., Numbers], *arrays: Any) -> None:
    """Computes in both, in torch where it is installed, and prints the numbers side by side."""
    results = in_jax(*arrays)
    expected = {name: STORED[name] for name in results} if torch is None else in_torch(*arrays)
    ours.update(results)
    theirs.update(expected)
    print(f"{'':42}  {'torch':>11}  {'jaxloss':>11}  apart")
    for name, numbers in results.items():
        scale = np.max(np.abs(expected[name]))
        for n, (a, b) in enumerate(zip(expected[name], numbers, strict=True)):
            print(f"{name:36}  {n + 1:4}  {a:11.7f}  {b:11.7f}  {abs(a - b) / scale:.0e}")


print("torch is not installed: its stored numbers are shown" if torch is None else f"torch {torch.__version__}")

# %% [markdown]
# ## The same data and weights for both
#
# 128 of scikit-learn's handwritten digits, with three things to predict: the digit, where every fifth label is missing;
# the share of the image that is inked, a number; and four yes-or-no questions about the digit. The network has one
# hidden layer.


# %%
def make_data() -> Arrays:
    """Images (128, 64), digits (128,), ink (128,) and answers (128, 4)."""
    digits = load_digits()
    images, labels = (digits.images[:128] / 16).reshape(128, 64).astype(np.float32), digits.target[:128]
    questions = np.stack([labels % 2 == 0, labels % 3 == 0, labels > 6, labels == 8], axis=1)
    return {
        "images": images,
        "digits": np.where(np.arange(128) % 5 == 0, IGNORED, labels),
        "ink": images.mean(1),
        "answers": questions.astype(np.float32),
    }


def make_weights(outputs: int) -> Arrays:
    """A hidden layer of 32, and an output layer."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (64, 32), "b1": (32,), "w2": (32, outputs), "b2": (outputs,)}
    return {name: (rng.normal(0, 0.1, shape)).astype(np.float32) for name, shape in shapes.items()}


DATA = make_data()

# %% [markdown]
# ## A training step
#
# In PyTorch:


# %%
def train_torch(loss: Callable, weights: Arrays, data: Arrays) -> list[float]:
    """The loss at each step."""
    w = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
    data = {name: torch.tensor(array) for name, array in data.items()}
    optimizer = torch.optim.SGD(w.values(), lr=LEARNING_RATE, momentum=MOMENTUM)
    values = []
    for _ in range(STEPS):
        output = torch.relu(data["images"] @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
        value = loss(output, data)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


# %% [markdown]
# In JAX the step is a function of weights and optimiser state that returns new ones, compiled by `jit` as a whole.


# %%
def train_jax(loss: Callable, weights: Arrays, data: Arrays) -> list[float]:
    """The loss at each step."""
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    data = jax.tree.map(jnp.asarray, data)

    def loss_of(w: Any) -> jax.Array:
        output = jax.nn.relu(data["images"] @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
        return loss(output, data)

    @jax.jit
    def step(w: Any, state: optax.OptState) -> tuple[Any, optax.OptState, jax.Array]:
        value, gradients = jax.value_and_grad(loss_of)(w)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(w, updates), state, value

    w, values = jax.tree.map(jnp.asarray, weights), []
    state = optimizer.init(w)
    for _ in range(STEPS):
        w, state, value = step(w, state)
        values.append(float(value))
    return values


# %% [markdown]
# ## Three losses
#
# The lines differ by `F.` and `jaxloss.`, and by what torch and jax.numpy call their arrays. In JAX, the labels may be
# of any integer dtype.


# %%
POS_WEIGHT = [1.0, 2.0, 3.0, 9.0]  # yes counts more, where it is rarer
OUTPUTS = {"cross_entropy": 10, "huber_loss": 1, "binary_cross_entropy_with_logits": 4}


def torch_losses() -> dict[str, Callable]:
    """Each a function of the network's output and the data."""
    positive = torch.tensor(POS_WEIGHT)
    return {
        "cross_entropy": lambda output, data: F.cross_entropy(
            output, data["digits"], ignore_index=IGNORED, label_smoothing=0.1
        ),
        "huber_loss": lambda output, data: F.huber_loss(output.squeeze(1), data["ink"], delta=0.5),
        "binary_cross_entropy_with_logits": lambda output, data: F.binary_cross_entropy_with_logits(
            output, data["answers"], pos_weight=positive
        ),
    }


def jax_losses() -> dict[str, Callable]:
    """The same."""
    positive = jnp.array(POS_WEIGHT)
    return {
        "cross_entropy": lambda output, data: jaxloss.cross_entropy(
            output, data["digits"], ignore_index=IGNORED, label_smoothing=0.1
        ),
        "huber_loss": lambda output, data: jaxloss.huber_loss(output.squeeze(1), data["ink"], delta=0.5),
        "binary_cross_entropy_with_logits": lambda output, data: jaxloss.binary_cross_entropy_with_logits(
            output, data["answers"], pos_weight=positive
        ),
    }


def steps_torch(data: Arrays) -> Numbers:
    """The loss at each step of three trainings."""
    return {name: train_torch(loss, make_weights(OUTPUTS[name]), data) for name, loss in torch_losses().items()}


def steps_jax(data: Arrays) -> Numbers:
    """The same."""
    return {name: train_jax(loss, make_weights(OUTPUTS[name]), data) for name, loss in jax_losses().items()}


compare(steps_torch, steps_jax, DATA)


# %%
def plot(path: Path) -> None:
    """Saves the losses of both over the steps."""
    figure = Figure(figsize=(9, 3), layout="constrained")  # without pyplot, so no display is needed (Agg)
    steps = range(1, STEPS + 1)
    for axes, name in zip(figure.subplots(1, len(OUTPUTS)), OUTPUTS, strict=True):
        axes.plot(steps, theirs[name], "o", color="C1", markersize=8, markerfacecolor="none", label="torch")
        axes.plot(steps, ours[name], ".-", color="C0", label="jaxloss")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true", help="print at the end what torch computed, for STORED")
    parser.add_argument("--out", type=Path, default=here / "runs" / "tour", help="folder for the picture")
    return parser.parse_known_args()[0]


arguments = parse_arguments()
arguments.out.mkdir(parents=True, exist_ok=True)
plot(arguments.out / "losses.png")
show(arguments.out / "losses.png")

# %% [markdown]
# ## Reductions
#
# "mean", "sum" and "none" are torch's. What a mean divides by is torch's as well, which matters with class weights:
# `cross_entropy` divides by the sum of the weights of the labels that count.


# %%
def reductions_torch(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Numbers:
    """A weighted cross entropy, reduced in every way."""
    logits, labels, weights = map(torch.tensor, (logits, labels, weights))
    return {
        f"reduction={how}": F.cross_entropy(logits, labels, weight=weights, reduction=how).reshape(-1).tolist()
        for how in ("mean", "sum", "none")
    }


def reductions_jax(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Numbers:
    """The same."""
    return {
        f"reduction={how}": jaxloss.cross_entropy(logits, labels, weight=weights, reduction=how).reshape(-1).tolist()
        for how in ("mean", "sum", "none")
    }


rng = np.random.default_rng(1)
LOGITS = rng.normal(0, 2, (128, 10)).astype(np.float32)
LABELS = np.where((np.arange(128) > 90) | (np.arange(128) % 7 == 0), IGNORED, rng.integers(10, size=128))
WEIGHTS = np.linspace(0.5, 2, 10, dtype=np.float32)  # of classes
compare(reductions_torch, reductions_jax, LOGITS[1:7], LABELS[1:7], WEIGHTS)

# %% [markdown]
# ## A mask
#
# In torch one picks the entries that count, which gives an array of another size: `jit` cannot do that, nor can a
# mean over entries multiplied by 0 where one of them is NaN. Every `jaxloss` function takes `where`. Masked entries
# count neither in the sum nor in the number it is divided by, and a NaN there reaches neither value nor gradient.


# %%
def mask_torch(input: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Numbers:
    """Value and gradient of the error over the entries that count."""
    x, t, m = torch.tensor(input, requires_grad=True), torch.tensor(target), torch.tensor(mask)
    value = F.mse_loss(x[m], t[m])
    value.backward()
    return {"masked value": [value.item()], "masked gradient": x.grad.tolist()}


def mask_jax(input: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Numbers:
    """The same, under jit."""
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jaxloss.mse_loss(x, target, where=mask)))(input)
    return {"masked value": [float(value)], "masked gradient": gradient.tolist()}


COLUMN, TARGET = rng.normal(size=(2, 6)).astype(np.float32)
POISONED = np.where(np.arange(6) == 2, np.float32(np.nan), COLUMN)
compare(mask_torch, mask_jax, POISONED, TARGET, np.arange(6) % 3 != 2)

# %% [markdown]
# ## Micro-batches
#
# The mean of the means of micro-batches is not the mean of the batch where they hold different numbers of labels.
# In torch one sums and counts by hand, and with class weights the count is another sum. `reduction="sum_and_weight"`
# returns both parts of any mean: add up each, divide once. The same makes a mean exact over several devices.


# %%
def micro_batches_torch(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Numbers:
    """The mean over a batch, over its two micro-batches by hand, and the mean of their means."""
    logits, labels, weights = map(torch.tensor, (logits, labels, weights))
    total, weight, means = 0.0, 0.0, []
    for x, y in zip(logits.split(64), labels.split(64), strict=True):
        total += F.cross_entropy(x, y, weight=weights, reduction="sum")
        weight += weights[y[y != IGNORED]].sum()
        means.append(F.cross_entropy(x, y, weight=weights))
    return {
        "whole batch": [F.cross_entropy(logits, labels, weight=weights).item()],
        "micro-batches": [(total / weight).item()],
        "mean of means": [(sum(means) / 2).item()],
    }


def micro_batches_jax(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Numbers:
    """The same."""
    batches = list(zip(np.split(logits, 2), np.split(labels, 2), strict=True))
    pairs = [jaxloss.cross_entropy(x, y, weight=weights, reduction="sum_and_weight") for x, y in batches]
    total, weight = map(sum, zip(*pairs, strict=True))
    means = [jaxloss.cross_entropy(x, y, weight=weights) for x, y in batches]
    return {
        "whole batch": [float(jaxloss.cross_entropy(logits, labels, weight=weights))],
        "micro-batches": [float(total / weight)],
        "mean of means": [float(sum(means) / 2)],
    }


compare(micro_batches_torch, micro_batches_jax, LOGITS, LABELS, WEIGHTS)

# %% [markdown]
# ## What is not the same: a broadcast
#
# A network's output (N, 1) against targets (N,) is an old trap. torch warns, and takes the mean over N by N errors, of
# each output with each target. Here it is an error that says what to do.


# %%
def broadcast_torch(column: np.ndarray, target: np.ndarray) -> Numbers:
    """The mean over all pairs, and over those that belong together."""
    column, target = torch.tensor(column), torch.tensor(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"silent broadcast": [F.mse_loss(column, target).item(), F.mse_loss(column[:, 0], target).item()]}


theirs |= (
    {"silent broadcast": STORED["silent broadcast"]} if torch is None else broadcast_torch(COLUMN[:, None], TARGET)
)
print("torch    {:.7f}, where the mean of the errors is {:.7f}".format(*theirs["silent broadcast"]))
try:
    jaxloss.mse_loss(COLUMN[:, None], TARGET)
except ValueError as error:
    print(f"jaxloss  {type(error).__name__}: {error}")

# %% [markdown]
# Where the values themselves differ from torch, on purpose, a table in the README says so. To name three: half
# precision gives a float32 loss, a class index out of range gives NaN in its row, and a NaN in an ignored row does not
# spread.
#
# ## All in all


# %%
def largest_difference(a: Numbers, b: Numbers) -> float:
    """Of all numbers in `a`, each in proportion to the largest of its kind."""
    return max(float(np.max(np.abs(np.subtract(a[name], b[name]))) / np.max(np.abs(b[name]))) for name in a)


if arguments.store:
    print({name: [float(f"{number:.9g}") for number in numbers] for name, numbers in theirs.items()})
else:
    if torch is not None:
        print(f"largest difference of torch from its stored numbers: {largest_difference(theirs, STORED):.0e}")
    print(f"largest difference of jaxloss from torch: {largest_difference(ours, theirs):.0e}")
