"""Arguments of CTC: scores over time, label sequences and their lengths, checked and brought into one form."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from . import _check, _labels
from ._numerics import upcast
from ._types import Array, ArrayLike

Layout: TypeAlias = Literal["time first", "batch first", "single"]


class Batch(NamedTuple):
    """Scores as they came, labels (N, max(width, 1)), frames and sizes (N,), all of it in range.

    A sample that is masked, or `bad`, has no frames and no labels.
    """

    scores: Array
    labels: Array
    frames: Array
    sizes: Array
    keep: Array | None
    bad: Array
    blank: int
    width: int
    layout: Layout


def batch(
    name: str,
    argument: str,
    scores: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    batch_first: bool,
    where: ArrayLike | None = None,
) -> Batch:
    """The arguments in one form; `argument` is what the caller calls the scores."""
    x = _check.floating(name, argument, scores)
    _check.flag(name, "batch_first", batch_first)
    if x.ndim not in (2, 3):
        shape = "(N, T, C)" if batch_first else "(T, N, C)"
        raise ValueError(f"{name}: `{argument}` must have shape {shape}, or (T, C) for a single sample, got {x.shape}.")
    single = x.ndim == 2
    count, length = (1, x.shape[0]) if single else x.shape[:2] if batch_first else x.shape[1::-1]
    classes = x.shape[-1]
    blank = _check.integer(name, "blank", blank)
    if not 0 <= blank < classes:
        raise ValueError(f"{name}: `blank` must be a class, from 0 to {classes - 1}, got {blank}.")
    labels = _padded(name, targets, target_lengths, count, single)
    frames, frames_fit = _lengths(name, "input_lengths", input_lengths, count, single, length)
    width = labels.shape[1]
    sizes, sizes_fit = _lengths(name, "target_lengths", target_lengths, count, single, width)
    labels = labels if width else np.zeros((count, 1), np.int32)

    keep = _check.mask(name, where, () if single else (count,))
    counts = jnp.ones(count, bool) if keep is None else keep.reshape(count)
    index = _labels.narrowed(labels, classes)
    known = (index >= 0) & (index < classes)
    behind = jnp.arange(index.shape[1]) >= sizes[:, None]
    fits = frames_fit & sizes_fit & jnp.all(known | behind, 1)
    usable = counts & fits
    return Batch(
        scores=x,
        labels=jnp.where(known & ~behind, index, 0),
        frames=jnp.where(usable, frames, 0),
        sizes=jnp.where(usable, sizes, 0),
        keep=keep,
        bad=counts & ~fits,
        blank=blank,
        width=width,
        layout="single" if single else "batch first" if batch_first else "time first",
    )


def _lengths(name: str, argument: str, value: ArrayLike, count: int, single: bool, limit: int) -> tuple[Array, Array]:
    """Lengths as int32 in [0, limit], and which of them came so."""
    t = _labels.indices(name, argument, value)
    if t.shape != (count,) and not (single and t.shape == ()):
        raise ValueError(f"{name}: `{argument}` must have one entry for each sample, shape ({count},), got {t.shape}.")
    index = _labels.narrowed(t.reshape(count), limit + 1)
    fits = (index >= 0) & (index <= limit)
    return jnp.where(fits, index, 0), fits


def _padded(
    name: str, targets: ArrayLike, target_lengths: ArrayLike, count: int, single: bool
) -> Array | _check.HostArray:
    """Labels as (N, S)."""
    t = _labels.indices(name, "targets", targets)
    if t.ndim == 1:
        t = t[None] if single else _cut_up(name, t, target_lengths, count)
    if t.ndim != 2 or t.shape[0] != count:
        shapes = "(S)" if single else f"({count}, S), or that of all targets one behind the other"
        raise ValueError(f"{name}: `targets` must have shape {shapes}, got {t.shape}.")
    return t


def _cut_up(name: str, t: Array | _check.HostArray, target_lengths: ArrayLike, count: int) -> Array | _check.HostArray:
    """Concatenated targets as (N, longest)."""
    try:
        sizes = np.asarray(target_lengths)
    except jax.errors.TracerArrayConversionError:
        raise ValueError(
            f"{name}: `targets` of shape {t.shape}, one behind the other, need `target_lengths` that are known while "
            f"tracing, since they decide a shape; pad the targets to (N, S), or close over the lengths."
        ) from None
    if sizes.shape != (count,) or (sizes < 0).any() or sizes.sum() != t.size:
        raise ValueError(
            f"{name}: `targets` of shape {t.shape}, one behind the other, need {count} `target_lengths` that add up to "
            f"{t.size}, got {sizes.tolist()}; or pad the targets to (N, S)."
        )
    if t.size == 0:
        return t.reshape(count, 0)
    place = (np.cumsum(sizes) - sizes)[:, None] + np.arange(sizes.max())
    return t[np.minimum(place, t.size - 1)]


def live(length: int, frames: Array) -> Array:
    """Which frames are there, (T, N)."""
    return jnp.arange(length)[:, None] < frames


def arranged(scores: Array, frames: Array, layout: Layout) -> Array:
    """Scores as (T, N, C), 0 behind the ends: masked first, since even a transpose would look at what stands there."""
    x = _check.masked(scores, placed(live(length_of(scores, layout), frames), layout)[..., None])
    return x[:, None] if layout == "single" else x.swapaxes(0, 1) if layout == "batch first" else x


def length_of(scores: Array, layout: Layout) -> int:
    """T."""
    return scores.shape[1 if layout == "batch first" else 0]


def placed(x: Array, layout: Layout) -> Array:
    """What is (T, N, ...) with its frames and samples on the axes where the scores have them."""
    return x[:, 0] if layout == "single" else x.swapaxes(0, 1) if layout == "batch first" else x


def emissions(
    scores: Array, labels: Array, frames: Array, blank: int, log_total: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """log p(blank) (T, N) and log p(label) (T, S, N), less both summands of `log_total` where scores are logits.

    A frame behind the end is one of a certain blank, which changes no mass.
    """
    there = live(len(scores), frames)
    # Sample by sample, so that those on different devices stay apart; and frame by frame, or a CPU would go through all
    # frames for one label after the other.
    index = jnp.broadcast_to(labels, (len(scores), *labels.shape))
    log_labels = upcast(jnp.take_along_axis(scores, index, 2, mode="promise_in_bounds")).swapaxes(1, 2)
    log_blank = upcast(scores[..., blank])
    for summand in log_total or ():
        log_blank, log_labels = log_blank - summand, log_labels - summand[:, None]
    return jnp.where(there, log_blank, 0), jnp.where(there[:, None], log_labels, -jnp.inf)


def may_skip(labels: Array) -> Array:
    """Where label s may follow label s - 1 with no blank between, (S, N)."""
    return (labels != jnp.roll(labels, 1, 1)).T
