# %% [markdown]
# # One class in ten: weights and focal losses for imbalanced classes
#
# Of scikit-learn's 1,797 handwritten digits 174 are an 8, fewer than one in ten. This example trains a small
# classifier, written with Flax NNX and Optax, to say which they are, with five losses: plain cross entropy; with
# balanced weights; with the milder weights of the effective number; the focal loss; and the focal loss with balanced
# weights. Accuracy says little here, as "never an 8" is right nine times out of ten. The pictures show precision and
# recall.
#
#     python notebooks/imbalance.py
#
# It takes about a minute on two CPU cores, and writes TensorBoard scalars and two pictures to
# `notebooks/runs/imbalance`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `imbalance.ipynb` is this script, executed. To make it again: `python notebooks/render.py imbalance`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Train Flax classifiers on an imbalanced question about digits, with weights and focal losses of `jaxloss`."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_score, recall_score
from sklearn.model_selection import train_test_split
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss
from jaxloss import class_weights

RARE = 8
BATCH_SIZE = 63  # 19 micro-batches to an epoch of 1,197 images
ACCUMULATED = 2  # micro-batches to a step of the optimiser
LEARNING_RATE = 3e-3
PERIOD = 5  # epochs from one validation to the next
SPLIT_SEED = 0  # not --seed: the test images are the same in every run

# %% [markdown]
# ## Data
#
# Images are shrunk to 4 by 4 pixels. At full size the question would be too easy for a comparison. 360 images are held
# out for the test, 240 are used for validation, 1,197 for training, with the same proportion of every digit.


# %%
class Data(NamedTuple):
    """Images (N, 16) in [0, 1], and labels (N,): 1 for an 8, else 0."""

    images: jax.Array
    labels: jax.Array


def load_data() -> tuple[Data, Data, Data]:
    """The training, validation and test data."""
    digits = load_digits()
    images = (digits.images / 16).reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    split = partial(train_test_split, random_state=SPLIT_SEED)
    rest, test = split(np.arange(len(images)), test_size=360, stratify=digits.target)
    train, validation = split(rest, test_size=240, stratify=digits.target[rest])
    labels = digits.target == RARE
    return tuple(
        Data(jnp.asarray(images[rows], jnp.float32), jnp.asarray(labels[rows], jnp.int32))
        for rows in (train, validation, test)
    )


# %% [markdown]
# ## Losses
#
# All are `jaxloss` functions of logits (N, 2) and labels (N,). `class_weights` takes how often each class occurs:
#
# - `balanced` is scikit-learn's n / (C · count): both classes count the same in total. `inverse_frequency` is the same
#   up to scale, and under a mean that divides by the sum of the weights no different.
# - `effective_number` grows more slowly than the inverse of the count, as samples begin to repeat each other.
# - The focal loss turns away from what is already right, in either class. It knows nothing of counts; `alpha` can.
#
# With weights, the mean of `cross_entropy` divides by the sum of the weights of the batch. That of the focal loss
# divides by the number of rows.

# %%
Loss: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """With a weight for each class."""
    return jaxloss.cross_entropy(logits, labels, weight=weights)


def focal(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """The same, turned away from what is already right."""
    return jaxloss.softmax_focal_loss(logits, labels, gamma=2.0, alpha=weights)


def losses(labels: jax.Array) -> dict[str, tuple[Loss, jax.Array]]:
    """The losses to compare, by name, with weights from the training labels. Other weights compile nothing anew."""
    counts = jnp.bincount(labels, length=2)
    alike, balanced = jnp.ones(2), class_weights.balanced(counts)
    return {
        "plain": (cross_entropy, alike),
        "balanced": (cross_entropy, balanced),
        "effective number": (cross_entropy, class_weights.effective_number(counts, beta=0.995)),
        "focal": (focal, alike),
        "balanced focal": (focal, balanced),
    }


# %% [markdown]
# ## Is it set up right?
#
# Before a long run, `jaxloss.diagnose` looks at one batch: it would tell of a softmax too many, labels of the wrong
# shape, a batch of one class, or a gradient that vanishes. `jaxloss.checked` looks at every value, here of the labels.


# %%
def look_at(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> None:
    """Prints what `diagnose` has to say; any label that is no class raises."""
    print(jaxloss.diagnose(jaxloss.cross_entropy, logits, labels, weight=weights))
    jaxloss.checked(jaxloss.cross_entropy)(logits, labels)


# %% [markdown]
# ## Model
#
# One hidden layer, computed in float16 with parameters in float32.


# %%
class Classifier(nnx.Module):
    """A small network. It returns logits: the losses apply the softmax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        layer = partial(nnx.Linear, dtype=jnp.float16, rngs=rngs)
        self.hidden, self.output = layer(16, 32), layer(32, 2)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, 2)."""
        return self.output(nnx.relu(self.hidden(images)))


# %% [markdown]
# ## Training
#
# Flax's `DynamicScale` scales the loss, so that no gradient vanishes or overflows in float16, and reports whether they
# were finite; a step that was not is left out. Optax adds up two micro-batches, clips and updates: `MultiSteps` around
# `clip_by_global_norm` and Adam.


# %%
class State(NamedTuple):
    """All that changes in training."""

    params: Any
    optimizer: optax.MultiStepsState
    scale: DynamicScale


OPTIMIZER = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE)), ACCUMULATED)
GRAPH = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param)[0]


@partial(jax.jit, static_argnums=0)
def train_epoch(loss: Loss, weights: jax.Array, state: State, data: Data, order: np.ndarray) -> tuple[State, jax.Array]:
    """All images once, in the given order (batches, size), and the mean loss."""

    def step(state: State, batch: Data) -> tuple[State, jax.Array]:
        def value_of(params: Any) -> jax.Array:
            return loss(nnx.merge(GRAPH, params)(batch.images), batch.labels, weights)

        scale, finite, value, gradients = state.scale.value_and_grad(value_of)(state.params)
        updates, optimizer = OPTIMIZER.update(gradients, state.optimizer, state.params)
        after = optax.apply_updates(state.params, updates), optimizer
        kept = jax.tree.map(partial(jnp.where, finite), after, (state.params, state.optimizer))
        return State(*kept, scale), value

    state, values = jax.lax.scan(step, state, jax.tree.map(lambda column: column[order], data))
    return state, jnp.mean(values)


@jax.jit
def scores(params: Any, images: jax.Array) -> jax.Array:
    """The probability that each image is an 8."""
    return jax.nn.softmax(nnx.merge(GRAPH, params)(images).astype(jnp.float32))[:, 1]


class Result(NamedTuple):
    """How good scores are: precision and recall at a threshold of one half, and the area under their curve."""

    precision: float
    recall: float
    average_precision: float


def judge(probabilities: np.ndarray, labels: np.ndarray) -> Result:
    """Compares scores with labels."""
    said = probabilities > 0.5
    precision = precision_score(labels, said, zero_division=0)
    return Result(precision, recall_score(labels, said), average_precision_score(labels, probabilities))


def train(
    name: str, loss: Loss, weights: jax.Array, data: Data, validation: Data, *, epochs: int, seed: int, out: Path
) -> tuple[Any, list[tuple[int, Result]]]:
    """Trains with one loss; the parameters, and for each period the epoch and the validation result."""
    params = nnx.split(Classifier(nnx.Rngs(seed)), nnx.Param)[1]
    start = State(params, OPTIMIZER.init(params), DynamicScale(growth_interval=200))
    # Python's numbers have weak types, for which the first epoch would be compiled separately.
    state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), start)
    history, rng = [], np.random.default_rng(seed)
    folder = out / "tensorboard" / name.replace(" ", "_")
    remove_old_events(folder)
    with SummaryWriter(str(folder)) as writer:
        for epoch in tqdm(range(1, epochs + 1), name, unit="epoch"):
            order = rng.permutation(len(data.labels)).reshape(-1, BATCH_SIZE)
            state, value = train_epoch(loss, weights, state, data, order)
            if epoch % PERIOD and epoch < epochs:
                continue
            result = judge(np.asarray(scores(state.params, validation.images)), np.asarray(validation.labels))
            history.append((epoch, result))
            writer.add_scalar("loss/train", float(value), epoch)
            writer.add_scalar("loss_scale", float(state.scale.scale), epoch)
            for what, number in result._asdict().items():
                writer.add_scalar(f"validation/{what}", number, epoch)
    return state.params, history


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


# %% [markdown]
# ## Pictures
#
# The first shows recall and precision at a threshold of one half in the course of training; the second, on the test
# images, precision against recall for every threshold, with a dot at one half. Weights mostly move the dot along the
# curve: they trade misses for false alarms, which a threshold could have done as well. They matter where the threshold
# is given, or where the rare class would otherwise not be learned at all.


# %%
def plot_course(histories: dict[str, list[tuple[int, Result]]], path: Path) -> None:
    """Saves recall and precision in validation over the epochs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")  # without pyplot, so no display is needed (Agg)
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ("recall", "precision"), strict=True):
        for name, history in histories.items():
            axes.plot([epoch for epoch, _ in history], [getattr(result, what) for _, result in history], label=name)
        axes.set(xlabel="epoch", ylabel=what, ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def plot_curves(probabilities: dict[str, np.ndarray], labels: np.ndarray, path: Path) -> None:
    """Saves precision against recall on the test images."""
    figure = Figure(figsize=(6, 4.8), layout="constrained")
    axes = figure.subplots()
    for n, (name, p) in enumerate(probabilities.items()):
        precision, recall, _ = precision_recall_curve(labels, p)
        result = judge(p, labels)
        axes.plot(recall, precision, color=f"C{n}", label=f"{name} ({result.average_precision:.3f})")
        axes.plot(result.recall, result.precision, "o", color=f"C{n}")
    axes.axhline(labels.mean(), color="grey", linestyle=":", label="always an 8")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(title="average precision", loc="lower left")
    figure.savefig(path, dpi=100)


# %% [markdown]
# ## Run
#
# The test images are used once, at the very end.


# %%
def main() -> None:
    """Trains with each loss and compares them on the test images."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data, validation, test = load_data()
    labels = np.asarray(test.labels)
    histories, probabilities = {}, {}
    compared = losses(data.labels)
    logits = Classifier(nnx.Rngs(args.seed))(data.images[:BATCH_SIZE])
    look_at(logits, data.labels[:BATCH_SIZE], compared["balanced"][1])
    for name, (loss, weights) in compared.items():
        params, histories[name] = train(
            name, loss, weights, data, validation, epochs=args.epochs, seed=args.seed, out=args.out
        )
        probabilities[name] = np.asarray(scores(params, test.images))
    plot_course(histories, args.out / "course.png")
    plot_curves(probabilities, labels, args.out / "curves.png")
    for picture in ("course.png", "curves.png"):
        show(args.out / picture)
    for name, p in probabilities.items():
        result = judge(p, labels)
        print(
            f"held-out {name:16}  precision {result.precision:.2f}  recall {result.recall:.2f}  "
            f"average precision {result.average_precision:.3f}"
        )


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=150, help="epochs with each loss (default: 150)")
    parser.add_argument("--seed", type=int, default=0, help="seeds everything but the data split (default: 0)")
    parser.add_argument("--out", type=Path, default=here / "runs" / "imbalance", help="folder for everything written")
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
