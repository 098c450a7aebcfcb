# %% [markdown]
# # Coins and their rims: dice, IoU and focal loss for segmentation
#
# scikit-image comes with a photograph of 24 coins from Pompeii, unevenly lit. This example trains a small
# convolutional network, written with Flax NNX and Optax, to say for each pixel whether it is background, the inside of
# a coin, or a rim two pixels wide: a class with one pixel in twenty. It compares cross entropy, focal, dice and IoU
# loss and a sum of two by what matters in the end, the intersection over union on coins that were held out.
#
#     python notebooks/segmentation.py
#
# It takes about three minutes on two CPU cores, and writes TensorBoard scalars and two pictures to
# `notebooks/runs/segmentation`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `segmentation.ipynb` is this script, executed. To make it again: `python notebooks/render.py segmentation`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Train Flax networks to segment the coins of a photograph, with region losses of `jaxloss`."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from scipy import ndimage
from skimage.data import coins
from skimage.filters import sobel
from skimage.segmentation import watershed
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss

BACKGROUND, INSIDE, RIM = range(3)
ROWS = (0, 76, 150, 227)  # where each row of six coins begins
HEIGHT, WIDTH = 76, 64  # of a piece for training
BATCH_SIZE = 8
LEARNING_RATE = 3e-3
SEEDS = 3
PERIOD = 10  # steps from one validation to the next

# %% [markdown]
# ## Images and labels
#
# The photograph has no labels, and these were made by rule: from pixels that are surely dark or surely bright the
# watershed of the edges grows two regions, and the bright one, with its holes filled, is the coins. The first picture
# below shows the outcome, to be judged by eye: 24 regions, one for each coin.
#
# Each of the four rows of coins is one image of 76 by 384 pixels. The upper two are for training, the third for
# validation, and the fourth is held out. A batch for training is eight pieces of 76 by 64 pixels, from anywhere in the
# two rows, mirrored at random, and brighter or darker, as the photograph is from place to place.


# %%
class Data(NamedTuple):
    """Images (N, 76, W, 1), about -2 to 3, and the class of each pixel (N, 76, W)."""

    images: np.ndarray
    labels: np.ndarray


def load_data() -> tuple[Data, Data, Data]:
    """The training, validation and test data: 2, 1 and 1 rows of coins."""
    photograph = coins()
    whole = Data(((photograph - 100.0) / 50).astype(np.float32)[..., None], label(photograph))
    rows = Data(*(np.stack([part[top : top + HEIGHT] for top in ROWS]) for part in whole))
    return tuple(Data(*(part[a:b] for part in rows)) for a, b in ((0, 2), (2, 3), (3, 4)))


def label(photograph: np.ndarray) -> np.ndarray:
    """Background, inside or rim for each pixel."""
    surely = np.select([photograph < 30, photograph > 150], [1, 2])
    coin = ndimage.binary_fill_holes(watershed(sobel(photograph), surely) == 2)
    coin = ndimage.binary_opening(coin, iterations=3)  # specks of dust go, coins stay
    inside = ndimage.binary_erosion(coin, iterations=2)
    return np.select([inside, coin], [INSIDE, RIM], BACKGROUND).astype(np.int32)


def draw_batch(data: Data, rng: np.random.Generator) -> Data:
    """Pieces of the rows, mirrored, brighter or darker."""
    pieces = []
    for _ in range(BATCH_SIZE):
        row, left = rng.integers(len(data.labels)), rng.integers(data.labels.shape[2] - WIDTH + 1)
        down, along = rng.choice((1, -1), 2)
        image, labels = (part[row, :, left : left + WIDTH][::down, ::along] for part in data)
        pieces.append((image + np.float32(rng.normal(0, 0.3)), labels))
    return Data(*map(np.stack, zip(*pieces, strict=True)))


# %% [markdown]
# ## Losses
#
# All take logits with the classes last, as Flax's convolutions give them, and class indices: `axis=-1`. Nothing is
# transposed, flattened or made one-hot.
#
# - Cross entropy and focal loss are means over pixels, most of which are background or inside.
# - Dice and IoU loss compare regions: each class counts the same, however few pixels it has. They are those of the
#   whole batch. `per_sample=True` would take them image by image, and `empty="skip"` leave out what an image lacks.
# - Their sum is common: cross entropy has a gradient everywhere, dice looks at the balance.

# %%
Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
dice = partial(jaxloss.dice_loss, mode="multiclass", axis=-1)


def cross_entropy_and_dice(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The sum of both."""
    return jaxloss.cross_entropy(logits, labels, axis=-1) + dice(logits, labels)


LOSSES: dict[str, Loss] = {
    "cross entropy": partial(jaxloss.cross_entropy, axis=-1),
    "focal": partial(jaxloss.softmax_focal_loss, gamma=2.0, axis=-1),
    "dice": dice,
    "IoU": partial(jaxloss.iou_loss, mode="multiclass", axis=-1),
    "cross entropy + dice": cross_entropy_and_dice,
}

# %% [markdown]
# ## Model
#
# A small U-Net: twice down to half the size, twice up again, each time joined with what was there on the way down.


# %%
class Segmenter(nnx.Module):
    """Five convolutions and a linear layer for each pixel. It returns logits: the losses apply the softmax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        conv = partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.fine, self.middle, self.coarse = conv(1, 8), conv(8, 16, strides=2), conv(16, 32, strides=2)
        self.up1, self.up2 = conv(32 + 16, 16), conv(16 + 8, 16)
        self.output = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, 76, W, 3)."""
        fine = nnx.relu(self.fine(images))
        middle = nnx.relu(self.middle(fine))
        coarse = nnx.relu(self.coarse(middle))
        middle = nnx.relu(self.up1(joined(coarse, middle)))
        return self.output(nnx.relu(self.up2(joined(middle, fine))))


def joined(small: jax.Array, large: jax.Array) -> jax.Array:
    """Both side by side, the small one at twice its size."""
    return jnp.concatenate([small.repeat(2, axis=1).repeat(2, axis=2), large], axis=-1)


# %% [markdown]
# ## Training
#
# A loss needs nothing but its place in the step. The network is convolutional, and sees whole rows in the end.


# %%
@partial(nnx.jit, static_argnums=3)
def train_step(model: Segmenter, optimizer: nnx.Optimizer, batch: Data, loss: Loss) -> jax.Array:
    """Updates the parameters on one batch."""
    value, gradients = nnx.value_and_grad(lambda model: loss(model(batch.images), batch.labels))(model)
    optimizer.update(model, gradients)
    return value


@nnx.jit
def predict(model: Segmenter, images: jax.Array) -> jax.Array:
    """The likeliest class of each pixel."""
    return jnp.argmax(model(images), axis=-1)


class Overlap(NamedTuple):
    """Intersection over union of coins, rim included, and of rims alone."""

    coins: float
    rims: float


def overlap(predicted: np.ndarray, labels: np.ndarray) -> Overlap:
    """That of all images together."""
    return Overlap(iou(predicted > BACKGROUND, labels > BACKGROUND), iou(predicted == RIM, labels == RIM))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boolean masks, as a fraction."""
    return float(np.sum(a & b) / np.sum(a | b))


def train(name: str, data: Data, validation: Data, *, steps: int, seed: int, out: Path) -> Segmenter:
    """Trains with one loss."""
    model = Segmenter(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps)), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    with SummaryWriter(str(out)) as writer:
        for step in tqdm(range(1, steps + 1), f"{name}, seed {seed}", unit="step"):
            value = train_step(model, optimizer, draw_batch(data, rng), LOSSES[name])
            if step % PERIOD == 0:
                writer.add_scalar("loss/train", float(value), step)
                result = overlap(np.asarray(predict(model, validation.images)), validation.labels)
                for what, number in result._asdict().items():
                    writer.add_scalar(f"validation_iou/{what}", number, step)
    return model


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("**/events.out.tfevents.*"):
        file.unlink()


# %% [markdown]
# ## Pictures


# %%
COLORS = np.array([[0.15, 0.15, 0.2], [0.85, 0.7, 0.3], [0.9, 0.2, 0.2]])  # background, inside, rim


def plot_labels(path: Path) -> None:
    """Saves the photograph with the outlines of the labels, and the labels."""
    photograph = coins()
    labels = label(photograph)
    figure = Figure(figsize=(7.5, 3.3), layout="constrained")  # without pyplot, so no display is needed (Agg)
    left, right = figure.subplots(1, 2)
    left.imshow(photograph, cmap="gray")
    left.contour(labels > BACKGROUND, [0.5], colors="C3", linewidths=0.8)
    left.set_title("photograph, with the outlines of the labels")
    right.imshow(COLORS[labels])
    right.set_title(f"labels: {ndimage.label(labels > BACKGROUND)[1]} coins, rims {100 * np.mean(labels == RIM):.0f} %")
    for axes in (left, right):
        axes.set_axis_off()
        for top, name in zip(ROWS[2:], ("validation", "held out"), strict=True):
            axes.axhline(top, color="white", linestyle=":", linewidth=1)
            axes.text(2, top + 10, name, color="white", fontsize=7)
    figure.savefig(path, dpi=80)


def plot_predictions(test: Data, predicted: dict[str, np.ndarray], path: Path) -> None:
    """Saves the held-out row of coins, its labels and what each network says."""
    shown = {"image": None, "labels": test.labels, **predicted}
    figure = Figure(figsize=(6.5, 1.5 * len(shown)), layout="constrained")
    for axes, (name, classes) in zip(figure.subplots(len(shown), 1), shown.items(), strict=True):
        if classes is None:
            axes.imshow(test.images[0, :, :, 0], cmap="gray")
        else:
            axes.imshow(COLORS[classes[0]])
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_axis_off()
    figure.savefig(path, dpi=80)


# %% [markdown]
# ## Run
#
# Each loss trains three networks, from three seeds; what is printed is their mean and, behind ±, half of the distance
# between the best and the worst. The picture shows the first seed. The test images are used once, at the very end.
#
# On whole coins the losses come out alike. On rims those that look at regions are ahead, alone or in a sum, by 0.03 to
# 0.04, where seeds make a difference of up to 0.02 to either side: for cross entropy and focal loss a rim is few pixels
# among many. A loss of regions may take longer, though. With `--steps 200` the IoU loss was behind all others, and
# differed most from seed to seed.


# %%
def main() -> None:
    """Trains with each loss and compares them on the held-out row of coins."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    remove_old_events(args.out / "tensorboard")
    data, validation, test = load_data()
    plot_labels(args.out / "labels.png")
    show(args.out / "labels.png")
    predicted = {}
    for name in LOSSES:
        folder = args.out / "tensorboard" / name.replace(" ", "_")
        models = [
            train(name, data, validation, steps=args.steps, seed=seed, out=folder / str(seed))
            for seed in range(args.seeds)
        ]
        predicted[name] = [np.asarray(predict(model, test.images)) for model in models]
    plot_predictions(test, {name: of_seeds[0] for name, of_seeds in predicted.items()}, args.out / "predictions.png")
    show(args.out / "predictions.png")
    for name, of_seeds in predicted.items():
        results = zip(*(overlap(classes, test.labels) for classes in of_seeds), strict=True)
        whole, rims = map(with_spread, results)
        print(f"held-out {name:20}  coins IoU {whole}  rims IoU {rims}")


def with_spread(numbers: tuple[float, ...]) -> str:
    """Their mean, and half of their range."""
    return f"{np.mean(numbers):.3f} ± {np.ptp(numbers) / 2:.3f}"


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="steps of each network (default: 400)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"networks of each loss (default: {SEEDS})")
    parser.add_argument(
        "--out", type=Path, default=here / "runs" / "segmentation", help="folder for everything written"
    )
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
