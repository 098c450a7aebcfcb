"""Connectionist temporal classification: the loss, from log-probabilities and from logits."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check, _lattice, _sequences, _wide
from ._devices import alone, vary_alike
from ._kernels import ctc as _kernel
from ._lattice import Shares
from ._numerics import again, at_least_float32, compiled_once, softmax, upcast
from ._reduce import reduce
from ._rows import row_sums
from ._sequences import Batch, Layout
from ._types import Array, ArrayLike, KernelImplementation, Reduced, Reduction
from ._wide import Wide

# Up to this many classes a product with one-hot labels collects states faster than a scatter does.
FEW_CLASSES = 256


def ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    batch_first: bool = False,
    implementation: KernelImplementation = "auto",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Connectionist temporal classification: the cost of a label sequence under frames of log-probabilities.

    $$\ell = -\log \sum_{\pi \in \mathcal{B}^{-1}(y)} \prod_{t} p_t(\pi_t)$$

    The sum is over every path of T classes that becomes the target y when repeated classes are merged and blanks
    removed. `ctc_loss_with_logits` takes logits and saves the passes of a `log_softmax`.

    Args:
        log_probs: Log-probabilities log p, floating point, (T, N, C), or (T, C) for a single sample. Frames behind a
            sample's length are not read. Below -1e6 a log-probability counts as -inf.
        targets: Labels y of any integer dtype, (N, S), or (S) for a single sample. What stands behind a target's length
            is not read. Or all targets one behind the other, (sum of S): then `target_lengths` must be known while
            tracing, since they decide a shape.
        input_lengths: Frames of each sample, (N), integers from 0 to T. May be traced.
        target_lengths: Labels of each sample, (N), integers from 0 to S. May be traced.
        blank: The class of the blank. It may be any class.
        zero_infinity: Whether a target that cannot be aligned costs 0 instead of inf. Its gradient is 0 either way.
        batch_first: Whether the batch is the first axis of `log_probs`, (N, T, C), instead of the second.
        implementation: "auto" and "xla" carry a `jax.custom_vjp` whose gradient is analytic and formed beside
            the loss; what is kept for the backward pass is the gradient alone. "auto" takes a kernel on CUDA where one
            applies, "pallas" insists on it. "autodiff" is the same arithmetic in plain
            operations, for `jax.jvp`, `jax.jacfwd` and `jax.linearize`, which a custom_vjp refuses.
        where: Boolean mask of the samples, (N) or broadcastable to it. Nothing of a masked sample is read.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight. As in
            torch the mean first divides each loss by the length of its target, at least 1, and so do both of the pair.

    Returns:
        A scalar, the loss of each sample (N), or a pair of scalars; float32, or float64 for a float64 input. A label
        outside [0, C) or a length that does not fit makes the loss and the gradient of its sample NaN. The mean over
        nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `blank` is no class, concatenated targets come with traced lengths, an
            option is unknown, or "pallas" cannot serve the dtype or the size.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jax.nn.log_softmax(jnp.zeros((4, 1, 3)))
        >>> jaxloss.ctc_loss(log_probs, jnp.array([[1, 2]]), jnp.array([4]), jnp.array([2]), reduction="none")
        Array([1.6864], dtype=float32)

    Note:
        Differs from torch on purpose: half precision gives a float32 loss; the gradient is the true derivative, where
        torch's is that of logits (the two agree behind a `log_softmax`); a target that cannot be aligned has gradient
        0, not NaN; frames and labels behind the lengths may hold NaN; rounding makes no loss negative; there are second
        derivatives; a length or label out of range gives NaN and does not raise.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.ctc_loss.html
        Graves et al. (2006), "Connectionist Temporal Classification", https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    _check.flag("ctc_loss", "zero_infinity", zero_infinity)
    batch = _sequences.batch(
        "ctc_loss", "log_probs", log_probs, targets, input_lengths, target_lengths, blank, batch_first, where
    )
    loss = _unreduced("ctc_loss", _Setting(batch.blank, batch.layout, False, implementation), batch)
    return _reduced("ctc_loss", loss, batch, zero_infinity, reduction)


def ctc_loss_with_logits(
    logits: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    batch_first: bool = False,
    implementation: KernelImplementation = "auto",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Connectionist temporal classification from logits: `ctc_loss` with the softmax inside.

    $$\ell = -\log \sum_{\pi \in \mathcal{B}^{-1}(y)} \prod_{t} \frac{e^{x_{t\pi_t}}}{\sum_k e^{x_{tk}}}, \qquad
    \frac{\partial \ell}{\partial x_{tc}} = p_t(c) - p_t(c \mid y)$$

    The gradient is softmax minus posterior, formed in one go.

    Args:
        logits: Logits x, floating point, (T, N, C), or (T, C) for a single sample. Frames behind a sample's length are
            not read.
        targets: Labels y of any integer dtype, (N, S), or (S) for a single sample. What stands behind a target's length
            is not read. Or all targets one behind the other, (sum of S): then `target_lengths` must be known while
            tracing, since they decide a shape.
        input_lengths: Frames of each sample, (N), integers from 0 to T. May be traced.
        target_lengths: Labels of each sample, (N), integers from 0 to S. May be traced.
        blank: The class of the blank. It may be any class.
        zero_infinity: Whether a target that cannot be aligned costs 0 instead of inf. Its gradient is 0 either way.
        batch_first: Whether the batch is the first axis of `logits`, (N, T, C), instead of the second.
        implementation: "auto" and "xla" carry a `jax.custom_vjp` whose gradient is analytic and formed beside
            the loss; what is kept for the backward pass is the gradient alone. "auto" takes a kernel on CUDA where one
            applies, "pallas" insists on it. "autodiff" is the same arithmetic in plain
            operations, for `jax.jvp`, `jax.jacfwd` and `jax.linearize`, which a custom_vjp refuses.
        where: Boolean mask of the samples, (N) or broadcastable to it. Nothing of a masked sample is read.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight. As in
            torch the mean first divides each loss by the length of its target, at least 1, and so do both of the pair.

    Returns:
        A scalar, the loss of each sample (N), or a pair of scalars; float32, or float64 for a float64 input. A label
        outside [0, C) or a length that does not fit makes the loss and the gradient of its sample NaN. The mean over
        nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `blank` is no class, concatenated targets come with traced lengths, an
            option is unknown, or "pallas" cannot serve the dtype or the size.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.zeros((4, 1, 3))
        >>> jaxloss.ctc_loss_with_logits(logits, jnp.array([[1, 2]]), jnp.array([4]), jnp.array([2]), reduction="none")
        Array([1.6864], dtype=float32)

    Note:
        torch has no such function; `F.ctc_loss(F.log_softmax(x, -1), ...)` is what it replaces. What `ctc_loss` does
        differently from torch it does too.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.ctc_loss.html
        Graves et al. (2006), "Connectionist Temporal Classification", https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    _check.flag("ctc_loss_with_logits", "zero_infinity", zero_infinity)
    batch = _sequences.batch(
        "ctc_loss_with_logits", "logits", logits, targets, input_lengths, target_lengths, blank, batch_first, where
    )
    loss = _unreduced("ctc_loss_with_logits", _Setting(batch.blank, batch.layout, True, implementation), batch)
    return _reduced("ctc_loss_with_logits", loss, batch, zero_infinity, reduction)


class _Setting(NamedTuple):
    """What is static."""

    blank: int
    layout: Layout
    logits: bool
    implementation: KernelImplementation


def _unreduced(name: str, setting: _Setting, batch: Batch) -> Array:
    _check.choice(name, "implementation", setting.implementation, ("auto", "xla", "pallas", "autodiff"))
    arrays = vary_alike((batch.scores, batch.labels, batch.frames, batch.sizes))
    if setting.implementation == "autodiff":
        return _losses(setting, *arrays)
    if setting.implementation == "pallas":
        _require_kernel(name, batch)
    with _check.forward_mode_hint(name, "pass implementation='autodiff'"):
        return _losses_custom(setting, *arrays)


def _reduced(name: str, loss: Array, batch: Batch, zero_infinity: bool, reduction: Reduction) -> Reduced:
    if zero_infinity:
        loss = jnp.where(jnp.isinf(loss), 0, loss)
    loss = jnp.where(batch.bad, jnp.nan, 1) * loss
    if reduction in ("mean", "sum_and_weight"):
        loss = loss / jnp.maximum(batch.sizes, 1)
    return reduce(name, loss[0] if batch.layout == "single" else loss, reduction, batch.keep)


def _require_kernel(name: str, batch: Batch) -> None:
    reason = _kernel_refuses(batch.scores, _sequences.length_of(batch.scores, batch.layout), batch.labels)
    if reason:
        raise ValueError(f"{name}: the kernel of implementation='pallas' does not apply: {reason}; pass 'auto'.")


def _kernel_refuses(scores: Array, length: int, labels: Array) -> str:
    return _kernel.refusal(at_least_float32(scores.dtype), length, labels.shape[1])


def _losses(setting: _Setting, scores: Array, labels: Array, frames: Array, sizes: Array) -> Array:
    """The loss of each sample, (N,), in plain operations."""
    log_total = _log_softmax_parts(setting, scores, frames) if setting.logits else None
    scores = _sequences.arranged(scores, frames, setting.layout)
    logs = _sequences.emissions(scores, labels, frames, setting.blank, log_total)
    return _loss(_lattice.forward(*logs, _sequences.may_skip(labels), sizes), scores.shape[0])


def _log_softmax_parts(setting: _Setting, logits: Array, frames: Array) -> tuple[Array, Array]:
    """The maximum of each frame, (T, N), and the logarithm of what its logits sum to when less that maximum."""
    layout = setting.layout
    there = _sequences.placed(_sequences.live(_sequences.length_of(logits, layout), frames), layout)[..., None]
    sums = row_sums(logits, logits.ndim - 1, there, "xla" if setting.implementation in ("xla", "autodiff") else "auto")
    top, rest = (_sequences.arranged(a, frames, layout)[..., 0] for a in sums)
    return top, rest


def _loss(mass: Wide, length: int) -> Array:
    loss = -_wide.log(mass)
    # A mass that rounding has lifted above 1 is 1. One far above it comes from scores that are no log-probabilities.
    slack = 4 * length * np.finfo(loss.dtype).eps
    return loss - lax.stop_gradient(jnp.where((loss < 0) & (loss > -slack), loss, 0))


# With mass Z = Σ over paths of Π p, dZ / dlog p_t(s) is the mass of the paths that are in state s at frame t. So
#     -dlog Z / dlog p_t(c) = -Σ over the states s of class c of α_t(s) β_t(s) / (p_t(s) Z),
# minus the posterior of c, and behind a softmax softmax - posterior. The blank's is what the labels leave of 1. Of few
# classes the forward rule forms that and keeps nothing else. Of many it keeps the shares of the labels, which are less,
# and the backward rule forms it with the cotangent in it: one pass over the classes less. Both being plain operations,
# they can be differentiated again.


class _Kept(NamedTuple):
    """What the gradient of many classes is formed from."""

    scores: Array  # as they came
    log_total: tuple[Array, Array] | None
    labels: Array
    frames: Array
    counts: Array  # (T, N): the frames that have a gradient
    shares: Array  # (T, S, N)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses_custom(setting: _Setting, scores: Array, labels: Array, frames: Array, sizes: Array) -> Array:
    return _losses(setting, scores, labels, frames, sizes)


def _losses_fwd(
    setting: _Setting, scores: Array, labels: Array, frames: Array, sizes: Array
) -> tuple[Array, Array | _Kept]:
    log_total = _log_softmax_parts(setting, scores, frames) if setting.logits else None
    arranged = _sequences.arranged(scores, frames, setting.layout)
    log_blank, log_labels = _lattice.apart(_sequences.emissions(arranged, labels, frames, setting.blank, log_total))
    shares = _shares(setting, arranged, labels, log_blank, log_labels, sizes)
    loss = _loss(shares.mass, len(arranged))
    counts = _sequences.live(len(arranged), frames) & (loss != jnp.inf)
    kept = _Kept(scores, log_total, labels, frames, counts, shares.labels)
    return loss, _gradient(setting, kept, jnp.ones_like(loss)) if scores.shape[-1] <= FEW_CLASSES else kept


def _losses_bwd(setting: _Setting, kept: Array | _Kept, g: Array) -> tuple[Array, None, None, None]:
    if isinstance(kept, _Kept):
        gradient = _gradient(setting, kept, g)
    else:
        gradient = (_sequences.placed(g[None, :, None], setting.layout) * kept).astype(kept.dtype)
    return gradient, None, None, None


def _gradient(setting: _Setting, kept: _Kept, g: Array) -> Array:
    scores = _sequences.arranged(kept.scores, kept.frames, setting.layout)
    gradient = jnp.zeros_like(scores, g.dtype)
    if kept.log_total is not None:
        x, top, log_rest = again(scores, *kept.log_total)
        gradient = g[:, None] * softmax(upcast(x) - top[..., None], log_rest[..., None])
        gradient = _check.masked(gradient, kept.counts[..., None])
    at_blank = g * _check.masked(1 - kept.shares.sum(1), kept.counts)
    gradient = _less_the_posterior(gradient, setting.blank, at_blank, kept.labels, g * kept.shares)
    return _sequences.placed(gradient.astype(scores.dtype), setting.layout)


_losses_custom.defvjp(_losses_fwd, _losses_bwd)


def _shares(
    setting: _Setting, scores: Array, labels: Array, log_blank: Array, log_labels: Array, sizes: Array
) -> Shares:
    kernel = setting.implementation
    if kernel == "auto" and (not alone() or _kernel_refuses(scores, scores.shape[0], labels)):
        kernel = "xla"
    return _by_platform(kernel, log_blank, log_labels, _sequences.may_skip(labels), sizes)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@compiled_once(0)
def _by_platform(kernel: str, log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> Shares:
    """In XLA, or by the kernel on CUDA; "pallas" nowhere but there and, interpreted, on a CPU."""
    arrays = log_blank, log_labels, skip, sizes
    if kernel == "xla":
        return _lattice.shares(*arrays)
    others: Any = {"default": _lattice.shares} if kernel == "auto" else {"cpu": partial(_by_kernel, interpret=True)}
    found: Shares = lax.platform_dependent(*arrays, cuda=_by_kernel, **others)
    return found


@_by_platform.defjvp
def _by_platform_jvp(kernel: str, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """Second derivatives are those of the same arithmetic in XLA."""
    return jax.jvp(_lattice.shares, primals, tangents)


def _by_kernel(log_blank: Array, log_labels: Array, skip: Array, sizes: Array, *, interpret: bool = False) -> Shares:
    ahead, behind, mass = _kernel.both_ways(log_blank, log_labels, skip, sizes, interpret=interpret)
    return Shares(_lattice.share_of(mass, _wide.times(ahead, behind)), mass)


def _less_the_posterior(gradient: Array, blank: int, at_blank: Array, labels: Array, at_labels: Array) -> Array:
    """`gradient` less the posterior of each class at each frame, (T, N, C); equal labels are added up."""
    classes = gradient.shape[2]
    if classes <= FEW_CLASSES:
        hot = jax.nn.one_hot(labels, classes, dtype=at_labels.dtype)
        posterior = jnp.einsum("tsn,nsc->tnc", at_labels, hot, precision="highest")
        return gradient - (posterior + jnp.where(jnp.arange(classes) == blank, at_blank[..., None], 0))
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(0,),
        inserted_window_dims=(2,),
        scatter_dims_to_operand_dims=(2,),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(1,),
    )
    states = jnp.pad(labels.T, ((0, 1), (0, 0)), constant_values=blank)
    at_states = jnp.concatenate([at_labels, at_blank[:, None]], 1)
    return lax.scatter_sub(gradient, states[..., None], at_states, numbers, mode="promise_in_bounds")
