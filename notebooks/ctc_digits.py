# %% [markdown]
# # Reading strips of handwritten digits with CTC
#
# This example trains a small convolutional network, written with Flax NNX and Optax, to read strips of one to eight
# handwritten digits. The loss is `jaxloss.ctc_loss_with_logits`: it is told what is written in a strip, but not where.
# `jaxloss.ctc_alignment` and `jaxloss.ctc_posteriors` then show where the network finds it.
#
#     python notebooks/ctc_digits.py
#
# It takes less than two minutes on two CPU cores, and writes the best model, TensorBoard scalars and two pictures to
# `notebooks/runs/ctc_digits`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `ctc_digits.ipynb` is this script, executed. To make it again: `python notebooks/render.py ctc_digits`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Train a Flax recogniser on strips of scikit-learn's handwritten digits with `jaxloss.ctc_loss_with_logits`."""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss

CLASSES = 10
BLANK = CLASSES  # any class may be the blank; behind the digits, it leaves each digit its own number
MAX_DIGITS = 8
SIDE = 8  # pixels of an image in both directions
MIN_PITCH, MAX_PITCH = 6, 9  # pixels from one digit to the next
HEIGHT = 12
WIDTH = SIDE + (MAX_DIGITS - 1) * MAX_PITCH
STRIDE = 2  # pixels to a frame
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
PERIOD = 250  # steps from one validation to the next
HELD_OUT_STRIPS = 500
SPLIT_SEED = 0  # not --seed: the test strips are the same in every run

# %% [markdown]
# ## Images
#
# 360 images are held out for the final test, 240 are used for validation, and the other 1,197 for training. The splits
# are stratified: each part has the same proportion of every digit.


# %%
class Data(NamedTuple):
    """Images (N, 8, 8) in [0, 1] and their labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def load_data() -> tuple[Data, Data, Data]:
    """The training, validation and test data."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    rest, test = split(Data(images, digits.target.astype(np.int32)), 360)
    train, validation = split(rest, 240)
    return train, validation, test


def split(data: Data, size: int) -> tuple[Data, Data]:
    """Sets `size` samples apart, chosen at random with the proportions of the classes kept."""
    x, x_apart, y, y_apart = train_test_split(*data, test_size=size, stratify=data.labels, random_state=SPLIT_SEED)
    return Data(x, y), Data(x_apart, y_apart)


# %% [markdown]
# ## Strips
#
# A strip is one to eight images side by side, each moved up or down at random. From one to the next it is 6 to 9
# pixels, while an image is 8 wide. More than a fifth of the neighbours touch or overlap, so a strip cannot be cut
# at its empty columns.
#
# Strips are drawn anew for every training step. Those for validation and test are drawn once, from their own images.


# %%
class Strips(NamedTuple):
    """Images (N, 12, 71, 1) and digits (N, 8), both padded with 0, with the numbers of frames and of digits (N,)."""

    images: np.ndarray
    digits: np.ndarray
    frames: np.ndarray
    counts: np.ndarray


def draw_strips(data: Data, size: int, rng: np.random.Generator) -> Strips:
    """Puts `size` strips together from images of `data`."""
    counts = rng.integers(1, MAX_DIGITS + 1, size)
    chosen = rng.integers(len(data.labels), size=(size, MAX_DIGITS))
    pitch = rng.integers(MIN_PITCH, MAX_PITCH + 1, (size, MAX_DIGITS))
    left = np.cumsum(pitch, axis=1) - pitch[:, :1]
    top = rng.integers(HEIGHT - SIDE + 1, size=(size, MAX_DIGITS))
    there = np.arange(MAX_DIGITS) < counts[:, None]
    images = np.zeros((size, HEIGHT, WIDTH, 1), np.float32)
    for n, s in np.argwhere(there):
        place = images[n, top[n, s] : top[n, s] + SIDE, left[n, s] : left[n, s] + SIDE, 0]
        np.maximum(place, data.images[chosen[n, s]], out=place)
    width = left[np.arange(size), counts - 1] + SIDE
    return Strips(images, np.where(there, data.labels[chosen], 0), -(-width // STRIDE), counts)


def written(strips: Strips) -> list[np.ndarray]:
    """The digits of each strip, without padding."""
    return [digits[:count] for digits, count in zip(strips.digits, strips.counts, strict=True)]


# %% [markdown]
# ## Model
#
# Two convolutions look at the pixels, one looks along the strip. The second halves both directions, so a frame is two
# columns of pixels wide. Where digits stand as close as they may, three frames come to a digit. That is enough: two
# equal neighbours need one more than the digits, for the blank between them. The layer norm shortens the time at the
# start in which a network trained with CTC says nothing but blanks.


# %%
class Recogniser(nnx.Module):
    """Convolutions over the image, then over time, with dropout. It returns logits: the loss applies the softmax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), strides=STRIDE, rngs=rngs)
        self.columns = nnx.Linear(HEIGHT // STRIDE * 64, 128, rngs=rngs)
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.time = nnx.Conv(128, 128, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.output = nnx.Linear(128, CLASSES + 1, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, 36, 11)."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        x = x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)  # a frame has the pixels of its columns as channels
        x = nnx.relu(self.norm(self.columns(self.dropout(x))))
        x = nnx.relu(self.time(self.dropout(x)))
        return self.output(x)


# %% [markdown]
# ## Loss
#
# The loss of a strip is minus the logarithm of the probability that its frames spell its digits, summed over all the
# ways to spread the digits over the frames. `reduction="mean"` divides it by the number of digits before it takes the
# mean over the strips. All batches have the same size, so the mean over many of them is the mean of their means.


# %%
def ctc_loss(logits: jax.Array, strips: Strips) -> jax.Array:
    """The loss per digit."""
    return jaxloss.ctc_loss_with_logits(
        logits, strips.digits, strips.frames, strips.counts, blank=BLANK, batch_first=True
    )


# %% [markdown]
# ## Reading
#
# Greedy decoding takes the most probable class of each frame, merges what repeats and drops the blanks. The edit
# distance between what is read and what is written counts digits inserted, deleted and replaced. Its sum over all
# strips, divided by the number of digits written, is the character error rate.


# %%
def read(log_probs: np.ndarray, frames: np.ndarray) -> list[np.ndarray]:
    """The digits read in each strip, by greedy decoding."""
    paths = [path[:length] for path, length in zip(log_probs.argmax(-1), frames, strict=True)]
    return [path[(path != BLANK) & (path != np.append(-1, path[:-1]))] for path in paths]


def edit_distance(a: np.ndarray, b: np.ndarray) -> int:
    """The smallest number of insertions, deletions and replacements that turn `a` into `b`."""
    j = np.arange(len(b) + 1)
    row = j  # from the part of `a` passed so far, here none, to b[:j]
    for i, symbol in enumerate(a, start=1):
        deleted, replaced = row[1:] + 1, row[:-1] + (b != symbol)
        row = np.append(i, np.minimum(deleted, replaced))
        row = np.minimum.accumulate(row - j) + j  # inserted: one more for each step to the right
    return int(row[-1])


def error_rate(log_probs: np.ndarray, strips: Strips) -> float:
    """The character error rate."""
    errors = map(edit_distance, read(log_probs, strips.frames), written(strips))
    return sum(errors) / int(strips.counts.sum())


# %% [markdown]
# ## Training and evaluation


# %%
@nnx.jit
def train_step(model: Recogniser, optimizer: nnx.Optimizer, strips: Strips) -> jax.Array:
    """Updates the parameters on one batch."""
    loss, grads = nnx.value_and_grad(lambda model: ctc_loss(model(strips.images), strips))(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def eval_step(model: Recogniser, strips: Strips) -> tuple[jax.Array, jax.Array]:
    """The loss, and the log-probabilities (N, 36, 11)."""
    logits = model(strips.images)
    return ctc_loss(logits, strips), jax.nn.log_softmax(logits)


def evaluate(model: Recogniser, strips: Strips) -> tuple[float, np.ndarray]:
    """Loss and log-probabilities without dropout."""
    model.eval()
    loss, log_probs = eval_step(model, strips)
    return float(loss), np.asarray(log_probs)


# %% [markdown]
# ## The loop
#
# After every 250 steps the model is saved if its validation loss is the lowest so far. The training loss is
# collected during training, with dropout and while the parameters change. At first it is above the validation loss.


# %%
class Period(NamedTuple):
    """What is reported after every 250 steps."""

    step: int
    train_loss: float
    validation_loss: float
    validation_error_rate: float


def train(model: Recogniser, data: Data, validation: Strips, *, steps: int, seed: int, out: Path) -> list[Period]:
    """Trains the model and saves its best parameters in `out`."""
    optimizer = nnx.Optimizer(model, optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps)), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    history: list[Period] = []
    losses: list[jax.Array] = []
    remove_old_events(out / "tensorboard")
    with SummaryWriter(str(out / "tensorboard")) as writer, ocp.StandardCheckpointer() as checkpointer:
        for step in tqdm(range(1, steps + 1), "training", unit="step"):
            model.train()
            losses.append(train_step(model, optimizer, draw_strips(data, BATCH_SIZE, rng)))
            if step % PERIOD and step < steps:
                continue
            # Losses leave the device only here, so that no training step waits for the one before.
            train_loss = float(np.mean(jax.device_get(losses)))
            losses.clear()
            validation_loss, log_probs = evaluate(model, validation)
            result = Period(step, train_loss, validation_loss, error_rate(log_probs, validation))
            if all(validation_loss < earlier.validation_loss for earlier in history):
                checkpointer.save(out / "best", nnx.state(model, nnx.Param), force=True)
            history.append(result)
            report(result, steps, writer)
    return history


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


def report(result: Period, steps: int, writer: SummaryWriter) -> None:
    """Prints one line and writes the same numbers for TensorBoard."""
    tqdm.write(  # print would break the progress bar
        f"step {result.step:{len(str(steps))}d}/{steps}  training loss {result.train_loss:.4f}  "
        f"validation loss {result.validation_loss:.4f}  "
        f"validation character error rate {percent(result.validation_error_rate)}"
    )
    writer.add_scalar("loss/train", result.train_loss, result.step)
    writer.add_scalar("loss/validation", result.validation_loss, result.step)
    writer.add_scalar("error_rate/validation", result.validation_error_rate, result.step)


def percent(fraction: float) -> str:
    """A fraction as it is printed, such as 1.4 %."""
    return f"{100 * fraction:.1f} %"


def restore(out: Path) -> Recogniser:
    """A model with the best parameters saved in `out`."""
    model = Recogniser(nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(model, checkpointer.restore(out / "best", nnx.state(model, nnx.Param)))
    return model


# %% [markdown]
# ## Learning curves


# %%
def plot_curves(history: list[Period], path: Path) -> None:
    """Saves a picture of the losses and the character error rate over the steps."""
    steps, train_loss, validation_loss, rates = zip(*history, strict=True)
    figure = Figure(figsize=(9, 3.5), layout="constrained")  # without pyplot, so no display is needed (Agg)
    left, right = figure.subplots(1, 2)
    left.plot(steps, train_loss, ".-", label="training (with dropout)")
    left.plot(steps, validation_loss, ".-", label="validation")
    left.set(xlabel="step", ylabel="CTC loss per digit", yscale="log")
    left.legend()
    right.plot(steps, [100 * rate for rate in rates], ".-", color="C1")
    right.set(xlabel="step", ylabel="validation character error rate (%)", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


# %% [markdown]
# ## Alignment
#
# The second picture shows where the network finds the digits of some test strips, given what is written there.
#
# - The curves are `jaxloss.ctc_posteriors`: the probability that a frame belongs to this or that digit of the strip, or
#   to a blank (dotted).
# - The line of digits below is `jaxloss.ctc_alignment`: the class of each frame on the most probable path, with a dot
#   for the blank. Its digits tint the strip above.
#
# CTC does not ask how long a digit is. The network learns to name it once, in a frame or two that see enough of it, and
# to fall back to the blank. The first strip is a long one that is read right although it has two equal digits in a row.
# After it come the first two that are read wrong. There the curves show where the network would put what is written.


# %%
def examples(log_probs: np.ndarray, strips: Strips) -> np.ndarray:
    """The index of a long strip with a double digit that is read right, and of the first two that are read wrong."""
    pairs = list(zip(read(log_probs, strips.frames), written(strips), strict=True))
    right = np.array([np.array_equal(*pair) for pair in pairs])
    double = np.array([(digits[1:] == digits[:-1]).any() for _, digits in pairs])
    long = strips.counts == MAX_DIGITS
    return np.append(np.flatnonzero(right & double & long)[:1], np.flatnonzero(~right)[:2])


@jax.jit
def locate(log_probs: jax.Array, strips: Strips) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best path (N, T), and the posteriors of the digits (N, T, 8) and of the blank (N, T)."""
    arguments = log_probs, strips.digits, strips.frames, strips.counts
    alignment = jaxloss.ctc_alignment(*arguments, blank=BLANK, batch_first=True)
    posteriors = jaxloss.ctc_posteriors(*arguments, blank=BLANK, batch_first=True)
    return alignment.labels, posteriors.labels, posteriors.blank


def plot_alignment(log_probs: np.ndarray, strips: Strips, path: Path) -> None:
    """Saves a picture of the strips, what is written and read in them, and where the network finds it."""
    found = locate(log_probs, strips)
    figure = Figure(figsize=(9, 3 * len(log_probs)), layout="constrained")
    axes = figure.subplots(2 * len(log_probs), sharex=True).reshape(-1, 2)
    readings = zip(written(strips), read(log_probs, strips.frames), strict=True)
    for n, ((top, bottom), (digits, reading)) in enumerate(zip(axes, readings, strict=True)):
        best_path, at_digits, at_blank = (np.asarray(array)[n, : strips.frames[n]] for array in found)
        draw_strip(top, strips.images[n, ..., 0], best_path)
        draw_posteriors(bottom, digits, at_digits, at_blank)
        draw_path(bottom, best_path)
        color = "black" if np.array_equal(digits, reading) else "C3"
        top.set_title(f"written {spelled(digits)}    read {spelled(reading)}", color=color, loc="left")
    axes[-1, 1].set(xlabel="column of pixels", xlim=(0, STRIDE * strips.frames.max()))
    figure.savefig(path, dpi=100)


def spelled(digits: np.ndarray) -> str:
    """Digits as they are printed, such as 3 1 4."""
    return " ".join(map(str, digits))


def draw_strip(axes: Axes, image: np.ndarray, best_path: np.ndarray) -> None:
    """The strip, tinted where the best path has a digit."""
    axes.imshow(image, cmap="gray_r", aspect="auto", extent=(0, WIDTH, HEIGHT, 0))
    for t, label in enumerate(best_path):
        if label != BLANK:
            axes.axvspan(STRIDE * t, STRIDE * (t + 1), color=f"C{label}", alpha=0.35, linewidth=0)
    axes.axvline(STRIDE * len(best_path), color="black", linewidth=0.8)  # where it ends
    axes.set_yticks([])


def draw_posteriors(axes: Axes, digits: np.ndarray, at_digits: np.ndarray, at_blank: np.ndarray) -> None:
    """The probability of each digit, (frames, digits), and of the blank, (frames,)."""
    edges = STRIDE * np.arange(len(at_blank) + 1)
    axes.stairs(at_blank, edges, color="grey", linestyle=":")
    for s, digit in enumerate(digits):
        axes.stairs(at_digits[:, s], edges, color=f"C{digit}", alpha=0.35, fill=True)
        axes.stairs(at_digits[:, s], edges, color=f"C{digit}")
    axes.axvline(edges[-1], color="black", linewidth=0.8)
    axes.set(ylim=(-0.35, 1.08), yticks=[0, 0.5, 1], ylabel="posterior")


def draw_path(axes: Axes, best_path: np.ndarray) -> None:
    """The class of each frame below the curves."""
    for t, label in enumerate(best_path):
        text, color = ("·", "grey") if label == BLANK else (str(label), f"C{label}")
        axes.text(STRIDE * (t + 0.5), -0.17, text, color=color, ha="center", va="center", weight="bold")


# %% [markdown]
# ## Run
#
# The test strips are used once, at the very end, by the model that did best in validation.


# %%
def main() -> None:
    """Trains, restores the best model and tests it."""
    args = parse_arguments()
    out = args.out.resolve()  # Orbax takes absolute paths only
    out.mkdir(parents=True, exist_ok=True)
    training, *held_out = load_data()
    rng = np.random.default_rng(SPLIT_SEED)
    validation, test = (draw_strips(data, HELD_OUT_STRIPS, rng) for data in held_out)

    model = Recogniser(nnx.Rngs(args.seed))
    history = train(model, training, validation, steps=args.steps, seed=args.seed, out=out)
    plot_curves(history, out / "curves.png")

    _, log_probs = evaluate(restore(out), test)
    chosen = examples(log_probs, test)
    plot_alignment(log_probs[chosen], Strips(*(array[chosen] for array in test)), out / "alignment.png")
    for picture in ("curves.png", "alignment.png"):
        show(out / picture)
    print(f"held-out character error rate: {percent(error_rate(log_probs, test))}")


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2500, help="training steps (default: 2500)")
    parser.add_argument("--seed", type=int, default=0, help="seeds everything but the data split (default: 0)")
    parser.add_argument("--out", type=Path, default=here / "runs" / "ctc_digits", help="folder for everything written")
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
