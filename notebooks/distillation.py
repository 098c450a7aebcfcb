# %% [markdown]
# # Distillation: a small network learns from what a large one says
#
# A convolutional network, written with Flax NNX, learns scikit-learn's handwritten digits from 1,197 labels. Then it is
# the teacher of a student with a sixtieth of its parameters, which is given 100 labels or none: it learns from the
# probabilities that the teacher gives to all ten classes, by `jaxloss.kl_div` at a temperature. Ten students of each
# kind, from ten seeds, are compared on held-out images with students that learn from labels alone.
#
#     python notebooks/distillation.py
#
# It takes about half a minute on two CPU cores, and writes TensorBoard scalars and two pictures to
# `notebooks/runs/distillation`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `distillation.ipynb` is this script, executed. To make it again: `python notebooks/render.py distillation`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Distil a Flax network that reads digits into small ones, with `jaxloss.kl_div` at a temperature."""

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
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss

BATCH_SIZE = 64
TEACHER_RATE, STUDENT_RATE = 3e-3, 1e-2
TEMPERATURE = 4.0
LABELLED = 100  # images whose label a student may see
STEPS = 1000  # of each student
PERIOD = 100  # steps of one compiled loop, after which the students are validated
SEEDS = 10
SPLIT_SEED = 0  # not --seeds: the test images are the same in every run

# %% [markdown]
# ## Data
#
# 360 images are held out for the test, 240 are used for validation, 1,197 for training, with the same proportion of
# every digit.


# %%
class Data(NamedTuple):
    """Images (N, 8, 8, 1) in [0, 1] and their labels (N,)."""

    images: jax.Array
    labels: jax.Array


def load_data() -> tuple[Data, Data, Data]:
    """The training, validation and test data."""
    digits = load_digits()
    split = partial(train_test_split, random_state=SPLIT_SEED)
    rest, test = split(np.arange(len(digits.target)), test_size=360, stratify=digits.target)
    train, validation = split(rest, test_size=240, stratify=digits.target[rest])
    images, labels = jnp.asarray(digits.images / 16, jnp.float32)[..., None], jnp.asarray(digits.target, jnp.int32)
    return tuple(Data(images[rows], labels[rows]) for rows in (train, validation, test))


# %% [markdown]
# ## Teacher and student


# %%
class Teacher(nnx.Module):
    """Two convolutions and two linear layers, with dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.conv1, self.conv2 = nnx.Conv(1, 16, (3, 3), rngs=rngs), nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.hidden, self.output = nnx.Linear(4 * 4 * 32, 128, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, 10)."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        return self.output(self.dropout(nnx.relu(self.hidden(self.dropout(x)))))


class Student(nnx.Module):
    """One hidden layer of 16."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.hidden, self.output = nnx.Linear(64, 16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, 10)."""
        return self.output(nnx.relu(self.hidden(images.reshape(len(images), -1))))


@nnx.jit
def teacher_step(teacher: Teacher, optimizer: nnx.Optimizer, batch: Data) -> None:
    """Updates the teacher on one batch with labels."""
    gradients = nnx.grad(lambda teacher: jaxloss.cross_entropy(teacher(batch.images), batch.labels))(teacher)
    optimizer.update(teacher, gradients)


def train_teacher(data: Data, *, epochs: int) -> Teacher:
    """Trains the teacher with all the labels."""
    teacher = Teacher(nnx.Rngs(0))
    steps = epochs * (len(data.labels) // BATCH_SIZE)
    optimizer = nnx.Optimizer(teacher, optax.adam(optax.cosine_decay_schedule(TEACHER_RATE, steps)), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for _ in tqdm(range(epochs), "teacher", unit="epoch"):
        order = rng.permutation(len(data.labels))[: len(data.labels) // BATCH_SIZE * BATCH_SIZE]
        for rows in order.reshape(-1, BATCH_SIZE):
            teacher_step(teacher, optimizer, Data(data.images[rows], data.labels[rows]))
    teacher.eval()
    return teacher


# %% [markdown]
# ## Losses
#
# Divided by a temperature, the teacher's logits give probabilities that are less sure, and so tell more of which
# digits look alike. The student's logits are divided by the same. The gradient then shrinks with the square of the
# temperature, which a factor makes good. `reduction="batchmean"` is the divergence proper, a mean over images, as in
# torch; "mean" would divide by the ten classes too.
#
# `jaxloss.distillation_loss` is the same in one call, and adds the cross entropy of labels if there are any. The script
# compares the two, value and gradient, before it trains.

# %%
Loss: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def from_labels(logits: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy; the teacher is not asked."""
    return jaxloss.cross_entropy(logits, labels)


def from_teacher(logits: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
    """Divergence from the teacher's probabilities; the labels are not looked at."""
    predicted = jaxloss.log_softmax(logits / TEMPERATURE, -1)
    wanted = jax.nn.softmax(teacher / TEMPERATURE)
    return TEMPERATURE**2 * jaxloss.kl_div(predicted, wanted, reduction="batchmean")


def difference_from_one_call(logits: jax.Array, teacher: jax.Array, labels: jax.Array) -> float:
    """The largest difference between `from_teacher` and `distillation_loss`, in value and gradient."""

    def one_call(logits: jax.Array) -> jax.Array:
        return jaxloss.distillation_loss(logits, teacher, temperature=TEMPERATURE)

    ours = jax.value_and_grad(from_teacher)(logits, teacher, labels)
    apart = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), ours, jax.value_and_grad(one_call)(logits))
    return float(max(apart))


# %% [markdown]
# ## Students
#
# Four kinds of students take the same number of steps on batches of the same size:
#
# - from the labels of 100 images;
# - from the teacher, on the same 100 images;
# - from the teacher, on all 1,197 images: no label is needed, and that is the use of it;
# - from the labels of all 1,197 images, for comparison.
#
# The teacher has seen all the labels. What the students get of them comes through it. The ten seeds, which also choose
# the 100 images, train side by side under `vmap`.

# %%
STUDENTS: dict[str, tuple[Loss, int | None]] = {
    "100 labels": (from_labels, LABELLED),
    "teacher, the 100 images": (from_teacher, LABELLED),
    "teacher, all images": (from_teacher, None),
    "all labels": (from_labels, None),
}
OPTIMIZER = optax.adam(optax.cosine_decay_schedule(STUDENT_RATE, STEPS))
GRAPH = nnx.split(Student(nnx.Rngs(0)), nnx.Param)[0]


def draw_batches(size: int, seen: int | None, seed: int) -> np.ndarray:
    """Rows of the training data for each step, (STEPS, BATCH_SIZE), from the `seen` images that the seed chooses."""
    rng = np.random.default_rng(seed)
    return rng.choice(rng.permutation(size)[:seen], (STEPS, BATCH_SIZE))


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, 0, None, None, 0))
def train_period(loss: Loss, params: Any, state: Any, data: Data, teacher: jax.Array, batches: jax.Array) -> tuple:
    """Some steps of one student, and the loss of the last."""

    def step(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        def value_of(params: Any) -> jax.Array:
            return loss(nnx.merge(GRAPH, params)(data.images[rows]), teacher[rows], data.labels[rows])

        params, state = carry
        value, gradients = jax.value_and_grad(value_of)(params)
        updates, state = OPTIMIZER.update(gradients, state)
        return (optax.apply_updates(params, updates), state), value

    (params, state), values = jax.lax.scan(step, (params, state), batches)
    return params, state, values[-1]


@jax.jit
def accuracies(params: Any, data: Data) -> jax.Array:
    """The share of images that each student reads right."""
    logits = jax.vmap(lambda params: nnx.merge(GRAPH, params)(data.images))(params)
    return jnp.mean(jnp.argmax(logits, -1) == data.labels, -1)


def train_students(name: str, data: Data, teacher: jax.Array, validation: Data, *, seeds: int, out: Path) -> Any:
    """Parameters of students of one kind, from all the seeds."""
    loss, seen = STUDENTS[name]
    starts = [nnx.split(Student(nnx.Rngs(seed)), nnx.Param)[1] for seed in range(seeds)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    state = jax.vmap(OPTIMIZER.init)(params)
    batches = np.stack([draw_batches(len(data.labels), seen, seed) for seed in range(seeds)])
    folder = out / "tensorboard" / name.replace(",", "").replace(" ", "_")
    remove_old_events(folder)
    with SummaryWriter(str(folder)) as writer:
        for end in tqdm(range(PERIOD, STEPS + 1, PERIOD), name, unit="period"):
            params, state, values = train_period(loss, params, state, data, teacher, batches[:, end - PERIOD : end])
            writer.add_scalar("loss/train", float(jnp.mean(values)), end)
            writer.add_scalar("accuracy/validation", float(jnp.mean(accuracies(params, validation))), end)
    return params


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


# %% [markdown]
# ## Pictures


# %%
def plot_teaching(data: Data, teacher: jax.Array, path: Path) -> None:
    """Saves the held-out images that the teacher is least sure of, with its probabilities at two temperatures."""
    probabilities = {t: np.asarray(jax.nn.softmax(teacher / t)) for t in (1.0, TEMPERATURE)}
    unsure = np.argsort(np.max(probabilities[1.0], -1))[:5]
    figure = Figure(figsize=(9, 3.8), layout="constrained")  # without pyplot, so no display is needed (Agg)
    axes = figure.subplots(2, len(unsure), height_ratios=(1, 1.2))
    for (above, below), row in zip(axes.T, unsure, strict=True):
        above.imshow(data.images[row, :, :, 0], cmap="gray_r")
        above.set_title(f"label {data.labels[row]}", fontsize=9)
        above.set_axis_off()
        for n, (t, p) in enumerate(probabilities.items()):
            below.bar(np.arange(10) + 0.4 * n - 0.2, p[row], 0.4, label=f"temperature {t:g}")
        below.set(xticks=range(10), ylim=(0, 1))
    axes[1, 0].set_ylabel("teacher's probability")
    axes[1, 0].legend(fontsize=7)
    figure.savefig(path, dpi=100)


def plot_students(results: dict[str, np.ndarray], teacher: float, path: Path) -> None:
    """Saves the held-out accuracy of every student."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for n, (name, result) in enumerate(reversed(results.items())):
        color = f"C{int(name.startswith('teacher'))}"
        axes.plot(100 * result, np.full(len(result), n), "o", color=color, alpha=0.4, markeredgewidth=0)
        axes.plot(100 * np.mean(result), n, "|", color=color, markersize=24)
    axes.axvline(100 * teacher, color="grey", linestyle=":", label="the teacher")
    axes.set(yticks=range(len(results)), yticklabels=reversed(results), ylim=(-0.6, len(results) - 0.4))
    axes.set_xlabel("held-out accuracy (%), a dot for each student, a bar for their mean")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=100)


# %% [markdown]
# ## Run
#
# Behind ± stands the standard deviation over the students of a kind. The test images are used once, at the very end.
#
# On the same 100 images the teacher's probabilities are worth six points of accuracy more than labels. On all images,
# students that never saw a label do about as well as those that saw all 1,197, on average a little better; no student
# is as good as the teacher.


# %%
def main() -> None:
    """Trains the teacher and all students and compares them on the test images."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data, validation, test = load_data()
    teacher = train_teacher(data, epochs=args.epochs)
    said = jnp.concatenate([teacher(part) for part in np.array_split(data.images, 4)])
    start = Student(nnx.Rngs(0))
    print(f"parameters: teacher {parameters(teacher):,}, student {parameters(start):,}")
    apart = difference_from_one_call(start(data.images), said, data.labels)
    print(f"kl_div by hand and distillation_loss differ by at most {apart:.0e}")
    results = {}
    for name in STUDENTS:
        params = train_students(name, data, said, validation, seeds=args.seeds, out=args.out)
        results[name] = np.asarray(accuracies(params, test))
    on_test = teacher(test.images)
    accuracy = float(jnp.mean(jnp.argmax(on_test, -1) == test.labels))
    plot_teaching(test, on_test, args.out / "teaching.png")
    plot_students(results, accuracy, args.out / "students.png")
    for picture in ("teaching.png", "students.png"):
        show(args.out / picture)
    print(f"held-out teacher: {100 * accuracy:.1f} %")
    for name, result in results.items():
        print(f"held-out {name:23}  accuracy {100 * np.mean(result):.1f} ± {100 * np.std(result):.1f} %")


def parameters(model: nnx.Module) -> int:
    """How many numbers it learns."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the teacher (default: 30)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"students of each kind (default: {SEEDS})")
    parser.add_argument(
        "--out", type=Path, default=here / "runs" / "distillation", help="folder for everything written"
    )
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
