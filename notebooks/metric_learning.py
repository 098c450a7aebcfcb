# %% [markdown]
# # Three numbers for an image: triplet, supervised contrastive and circle loss
#
# Metric learning wants no classes from a network but places: images of the same digit close together, others apart. A
# small convolutional network, written with Flax NNX and Optax, puts scikit-learn's handwritten digits on a sphere,
# three numbers for each image, with `jaxloss.triplet_margin_loss`, `supervised_contrastive_loss` or `circle_loss`.
# Held-out images are judged by their neighbours, beside those in the space of all 64 pixels and of its three main
# directions.
#
#     python notebooks/metric_learning.py
#
# It takes about half a minute on two CPU cores, and writes the best models, TensorBoard scalars and two pictures to
# `notebooks/runs/metric_learning`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `metric_learning.ipynb` is this script, executed. To make it again:
# `python notebooks/render.py metric_learning`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Train Flax networks that place digits on a sphere by triplet, supervised contrastive and circle loss of `jaxloss`."""

import argparse
from collections.abc import Callable
from functools import partial
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
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss

CLASSES = 10
SIZE = 3  # numbers for each image
EACH = 8  # images of each digit in a batch
LEARNING_RATE = 3e-3
MARGIN = 0.3  # of the triplet loss
NEIGHBOURS = 5
PERIOD = 50  # steps from one validation to the next
SPLIT_SEED = 0  # not --seed: the test images are the same in every run

# %% [markdown]
# ## Data
#
# 360 images are held out for the test, 240 are used for validation, 1,197 for training, with the same proportion of
# every digit. A batch for training has eight images of each digit, so that every image has both kinds of company.


# %%
class Data(NamedTuple):
    """Images (N, 8, 8, 1) in [0, 1] and their labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def load_data() -> tuple[Data, Data, Data]:
    """The training, validation and test data."""
    digits = load_digits()
    split = partial(train_test_split, random_state=SPLIT_SEED)
    rest, test = split(np.arange(len(digits.target)), test_size=360, stratify=digits.target)
    train, validation = split(rest, test_size=240, stratify=digits.target[rest])
    images, labels = (digits.images / 16).astype(np.float32)[..., None], digits.target.astype(np.int32)
    return tuple(Data(images[rows], labels[rows]) for rows in (train, validation, test))


def draw_batch(data: Data, rng: np.random.Generator) -> Data:
    """Images of every digit, the same number of each."""
    rows = np.concatenate([rng.choice(np.flatnonzero(data.labels == digit), EACH, False) for digit in range(CLASSES)])
    return Data(data.images[rows], data.labels[rows])


# %% [markdown]
# ## Model


# %%
class Embedder(nnx.Module):
    """Two convolutions and two linear layers, with dropout, to a point on a sphere."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.conv1, self.conv2 = nnx.Conv(1, 16, (3, 3), rngs=rngs), nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.hidden, self.output = nnx.Linear(4 * 4 * 32, 64, rngs=rngs), nnx.Linear(64, SIZE, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Vectors of length 1, (N, 3)."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        x = self.output(nnx.relu(self.hidden(self.dropout(x))))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


# %% [markdown]
# ## Losses
#
# `triplet_margin_loss` compares an anchor with one positive and one negative, and which these are decides whether it
# learns anything. With the farthest positive and the closest negative of each anchor, R-precision came out at 0.58
# here, no better than that of the pixels. So each pair of one digit takes the closest negative that is farther away
# than the positive: "semi-hard" (FaceNet). Choosing takes no gradient. `where` leaves out what is no pair; nothing has
# to be gathered into an array of another size, which `jit` could not do.
#
# `supervised_contrastive_loss` and `circle_loss` take the batch and its labels as they are, and compare each image with
# all others. With `chunk_size` they would never hold all similarities at once, and inside `jax.shard_map` with an
# `axis_name` they compare with the images of all devices.

# %%
Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def semi_hard_triplets(vectors: jax.Array, labels: jax.Array) -> jax.Array:
    """Triplet loss of each pair of one digit with the closest image of another that is farther away than the pair."""
    same = labels[:, None] == labels
    distance = 1 - vectors @ vectors.T  # of vectors of length 1: half of the squared distance
    farther = ~same[:, None, :] & (distance[:, None, :] > distance[:, :, None])  # (anchor, positive, negative)
    closest = jnp.argmin(jnp.where(farther, distance[:, None, :], jnp.inf), axis=-1)
    farthest = jnp.argmax(jnp.where(same, -jnp.inf, distance), axis=-1)
    negative = jnp.where(jnp.any(farther, axis=-1), closest, farthest[:, None])
    anchors, positives = (jnp.broadcast_to(v, (*same.shape, SIZE)) for v in (vectors[:, None], vectors))
    pairs = same & ~jnp.eye(len(labels), dtype=bool)
    return jaxloss.triplet_margin_loss(anchors, positives, vectors[negative], margin=MARGIN, where=pairs)


LOSSES: dict[str, Loss] = {
    "triplet": semi_hard_triplets,
    "contrastive": partial(jaxloss.supervised_contrastive_loss, temperature=0.1),
    "circle": partial(jaxloss.circle_loss, margin=0.4, gamma=16.0),
}

# %% [markdown]
# ## Neighbours
#
# Two figures. Of a classifier that asks the five closest training images, the accuracy. And of retrieval: when each
# held-out image asks for as many others as there are of its digit, the share that are of its digit (R-precision).
# It looks at whole neighbourhoods; a few close images of the right digit are easily found even by their pixels.


# %%
class Result(NamedTuple):
    """Of the five closest training images, and among the held-out images themselves."""

    accuracy: float
    r_precision: float


def judge(known: np.ndarray, known_labels: np.ndarray, vectors: np.ndarray, labels: np.ndarray) -> Result:
    """Both figures for vectors (N, D), with those of the training images."""
    neighbours = KNeighborsClassifier(NEIGHBOURS).fit(known, known_labels)
    return Result(neighbours.score(vectors, labels), r_precision(vectors, labels))


def r_precision(vectors: np.ndarray, labels: np.ndarray) -> float:
    """For each vector the share of its own label among the R closest others, where R others have it; their mean."""
    apart = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
    np.fill_diagonal(apart, np.inf)  # nobody is its own neighbour
    right = labels[np.argsort(apart, axis=-1)] == labels[:, None]
    wanted = np.bincount(labels)[labels] - 1
    among_closest = np.arange(len(labels)) < wanted[:, None]
    return float(np.mean(np.sum(right & among_closest, -1) / wanted))


def by_pixels(data: Data, test: Data) -> dict[str, Result]:
    """The same in the space of the pixels, and of its three main directions."""
    known, vectors = (part.images.reshape(len(part.images), -1) for part in (data, test))
    main = PCA(SIZE, random_state=0).fit(known)
    return {
        "64 pixels": judge(known, data.labels, vectors, test.labels),
        "3 directions": judge(main.transform(known), data.labels, main.transform(vectors), test.labels),
    }


# %% [markdown]
# ## Training
#
# Every 50 steps the model is saved if its R-precision in validation is the highest so far.


# %%
@partial(nnx.jit, static_argnums=3)
def train_step(model: Embedder, optimizer: nnx.Optimizer, batch: Data, loss: Loss) -> jax.Array:
    """Updates the parameters on one batch."""
    value, gradients = nnx.value_and_grad(lambda model: loss(model(batch.images), batch.labels))(model)
    optimizer.update(model, gradients)
    return value


@nnx.jit
def embed(model: Embedder, images: jax.Array) -> jax.Array:
    """Where the images lie."""
    return model(images)


def train(name: str, data: Data, validation: Data, *, steps: int, seed: int, out: Path) -> list[tuple[int, float]]:
    """Trains with one loss and saves the best parameters; steps, and R-precision in validation."""
    model = Embedder(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps)), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    history: list[tuple[int, float]] = []
    remove_old_events(out / "tensorboard" / name)
    with SummaryWriter(str(out / "tensorboard" / name)) as writer, ocp.StandardCheckpointer() as checkpointer:
        for step in tqdm(range(1, steps + 1), name, unit="step"):
            model.train()
            value = train_step(model, optimizer, draw_batch(data, rng), LOSSES[name])
            if step % PERIOD and step < steps:
                continue
            model.eval()
            precision = r_precision(np.asarray(embed(model, validation.images)), validation.labels)
            if all(precision > earlier for _, earlier in history):
                checkpointer.save(out / "best" / name, nnx.state(model, nnx.Param), force=True)
            history.append((step, precision))
            writer.add_scalar("loss/train", float(value), step)
            writer.add_scalar("r_precision/validation", precision, step)
    return history


def restore(name: str, out: Path) -> Embedder:
    """The model with the best parameters saved in `out`."""
    model = Embedder(nnx.Rngs(0))
    model.eval()
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(model, checkpointer.restore(out / "best" / name, nnx.state(model, nnx.Param)))
    return model


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


# %% [markdown]
# ## Pictures
#
# The embedding is a sphere, so a map of it loses nothing: longitude and latitude, in Mollweide's projection, which
# keeps areas.


# %%
def plot_maps(vectors: dict[str, np.ndarray], labels: np.ndarray, path: Path) -> None:
    """Saves a map of where the held-out images lie, with the digit in the middle of each cloud."""
    figure = Figure(figsize=(9, 9.6), layout="constrained")  # without pyplot, so no display is needed (Agg)
    places = figure.subplots(len(vectors), 1, subplot_kw={"projection": "mollweide"})
    for axes, (name, points) in zip(places, vectors.items(), strict=True):
        axes.scatter(*on_map(points), c=labels, cmap="tab10", s=12, alpha=0.7)
        for digit in range(CLASSES):
            x, y = on_map(np.mean(points[labels == digit], axis=0))
            axes.text(x, y, str(digit), fontsize=13, weight="bold", ha="center", va="center")
        axes.set(title=name, xticklabels=[], yticklabels=[])
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def on_map(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of vectors (..., 3), in radians."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))


def plot_course(histories: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Saves R-precision in validation over the steps."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, history in histories.items():
        axes.plot(*zip(*history, strict=True), label=name)
    axes.set(xlabel="step", ylabel="R-precision in validation", ylim=(None, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


# %% [markdown]
# ## Run
#
# The test images are used once, at the very end, by the models that did best in validation. Three learned numbers tell
# more of a digit's neighbours than 64 pixels do. This is one seed: that of the three losses one comes first here says
# little of the next data set.


# %%
def main() -> None:
    """Trains with each loss and compares the neighbours of held-out images."""
    args = parse_arguments()
    out = args.out.resolve()  # Orbax takes absolute paths only
    out.mkdir(parents=True, exist_ok=True)
    data, validation, test = load_data()
    histories, vectors, results = {}, {}, by_pixels(data, test)
    for name in LOSSES:
        histories[name] = train(name, data, validation, steps=args.steps, seed=args.seed, out=out)
        model = restore(name, out)
        known, vectors[name] = (np.asarray(embed(model, part.images)) for part in (data, test))
        results[name] = judge(known, data.labels, vectors[name], test.labels)
    plot_course(histories, out / "course.png")
    plot_maps(vectors, test.labels, out / "embedding.png")
    for picture in ("course.png", "embedding.png"):
        show(out / picture)
    for name, result in results.items():
        print(f"held-out {name:12}  5-NN accuracy {100 * result.accuracy:.1f} %  R-precision {result.r_precision:.3f}")


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    out = here / "runs" / "metric_learning"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="steps with each loss (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seeds everything but the data split (default: 0)")
    parser.add_argument("--out", type=Path, default=out, help="folder for everything written")
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
