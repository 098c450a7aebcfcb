# %% [markdown]
# # One trunk, three tasks: how to weigh their losses
#
# From measurements of the nuclei in a cell sample, a small network written with Flax NNX answers three questions at
# once: is the tumour malignant (classification), and how large are the worst radius and the worst texture among the
# nuclei (two regressions). `jaxloss.multitask` weighs the three losses: fixed, on a schedule, or by their learned
# noise; or it takes one gradient for each task and removes what conflicts, PCGrad.
#
#     python notebooks/multitask.py
#
# It takes about a minute on two CPU cores, and writes TensorBoard scalars and two pictures to
# `notebooks/runs/multitask`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `multitask.ipynb` is this script, executed. To make it again: `python notebooks/render.py multitask`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Train one Flax trunk with a classification and two regression heads on scikit-learn's breast cancer data."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss
from jaxloss import multitask

TASKS = ("malignant", "radius", "texture")
BATCH_SIZE = 31  # 11 batches to an epoch of 341 samples
ACCUMULATED = 11  # micro-batches to a step of the optimiser
LEARNING_RATE = 3e-3
PERIOD = 20  # epochs from one validation to the next
SPLIT_SEED = 0  # not --seed: the test samples are the same in every run

# %% [markdown]
# ## Data
#
# Ten properties of the nuclei were measured in 569 samples. Each has its mean over the nuclei, the error of that mean,
# and the worst, the mean of the three largest. Means and errors are the input; the worst radius and the worst texture
# are targets, in their own units, besides the diagnosis. Tasks whose losses have different units are the rule, and what
# their weights are for.


# %%
class Data(NamedTuple):
    """Standardised measurements (N, 20), and a target of each task (N,): 0 or 1, and two numbers."""

    inputs: jax.Array
    malignant: jax.Array
    radius: jax.Array
    texture: jax.Array


def load_data() -> tuple[Data, Data, Data]:
    """The training, validation and test data: 341, 114 and 114 samples."""
    cancer = load_breast_cancer()
    names = list(cancer.feature_names)
    inputs, malignant = cancer.data[:, :20], 1 - cancer.target  # there 1 is benign
    columns = [inputs, malignant, *(cancer.data[:, names.index(f"worst {task}")] for task in TASKS[1:])]
    split = partial(train_test_split, random_state=SPLIT_SEED)
    rest, test = split(np.arange(len(malignant)), test_size=114, stratify=malignant)
    train, validation = split(rest, test_size=114, stratify=malignant[rest])
    mean, deviation = inputs[train].mean(0), inputs[train].std(0)
    columns[0] = (inputs - mean) / deviation
    parts = [[np.asarray(column[rows], np.float32) for column in columns] for rows in (train, validation, test)]
    return tuple(Data(*map(jnp.asarray, part)) for part in parts)


# %% [markdown]
# ## Model
#
# Two layers are shared; each task has a linear head of its own. Everything is computed in float16, with parameters in
# float32: on a GPU that is twice as fast. The losses take half precision as it comes and are float32 themselves.


# %%
class Model(nnx.Module):
    """A trunk and three heads."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        layer = partial(nnx.Linear, dtype=jnp.float16, rngs=rngs)
        self.trunk1, self.trunk2 = layer(20, 64), layer(64, 64)
        self.heads = nnx.Dict({task: layer(64, 1) for task in TASKS})

    def __call__(self, inputs: jax.Array) -> dict[str, jax.Array]:
        """One number for each sample (N,) and task; for the diagnosis a logit."""
        shared = nnx.relu(self.trunk2(nnx.relu(self.trunk1(inputs))))
        # Every head gives a column (N, 1), while the targets are (N,): jaxloss would refuse to broadcast them.
        return {task: head(shared)[:, 0] for task, head in self.heads.items()}


def task_losses(outputs: dict[str, jax.Array], data: Data) -> dict[str, jax.Array]:
    """The loss of each task, by name."""
    return {
        "malignant": jaxloss.binary_cross_entropy_with_logits(outputs["malignant"], data.malignant),
        "radius": jaxloss.mse_loss(outputs["radius"], data.radius),
        "texture": jaxloss.mse_loss(outputs["texture"], data.texture),
    }


# %% [markdown]
# ## Four ways to add up three losses
#
# - **fixed**: all weights are 1, the default of almost everyone.
# - **scheduled**: any optax schedule can be a weight. Here the regressions, whose errors are large at the beginning,
#   come in gradually.
# - **uncertainty**: the weight is the inverse of the noise of a task, e^-s, and its log-variance s is a parameter that
#   is trained with the others. ½ s keeps it from weighing everything by 0.
# - **PCGrad**: three gradients. What points against another task's gradient is projected away before they are added.
#
# Each is a function from the losses, the parameters and the step to `Terms`: the total, and for each task the raw loss,
# the weighted one and the weight, for the logs. PCGrad's terms are only logged.


# %%
class Method(NamedTuple):
    """How losses become `Terms`, and whether gradients are taken task by task instead of from the total."""

    terms: Callable[[dict[str, jax.Array], Any, jax.Array], multitask.Terms]
    by_task: bool = False


def methods(steps: int) -> dict[str, Method]:
    """All four by name; `steps` is the number of micro-batches."""
    late = optax.linear_schedule(0.0, 1.0, steps // 2)
    schedules = {"malignant": 1.0, "radius": late, "texture": late}
    return {
        "fixed": Method(lambda losses, params, step: multitask.weighted_sum(losses)),
        "scheduled": Method(lambda losses, params, step: multitask.weighted_sum(losses, schedules, step=step)),
        "uncertainty": Method(lambda losses, params, step: UNCERTAINTY.apply(losses, params["log_variances"])),
        "PCGrad": Method(lambda losses, params, step: multitask.weighted_sum(losses), by_task=True),
    }


UNCERTAINTY = multitask.uncertainty({"malignant": "classification", "radius": "regression", "texture": "regression"})

# %% [markdown]
# ## A step in float16
#
# Gradients in float16 vanish below 6e-8 and overflow above 65504. Flax's `DynamicScale` multiplies the loss before the
# backward pass, divides the gradients after it, in float32, and halves the factor whenever one of them is not finite.
# That step is then left out. It wraps a function of the parameters, whatever loss is inside.
#
# Optax does the rest. `MultiSteps` adds up the gradients of 11 micro-batches, `clip_by_global_norm` bounds the result,
# AdamW uses it. All micro-batches have the same number of samples, so that the mean of their means is the mean. Where
# they hold different numbers of valid entries it is not: then take `reduction="sum_and_weight"`.


# %%
class State(NamedTuple):
    """All that changes in training."""

    params: Any
    optimizer: optax.MultiStepsState
    scale: DynamicScale
    step: jax.Array


OPTIMIZER = optax.MultiSteps(
    optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.01)), ACCUMULATED
)
GRAPH = nnx.split(Model(nnx.Rngs(0)), nnx.Param)[0]


def losses_of(params: Any, data: Data) -> dict[str, jax.Array]:
    """The loss of each task under these parameters."""
    return task_losses(nnx.merge(GRAPH, params["model"])(data.inputs), data)


def train_step(method: Method, state: State, data: Data) -> tuple[State, multitask.Terms]:
    """One micro-batch."""

    def total(params: Any) -> tuple[jax.Array, multitask.Terms]:
        terms = method.terms(losses_of(params, data), params, state.step)
        return terms.total, terms

    if method.by_task:
        results = [state.scale.value_and_grad(lambda p, t=t: losses_of(p, data)[t])(state.params) for t in TASKS]
        # The three agree on the factor until one of them overflows.
        scale = jax.tree.map(lambda *each: jnp.min(jnp.stack(each)), *(result.dynamic_scale for result in results))
        finite = jnp.stack([result.finite for result in results]).all()
        gradients = multitask.pcgrad([result.grad for result in results])  # with a `key`, in random order
        terms = total(state.params)[1]
    else:
        scale, finite, (_, terms), gradients = state.scale.value_and_grad(total, has_aux=True)(state.params)
    updates, optimizer = OPTIMIZER.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    params, optimizer = jax.tree.map(partial(jnp.where, finite), (params, optimizer), (state.params, state.optimizer))
    return State(params, optimizer, scale, state.step + 1), terms


# %% [markdown]
# ## Training
#
# An epoch is one call: `jax.lax.scan` runs through its micro-batches, since state and terms are pytrees.


# %%
@partial(jax.jit, static_argnums=0)
def train_epoch(method: Method, state: State, data: Data, order: np.ndarray) -> tuple[State, multitask.Terms]:
    """All samples once, in the given order (batches, size), and the mean of each term."""
    batches = jax.tree.map(lambda column: column[order], data)
    state, terms = jax.lax.scan(partial(train_step, method), state, batches)
    return state, jax.tree.map(jnp.mean, terms)


@jax.jit
def evaluate(params: Any, data: Data) -> dict[str, jax.Array]:
    """The loss of each task, the accuracy of the diagnosis, and the explained part of each variance."""
    outputs = nnx.merge(GRAPH, params["model"])(data.inputs)
    losses = task_losses(outputs, data)
    accuracy = jnp.mean((outputs["malignant"] > 0) == (data.malignant == 1))
    explained = {f"{task} R²": 1 - losses[task] / jnp.var(getattr(data, task)) for task in TASKS[1:]}
    return {**losses, "accuracy": accuracy, **explained}


class Period(NamedTuple):
    """What is reported after every 20 epochs."""

    epoch: int
    terms: multitask.Terms
    validation: dict[str, float]


def train(name: str, method: Method, data: Data, validation: Data, *, epochs: int, seed: int, out: Path) -> tuple:
    """Trains with one method; the parameters and what was reported."""
    model = nnx.split(Model(nnx.Rngs(seed)), nnx.Param)[1]
    params = {"model": model, "log_variances": UNCERTAINTY.init(TASKS)}
    start = State(params, OPTIMIZER.init(params), DynamicScale(growth_interval=200), 0)
    # Python's numbers have weak types, for which the first epoch would be compiled separately.
    state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), start)
    history, rng = [], np.random.default_rng(seed)
    remove_old_events(out / "tensorboard" / name)
    with SummaryWriter(str(out / "tensorboard" / name)) as writer:
        for epoch in tqdm(range(1, epochs + 1), name, unit="epoch"):
            state, terms = train_epoch(method, state, data, rng.permutation(len(data.inputs)).reshape(-1, BATCH_SIZE))
            if epoch % PERIOD and epoch < epochs:
                continue
            results = {task: float(value) for task, value in evaluate(state.params, validation).items()}
            history.append(Period(epoch, jax.device_get(terms), results))
            report(writer, name, history[-1], float(state.scale.scale))
    return state.params, history


def remove_old_events(folder: Path) -> None:
    """Removes what an earlier run wrote: TensorBoard would draw both runs as one curve."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


def report(writer: SummaryWriter, name: str, period: Period, scale: float) -> None:
    """Writes every term, weight and validation result for TensorBoard, and prints a line at times."""
    for task in TASKS:
        writer.add_scalar(f"raw/{task}", period.terms.raw[task], period.epoch)
        writer.add_scalar(f"weighted/{task}", period.terms.weighted[task], period.epoch)
        writer.add_scalar(f"weight/{task}", period.terms.weights[task], period.epoch)
    writer.add_scalar("total", period.terms.total, period.epoch)
    writer.add_scalar("loss_scale", scale, period.epoch)
    for task, value in period.validation.items():
        writer.add_scalar(f"validation/{task}", value, period.epoch)
    if period.epoch % 100 == 0:
        tqdm.write(f"{name:11}  epoch {period.epoch:4d}  validation {described(period.validation)}")


def described(results: dict[str, float]) -> str:
    """Results as they are printed."""
    shown = ("malignant", "accuracy", "radius R²", "texture R²")
    return "  ".join(f"{task} {results[task]:.3f}" for task in shown)


# %% [markdown]
# ## Pictures
#
# The first shows the validation loss of each task under each method, the second the weights that the schedule and the
# uncertainty gave. The schedule leaves the diagnosis alone at first, and the regressions come later. The uncertainty
# finds that the errors of the regressions, in their units, are many times a cross entropy, and turns them down. It is
# one run on few samples: do not read a ranking into it.


# %%
def plot_losses(histories: dict[str, list[Period]], path: Path) -> None:
    """Saves the validation loss of each task over the epochs, a curve for each method."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")  # without pyplot, so no display is needed (Agg)
    titles = ("malignant: cross entropy", "worst radius: squared error", "worst texture: squared error")
    for axes, task, title in zip(figure.subplots(1, 3), TASKS, titles, strict=True):
        for name, history in histories.items():
            axes.plot([p.epoch for p in history], [p.validation[task] for p in history], label=name)
        axes.set(title=title, xlabel="epoch", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def plot_weights(histories: dict[str, list[Period]], path: Path) -> None:
    """Saves the weights of the two methods that change them."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("scheduled", "uncertainty"), strict=True):
        for task, style in zip(TASKS, ("-", "-", "--"), strict=True):
            history = histories[name]
            axes.plot([p.epoch for p in history], [p.terms.weights[task] for p in history], style, label=task)
        axes.set(title=name, xlabel="epoch", ylabel="weight")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


# %% [markdown]
# ## Run
#
# The test samples are used once, at the very end.


# %%
def main() -> None:
    """Trains with each method and compares them on the test data."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data, validation, test = load_data()
    histories, lines = {}, []
    for name, method in methods(args.epochs * len(data.inputs) // BATCH_SIZE).items():
        params, histories[name] = train(
            name, method, data, validation, epochs=args.epochs, seed=args.seed, out=args.out
        )
        results = {task: float(value) for task, value in evaluate(params, test).items()}
        lines.append(f"held-out {name:11}  {described(results)}")
    plot_losses(histories, args.out / "losses.png")
    plot_weights(histories, args.out / "weights.png")
    for picture in ("losses.png", "weights.png"):
        show(args.out / picture)
    print("\n".join(lines))


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=400, help="epochs of each method (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="seeds everything but the data split (default: 0)")
    parser.add_argument("--out", type=Path, default=here / "runs" / "multitask", help="folder for everything written")
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
