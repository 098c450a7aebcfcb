"""What else the lattice of CTC tells: the best alignment of a target, and the posterior of each of its labels."""

from typing import NamedTuple

import jax.numpy as jnp

from . import _lattice, _sequences, _wide
from ._numerics import upcast
from ._types import Array, ArrayLike


class Alignment(NamedTuple):
    """The best path of each sample."""

    labels: Array
    positions: Array
    score: Array


class Posteriors(NamedTuple):
    """The probability of each label of the target, and of a blank, at each frame."""

    labels: Array
    blank: Array


def ctc_alignment(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    batch_first: bool = False,
) -> Alignment:
    r"""The most probable alignment of frames with a given target, and its log-probability.

    $$\pi^* = \arg\max_{\pi \in \mathcal{B}^{-1}(y)} \sum_t \log p_t(\pi_t)$$

    The maximum is over the paths that `ctc_loss` sums over: those that become the target y when repeated classes are
    merged and blanks removed. Of paths that are equally probable, the one whose last step comes earliest is taken.

    Args:
        log_probs: Log-probabilities log p, floating point, (T, N, C), or (T, C) for a single sample. Frames behind a
            sample's length are not read.
        targets: Labels y of any integer dtype, (N, S), or (S) for a single sample; or one behind the other, as in
            `ctc_loss`.
        input_lengths: Frames of each sample, (N), integers from 0 to T.
        target_lengths: Labels of each sample, (N), integers from 0 to S.
        blank: The class of the blank.
        batch_first: Whether the batch is the first axis of `log_probs`, (N, T, C), and of the result.

    Returns:
        An `Alignment`: `labels`, the class at each frame, int32, (T, N), (N, T) or (T); `positions`, of the same shape,
        the index into the target of the label at each frame, -1 at a blank; and `score`, the sum of the path's
        log-probabilities, (N) or a scalar, which can be differentiated. Behind a sample's end both are -1. Where no
        path exists both are -1 throughout and the score is -inf; where an argument is out of range it is NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `blank` is no class, or concatenated targets come with traced lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jnp.log(jnp.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]))
        >>> path = jaxloss.ctc_alignment(log_probs, jnp.array([1, 2]), 3, 2)
        >>> path.labels, path.positions
        (Array([1, 0, 2], dtype=int32), Array([ 0, -1,  1], dtype=int32))

    Note:
        torch has no such function, and torchaudio's forced_align is gone.

    References:
        Graves et al. (2006), "Connectionist Temporal Classification", https://www.cs.toronto.edu/~graves/icml_2006.pdf
        Kürzinger et al. (2020), "CTC-Segmentation of Large Corpora", https://arxiv.org/abs/2007.09127
    """
    batch = _sequences.batch(
        "ctc_alignment", "log_probs", log_probs, targets, input_lengths, target_lengths, blank, batch_first
    )
    scores = _sequences.arranged(batch.scores, batch.frames, batch.layout)
    log_blank, log_labels = _sequences.emissions(scores, batch.labels, batch.frames, batch.blank)
    skip = _sequences.may_skip(batch.labels)
    state, possible = _lattice.best_path(log_blank, log_labels, skip, batch.sizes)
    there = _sequences.live(scores.shape[0], batch.frames) & possible
    position = jnp.where(there & (state % 2 == 1), state // 2, -1)
    label = jnp.take_along_axis(batch.labels.T, jnp.maximum(position, 0), 0)
    label = jnp.where(position >= 0, label, jnp.where(there, batch.blank, -1))

    at_path = jnp.take_along_axis(scores, jnp.maximum(label, 0)[..., None], 2)[..., 0]
    score = jnp.sum(upcast(at_path), 0)
    score = jnp.where(batch.bad, jnp.nan, jnp.where(possible, score, -jnp.inf))
    label, position = (_sequences.placed(a, batch.layout) for a in (label, position))
    return Alignment(label, position, score[0] if batch.layout == "single" else score)


def ctc_posteriors(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    batch_first: bool = False,
) -> Posteriors:
    r"""The probability, given the target, that a frame belongs to each of its labels or to a blank.

    $$\gamma_t(s) = \frac{\alpha_t(s)\, \beta_t(s)}{p_t(y_s) \sum_{\pi \in \mathcal{B}^{-1}(y)} \prod_t p_t(\pi_t)}$$

    with α and β the mass of the paths that lead to, and go on from, label s at frame t. A factor that all classes of a
    frame share changes nothing, so that logits do as well as log-probabilities.

    Args:
        log_probs: Log-probabilities log p, floating point, (T, N, C), or (T, C) for a single sample. Frames behind a
            sample's length are not read. Below -1e6 a log-probability counts as -inf.
        targets: Labels y of any integer dtype, (N, S), or (S) for a single sample; or one behind the other, as in
            `ctc_loss`.
        input_lengths: Frames of each sample, (N), integers from 0 to T.
        target_lengths: Labels of each sample, (N), integers from 0 to S.
        blank: The class of the blank.
        batch_first: Whether the batch is the first axis of `log_probs`, (N, T, C), and of the result.

    Returns:
        `Posteriors`: `labels` for each position of the target, (T, N, S), (N, T, S) or (T, S); and `blank`, (T, N),
        (N, T) or (T). They sum to 1 at each frame of a target that can be aligned; behind a sample's end, and where no
        path exists, they are 0; where an argument is out of range, NaN. float32, or float64 for a float64 input.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `blank` is no class, or concatenated targets come with traced lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
        >>> posteriors = jaxloss.ctc_posteriors(log_probs, jnp.array([1]), 2, 1)
        >>> posteriors.labels[:, 0].tolist()
        [0.5714, 0.8571]

    References:
        Graves et al. (2006), "Connectionist Temporal Classification", https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    batch = _sequences.batch(
        "ctc_posteriors", "log_probs", log_probs, targets, input_lengths, target_lengths, blank, batch_first
    )
    scores = _sequences.arranged(batch.scores, batch.frames, batch.layout)
    logs = _sequences.emissions(scores, batch.labels, batch.frames, batch.blank)
    shares = _lattice.shares(*logs, _sequences.may_skip(batch.labels), batch.sizes)
    at_labels = shares.labels.swapaxes(1, 2)[..., : batch.width]
    there = _sequences.live(scores.shape[0], batch.frames) & (shares.mass.exponent > _wide.VANISHED)
    at_blank = jnp.where(there, jnp.maximum(1 - at_labels.sum(2), 0), 0)
    unknown = jnp.where(batch.bad, jnp.nan, 0)
    return Posteriors(
        _sequences.placed(at_labels + unknown[:, None], batch.layout),
        _sequences.placed(at_blank + unknown, batch.layout),
    )
