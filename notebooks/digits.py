# %% [markdown]
# # Handwritten digits with class weights and label smoothing
#
# This example trains a small convolutional network, written with Flax NNX and Optax, to read the 1,797 real
# handwritten digits that come with scikit-learn. The loss is `jaxloss.cross_entropy`.
#
#     python notebooks/digits.py
#
# It takes well under a minute on two CPU cores, and writes the best model, TensorBoard scalars and a picture of the
# learning curves to `notebooks/runs/digits`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `digits.ipynb` is this script, executed. To make it again: `python notebooks/render.py digits`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Train a Flax classifier on scikit-learn's handwritten digits with `jaxloss.cross_entropy`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss

CLASSES = 10
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
LABEL_SMOOTHING = 0.1
SPLIT_SEED = 0  # not --seed: the test images are the same in every run

# %% [markdown]
# ## Data
#
# 360 images are held out for the final test, 240 are used for validation after each epoch, and the other 1,197 for
# training. The splits are stratified: each part has the same proportion of every digit.


# %%
class Data(NamedTuple):
    """Images (N, 8, 8, 1) in [0, 1] and their labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def load_data() -> tuple[Data, Data, Data]:
    """The training, validation and test data."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    rest, test = split(Data(images, digits.target.astype(np.int32)), 360)
    train, validation = split(rest, 240)
    return train, validation, test


def split(data: Data, size: int) -> tuple[Data, Data]:
    """Sets `size` samples apart, chosen at random with the proportions of the classes kept."""
    x, x_apart, y, y_apart = train_test_split(*data, test_size=size, stratify=data.labels, random_state=SPLIT_SEED)
    return Data(x, y), Data(x_apart, y_apart)


def batches(data: Data, order: np.ndarray | None = None) -> Iterator[Data]:
    """All the samples, in the given order. The last batch may be smaller."""
    order = np.arange(len(data.labels)) if order is None else order
    for start in range(0, len(order), BATCH_SIZE):
        index = order[start : start + BATCH_SIZE]
        yield Data(data.images[index], data.labels[index])


# %% [markdown]
# ## Model


# %%
class Classifier(nnx.Module):
    """Two convolutions and two linear layers, with dropout. It returns logits: the loss applies the softmax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.output = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, 10)."""
        x = nnx.relu(self.conv1(images))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(self.dropout(x.reshape(len(x), -1))))
        return self.output(self.dropout(x))


# %% [markdown]
# ## Loss
#
# Training and validation use the same loss, weighted and smoothed, so their curves can be compared. Smoothing keeps it
# above about 0.50, the entropy of a smoothed label, however good the model is.
#
# A weighted loss is divided by the sum of the weights of its samples, which differs from batch to batch, and the last
# batch is smaller besides. The mean of the batches' means is therefore not the mean over the data set.
# `reduction="sum_and_weight"` returns numerator and denominator separately: add up each, then divide once.
#
# Scikit-learn's digits are nearly balanced, so the class weights are close to 1 here. They matter in data that is not.

# %%
Terms: TypeAlias = tuple[jax.Array, jax.Array]  # numerator and denominator of a mean


def balanced_weights(labels: np.ndarray) -> jax.Array:
    """Weights under which every class counts the same in total, n / (C * count)."""
    return jnp.asarray(len(labels) / (CLASSES * np.bincount(labels, minlength=CLASSES)), jnp.float32)


def loss_terms(logits: jax.Array, labels: jax.Array, class_weights: jax.Array) -> Terms:
    """Numerator and denominator of the weighted, smoothed cross entropy."""
    return jaxloss.cross_entropy(
        logits, labels, weight=class_weights, label_smoothing=LABEL_SMOOTHING, reduction="sum_and_weight"
    )


def exact_mean(terms: list[Terms]) -> float:
    """The mean over all the samples of all the batches, whatever their sizes."""
    # Arrays leave the device only here, so that no training step waits for the one before.
    total, weight = np.sum(jax.device_get(terms), axis=0, dtype=np.float64)
    return float(total / weight)


# %% [markdown]
# ## Training and evaluation
#
# The training loss of an epoch is collected during training, with dropout and while the parameters change. At first it
# is therefore above the validation loss.


# %%
@nnx.jit
def train_step(model: Classifier, optimizer: nnx.Optimizer, batch: Data, class_weights: jax.Array) -> Terms:
    """Updates the parameters on one batch."""

    def loss(model: Classifier) -> tuple[jax.Array, Terms]:
        total, weight = loss_terms(model(batch.images), batch.labels, class_weights)
        return total / weight, (total, weight)  # the quotient is what reduction="mean" returns

    (_, terms), grads = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, grads)
    return terms


@nnx.jit
def eval_step(model: Classifier, batch: Data, class_weights: jax.Array) -> tuple[Terms, jax.Array]:
    """The loss of one batch, and how many of its samples the model gets right."""
    logits = model(batch.images)
    return loss_terms(logits, batch.labels, class_weights), jnp.sum(jnp.argmax(logits, -1) == batch.labels)


def evaluate(model: Classifier, data: Data, class_weights: jax.Array) -> tuple[float, float]:
    """Loss and accuracy without dropout."""
    model.eval()
    terms, correct = zip(*[eval_step(model, batch, class_weights) for batch in batches(data)], strict=True)
    return exact_mean(list(terms)), sum(map(int, correct)) / len(data.labels)


# %% [markdown]
# ## The loop
#
# After each epoch the model is saved if its validation loss is the lowest so far.


# %%
class Epoch(NamedTuple):
    """What is reported after each epoch."""

    train_loss: float
    validation_loss: float
    validation_accuracy: float


def train(model: Classifier, data: Data, validation: Data, *, epochs: int, seed: int, out: Path) -> list[Epoch]:
    """Trains the model and saves its best parameters in `out`."""
    class_weights = balanced_weights(data.labels)
    steps = epochs * -(-len(data.labels) // BATCH_SIZE)
    optimizer = nnx.Optimizer(model, optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps)), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    history: list[Epoch] = []
    remove_old_events(out / "tensorboard")
    with SummaryWriter(str(out / "tensorboard")) as writer, ocp.StandardCheckpointer() as checkpointer:
        for epoch in tqdm(range(1, epochs + 1), "training", unit="epoch"):
            model.train()
            shuffled = batches(data, rng.permutation(len(data.labels)))
            train_loss = exact_mean([train_step(model, optimizer, b, class_weights) for b in shuffled])
            result = Epoch(train_loss, *evaluate(model, validation, class_weights))
            if all(result.validation_loss < earlier.validation_loss for earlier in history):
                checkpointer.save(out / "best", nnx.state(model, nnx.Param), force=True)
            history.append(result)
            report(result, epoch, epochs, writer)
    return history


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


def report(result: Epoch, epoch: int, epochs: int, writer: SummaryWriter) -> None:
    """Prints one line and writes the same numbers for TensorBoard."""
    tqdm.write(  # print would break the progress bar
        f"epoch {epoch:{len(str(epochs))}d}/{epochs}  training loss {result.train_loss:.4f}  "
        f"validation loss {result.validation_loss:.4f}  validation accuracy {percent(result.validation_accuracy)}"
    )
    writer.add_scalar("loss/train", result.train_loss, epoch)
    writer.add_scalar("loss/validation", result.validation_loss, epoch)
    writer.add_scalar("accuracy/validation", result.validation_accuracy, epoch)


def percent(fraction: float) -> str:
    """A fraction as it is printed, such as 98.6 %."""
    return f"{100 * fraction:.1f} %"


def restore(out: Path) -> Classifier:
    """A model with the best parameters saved in `out`."""
    model = Classifier(nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(model, checkpointer.restore(out / "best", nnx.state(model, nnx.Param)))
    return model


# %% [markdown]
# ## Learning curves


# %%
def plot(history: list[Epoch], path: Path) -> None:
    """Saves a picture of the losses and the accuracy over the epochs."""
    epochs = range(1, len(history) + 1)
    train_loss, validation_loss, accuracy = zip(*history, strict=True)
    figure = Figure(figsize=(9, 3.5), layout="constrained")  # without pyplot, so no display is needed (Agg)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, train_loss, ".-", label="training (with dropout)")
    left.plot(epochs, validation_loss, ".-", label="validation")
    left.axhline(smallest_loss(), color="grey", linestyle=":", label="entropy of a smoothed label")
    left.set(xlabel="epoch", ylabel="weighted, smoothed cross entropy", ylim=(0.9 * smallest_loss(), None))
    left.legend()
    right.plot(epochs, [100 * a for a in accuracy], ".-", color="C1")
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def smallest_loss() -> float:
    """The entropy of a smoothed label, below which the loss cannot fall where the class weights are equal."""
    q = np.full(CLASSES, LABEL_SMOOTHING / CLASSES)
    q[0] += 1 - LABEL_SMOOTHING
    return float(-np.sum(q * np.log(q)))


# %% [markdown]
# ## Run
#
# The test images are used once, at the very end, by the model that did best in validation.


# %%
def main() -> None:
    """Trains, restores the best model and tests it."""
    args = parse_arguments()
    out = args.out.resolve()  # Orbax takes absolute paths only
    out.mkdir(parents=True, exist_ok=True)
    training, validation, test = load_data()

    model = Classifier(nnx.Rngs(args.seed))
    history = train(model, training, validation, epochs=args.epochs, seed=args.seed, out=out)
    plot(history, out / "curves.png")
    show(out / "curves.png")

    _, accuracy = evaluate(restore(out), test, balanced_weights(training.labels))
    print(f"held-out accuracy: {percent(accuracy)}")


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training data (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="seeds everything but the data split (default: 0)")
    parser.add_argument("--out", type=Path, default=here / "runs" / "digits", help="folder for everything written")
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
