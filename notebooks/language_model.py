# %% [markdown]
# # A language model whose logits never exist as a whole
#
# This example trains a small transformer, written with Flax NNX and Optax, to continue a text word by word. The text
# comes with Python: half a megabyte of its reference manual, which `help()` shows. The last layer and the loss are one
# call, `jaxloss.linear_cross_entropy`: it multiplies a chunk of the features with the embedding table, takes the loss
# of these logits and at once their gradient. Of all the logits, an eighth exists at a time.
#
#     python notebooks/language_model.py
#
# It takes about two minutes on two CPU cores, and writes the best model, TensorBoard scalars and two pictures to
# `notebooks/runs/language_model`. It needs the extra packages of `pip install "jaxloss[notebooks]"`.
#
# `language_model.ipynb` is this script, executed. To make it again: `python notebooks/render.py language_model`.

# %%
# In Colab, remove the first two characters of the last line here and run it. While jaxloss is on no package index,
# write "jaxloss[notebooks] @ git+" and the address of its repository between the quotes.
# %pip install -q "jaxloss[notebooks]"

# %%
"""Train a Flax transformer on the Python manual's words with `jaxloss.linear_cross_entropy`."""

import argparse
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter
from tqdm import tqdm

import jaxloss

CONTEXT = 64  # words that the model sees
FEATURES = 128
HEADS = 4
LAYERS = 2
DROPOUT = 0.2
BATCH_SIZE = 32
LEARNING_RATE = 4e-3
Z_LOSS = 1e-4
PERIOD = 50  # steps from one validation to the next
SPLIT_SEED = 0  # not --seed: the test topics are the same in every run

# %% [markdown]
# ## Words
#
# A word is a run of letters or of punctuation with the space before it, or a run of other white space. Put together
# again, words are the text. A tenth of the topics is held out for the final test, a tenth for validation. The
# vocabulary is every word that the training topics have more than once, and one for all others.


# %%
RARE = "\N{REPLACEMENT CHARACTER}"


class Data(NamedTuple):
    """The vocabulary, and the numbers of the words of three parts of the text."""

    vocabulary: list[str]
    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def load_data() -> Data:
    """Splits the topics, and numbers their words."""
    names = np.random.default_rng(SPLIT_SEED).permutation(sorted(topics))
    parts = [[words(topics[name]) for name in some] for some in np.split(names, [len(names) // 10, len(names) // 5])]
    test, validation, training = ([word for topic in part for word in topic] for part in parts)
    vocabulary = [RARE, *(word for word, count in Counter(training).most_common() if count > 1)]
    number = {word: i for i, word in enumerate(vocabulary)}
    return Data(vocabulary, *(np.array([number.get(w, 0) for w in part]) for part in (training, validation, test)))


def words(text: str) -> list[str]:
    """The words of a text; joined they are the text."""
    return re.findall(r" ?\w+| ?[^\w\s]+|\s+(?= \S)|\s+", text)


# %% [markdown]
# ## Batches
#
# A batch for training is 32 windows drawn at random. Validation and test go through their text from beginning to end;
# `mask` is false behind the end of the last window.


# %%
class Batch(NamedTuple):
    """Words (N, 64), the words that follow each (N, 64), and which of these count."""

    words: np.ndarray
    following: np.ndarray
    mask: np.ndarray


def draw_batch(text: np.ndarray, rng: np.random.Generator) -> Batch:
    """Windows at random places."""
    return windows(text, rng.integers(len(text) - CONTEXT, size=BATCH_SIZE))


def all_batches(text: np.ndarray) -> list[Batch]:
    """Windows one behind the other, of which the last are partly or wholly empty."""
    starts = np.arange(0, len(text) - 1, CONTEXT)
    starts = np.append(starts, np.full(-len(starts) % BATCH_SIZE, len(text) - 1))
    return [windows(text, some) for some in starts.reshape(-1, BATCH_SIZE)]


def windows(text: np.ndarray, starts: np.ndarray) -> Batch:
    """The windows that start at these places."""
    places = starts[:, None] + np.arange(CONTEXT)
    mask = places < len(text) - 1
    places = np.where(mask, places, 0)
    return Batch(text[places], text[places + 1], mask)


# %% [markdown]
# ## Model
#
# A transformer with layer norm first. It returns features: the logits would be their products with the embedding
# table, which is the last layer, too.


# %%
class Block(nnx.Module):
    """Attention to the words before, then two layers for each word alone."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.norm1 = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, FEATURES, decode=False, dropout_rate=DROPOUT, rngs=rngs)
        self.norm2 = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.up = nnx.Linear(FEATURES, 4 * FEATURES, rngs=rngs)
        self.down = nnx.Linear(4 * FEATURES, FEATURES, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Features (N, 64, 128) from features."""
        x += self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class LanguageModel(nnx.Module):
    """Embeddings of words and places, blocks, and a norm."""

    def __init__(self, vocabulary: int, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        small = nnx.initializers.normal(0.02)
        self.words = nnx.Embed(vocabulary, FEATURES, embedding_init=small, rngs=rngs)
        self.places = nnx.Embed(CONTEXT, FEATURES, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        """Features (N, 64, 128)."""
        x = self.dropout(self.words(words) + self.places(jnp.arange(words.shape[1])))
        mask = nnx.make_causal_mask(words)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    @property
    def table(self) -> jax.Array:
        """The embedding table (C, 128)."""
        return self.words.embedding[...]


# %% [markdown]
# ## Loss
#
# `input` is (N, 64, 128), `linear_weight` the embedding table as it is, (C, 128). The z-loss keeps the log-sum-exp of
# the logits near 0. `aux=True` hands out, from the same reading of the logits and without gradient, which rows the
# model got right, and the z-loss apart.


# %%
def loss_of(model: LanguageModel, batch: Batch, **options: str) -> tuple[Any, Any]:
    """The loss per word, and what came with it."""
    return jaxloss.linear_cross_entropy(
        model(batch.words), model.table, batch.following, where=batch.mask, z_loss=Z_LOSS, aux=True, **options
    )


@nnx.jit
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, batch: Batch) -> jax.Array:
    """Updates the parameters on one batch."""
    (loss, _), grads = nnx.value_and_grad(loss_of, has_aux=True)(model, batch)
    optimizer.update(model, grads)
    return loss


# %% [markdown]
# ## Evaluation
#
# With `reduction="sum_and_weight"` each batch gives a sum and a number of words. Added up and divided once, they are
# the exact mean, although the last batch is not full. The cross entropy is the loss without its z-loss; its
# exponential is the perplexity: among how many equally likely words the model would have to guess.


# %%
class Score(NamedTuple):
    """Cross entropy per word, and how many words of a hundred were right."""

    cross_entropy: float
    accuracy: float

    @property
    def perplexity(self) -> float:
        """The exponential of the cross entropy."""
        return float(np.exp(self.cross_entropy))


@nnx.jit
def eval_step(model: LanguageModel, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum of the cross entropies, the number of words, and the number of them that are right."""
    (total, count), found = loss_of(model, batch, reduction="sum_and_weight")
    return total - found.z_loss[0], count, found.correct.sum()


def evaluate(model: LanguageModel, text: np.ndarray) -> Score:
    """The score without dropout."""
    model.eval()
    total, count, right = np.sum([jax.device_get(eval_step(model, batch)) for batch in all_batches(text)], axis=0)
    return Score(total / count, 100 * right / count)


# %% [markdown]
# ## The loop
#
# After every 50 steps the model is saved if its validation score is the best so far.


# %%
class Period(NamedTuple):
    """What is reported after every 50 steps."""

    step: int
    train_loss: float
    validation: Score


def train(model: LanguageModel, data: Data, *, steps: int, seed: int, out: Path) -> list[Period]:
    """Trains the model and saves its best parameters in `out`."""
    rate = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, min(50, steps // 2), steps)
    optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=0.1), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    history: list[Period] = []
    losses: list[jax.Array] = []
    remove_old_events(out / "tensorboard")
    with SummaryWriter(str(out / "tensorboard")) as writer, ocp.StandardCheckpointer() as checkpointer:
        for step in tqdm(range(1, steps + 1), "training", unit="step"):
            model.train()
            losses.append(train_step(model, optimizer, draw_batch(data.training, rng)))
            if step % PERIOD and step < steps:
                continue
            # Losses leave the device only here, so that no training step waits for the one before.
            train_loss = float(np.mean(jax.device_get(losses)))
            losses.clear()
            result = Period(step, train_loss, evaluate(model, data.validation))
            if all(result.validation.cross_entropy < earlier.validation.cross_entropy for earlier in history):
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
    score = result.validation
    tqdm.write(  # print would break the progress bar
        f"step {result.step:{len(str(steps))}d}/{steps}  training loss {result.train_loss:.4f}  "
        f"validation loss {score.cross_entropy:.4f}  perplexity {score.perplexity:.1f}  right {score.accuracy:.1f} %"
    )
    writer.add_scalar("loss/train", result.train_loss, result.step)
    writer.add_scalar("loss/validation", score.cross_entropy, result.step)
    writer.add_scalar("accuracy/validation", score.accuracy, result.step)


def restore(model: LanguageModel, out: Path) -> None:
    """Gives the model the best parameters saved in `out`."""
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(model, checkpointer.restore(out / "best", nnx.state(model, nnx.Param)))


# %% [markdown]
# ## Beside the plain form
#
# The plain form makes the logits of all words, then takes their cross entropy. Value and gradients are the same but for
# rounding. `memory_analysis` is XLA's own account of a compiled program: what it needs besides its arguments and
# results, here for the value with the gradients of features and table.


# %%
def chunked_form(x: jax.Array, table: jax.Array, target: jax.Array) -> jax.Array:
    """The loss in chunks."""
    return jaxloss.linear_cross_entropy(x, table, target, z_loss=Z_LOSS)


def plain_form(x: jax.Array, table: jax.Array, target: jax.Array) -> jax.Array:
    """The loss of logits that exist."""
    logits = jnp.einsum("...h,ch->...c", x, table, preferred_element_type=jnp.float32)
    return jaxloss.cross_entropy(logits, target, axis=-1, z_loss=Z_LOSS)


FORMS = {"plain": plain_form, "linear_cross_entropy": chunked_form}


def compiled(form: str, *arrays: jax.Array | jax.ShapeDtypeStruct) -> jax.stages.Compiled:
    """A program for the value and both gradients. It is compiled, not run: arrays need not exist."""
    return jax.jit(jax.value_and_grad(FORMS[form], (0, 1))).lower(*arrays).compile()


def mebibytes(program: jax.stages.Compiled) -> float:
    """What a program needs besides its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def compare(model: LanguageModel, batch: Batch) -> None:
    """Prints value and memory of both forms on a batch, and how far their gradients are apart."""
    arrays = nnx.jit(lambda model: model(batch.words))(model), model.table, jnp.asarray(batch.following)
    gradients = []
    for form in FORMS:
        program = compiled(form, *arrays)
        value, both = program(*arrays)
        gradients.append(both)
        print(f"{form:22}loss {value:.6f}  memory {mebibytes(program):6.1f} MiB")
    apart = max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in zip(*gradients, strict=True))
    print(f"largest difference of a gradient: {apart:.0e} of its largest entry")


# %% [markdown]
# The picture shows the memory at the sizes of large models: 8,192 words with 2,048 features in float32, and
# vocabularies of up to 128,256. The programs are only compiled: these arrays need not exist.


# %%
VOCABULARIES = (32_000, 50_257, 128_256)


def plot_memory(path: Path) -> None:
    """Saves a picture of the memory over the size of the vocabulary."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")  # without pyplot, so no display is needed (Agg)
    axes = figure.subplots()
    x, target = jax.ShapeDtypeStruct((8192, 2048), "float32"), jax.ShapeDtypeStruct((8192,), "int32")
    tables = [jax.ShapeDtypeStruct((size, 2048), "float32") for size in VOCABULARIES]
    for place, form in enumerate(FORMS):
        sizes = [mebibytes(compiled(form, x, table, target)) / 2**10 for table in tables]
        bars = axes.bar(np.arange(len(sizes)) + 0.4 * place, sizes, 0.38, label=form)
        axes.bar_label(bars, [f"{size:.1f}" for size in sizes])
    axes.set_xticks(np.arange(len(VOCABULARIES)) + 0.2, [f"{c:,}" for c in VOCABULARIES])
    axes.set(xlabel="words in the vocabulary", ylabel="memory (GiB)")
    axes.legend()
    figure.savefig(path, dpi=100)


# %% [markdown]
# ## Learning curves


# %%
def plot_curves(history: list[Period], path: Path) -> None:
    """Saves a picture of the losses and the accuracy over the steps."""
    steps, train_loss, scores = zip(*history, strict=True)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, train_loss, ".-", label="training (with dropout)")
    left.plot(steps, [score.cross_entropy for score in scores], ".-", label="validation")
    left.set(xlabel="step", ylabel="loss per word")
    left.legend()
    right.plot(steps, [score.accuracy for score in scores], ".-", color="C1")
    right.set(xlabel="step", ylabel="next word right in validation (%)", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


# %% [markdown]
# ## Continuing a text
#
# Here, for one place at a time, the logits are small and are made.


# %%
@nnx.jit
def log_probabilities(model: LanguageModel, words: jax.Array, last: int) -> jax.Array:
    """Of every word to follow the last of a window that is padded behind it, (C)."""
    return jaxloss.log_softmax(model.table @ model(words[None])[0, last])


def continue_text(model: LanguageModel, data: Data, beginning: str, length: int, rng: np.random.Generator) -> str:
    """`beginning` and `length` words drawn from the model, each from its 20 most probable."""
    model.eval()
    text = [data.vocabulary.index(word) for word in words(beginning)]
    for _ in range(length):
        window = text[-CONTEXT:]
        padded = np.pad(window, (0, CONTEXT - len(window)))
        log_p = np.array(log_probabilities(model, padded, len(window) - 1), np.float64)
        log_p[0] = -np.inf  # no rare word
        log_p[log_p < np.sort(log_p)[-20]] = -np.inf
        p = np.exp(log_p)
        text.append(int(rng.choice(len(p), p=p / p.sum())))
    return "".join(data.vocabulary[word] for word in text)


# %% [markdown]
# ## Run
#
# The test topics are used once, at the very end, by the model that did best in validation.


# %%
def main() -> None:
    """Trains, restores the best model, compares both forms of the loss, and tests."""
    args = parse_arguments()
    out = args.out.resolve()  # Orbax takes absolute paths only
    out.mkdir(parents=True, exist_ok=True)
    data = load_data()

    model = LanguageModel(len(data.vocabulary), nnx.Rngs(args.seed))
    history = train(model, data, steps=args.steps, seed=args.seed, out=out)
    plot_curves(history, out / "curves.png")
    restore(model, out)
    score = evaluate(model, data.test)

    print(f"\n{BATCH_SIZE * CONTEXT:,} words, vocabulary {len(data.vocabulary):,}")
    compare(model, all_batches(data.validation)[0])
    plot_memory(out / "memory.png")
    for picture in ("curves.png", "memory.png"):
        show(out / picture)
    print(f"\n{continue_text(model, data, 'The for statement', 60, np.random.default_rng(args.seed))}\n")
    print(f"held-out perplexity: {score.perplexity:.1f}, next word right: {score.accuracy:.1f} %")


def show(path: Path) -> None:
    """Shows a picture below the cell of a notebook. A script has no such place."""
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(path))


def parse_arguments() -> argparse.Namespace:
    """The command line. Unknown arguments are passed over, because Jupyter starts its kernel with some."""
    here = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no __file__
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="seeds everything but the data split (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=here / "runs" / "language_model", help="folder for everything written"
    )
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
