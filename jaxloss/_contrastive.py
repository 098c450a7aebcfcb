"""Contrastive losses: each vector of a batch against the others.

No function here needs the whole matrix of similarities. With `chunk_size` they are formed for so many anchors at a
time, and again in the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check, _labels
from ._devices import AxisName, everyone, explicit_sharding, laid_out_like, numbers, spread_like
from ._numerics import afresh, again, compiled_once, joined, log1p, of_one, positive_part, shift, softplus, unit
from ._reduce import mean, reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction

Result = TypeVar("Result")


def info_nce_loss(
    query: ArrayLike,
    positive: ArrayLike,
    negatives: ArrayLike | None = None,
    *,
    temperature: Number = 0.1,
    normalize: bool = True,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants a query closer to its positive than to any negative: cross entropy of the positive among them.

    $$\ell_i = -\log \frac{e^{s_{ii}}}{e^{s_{ii}} + \sum_j e^{s_{ij}}}, \qquad
    s_{ij} = \frac{q_i \cdot k_j}{T \, \lVert q_i \rVert \, \lVert k_j \rVert}$$

    where the sum is over the negatives, or without them over the positives of all other queries.

    Args:
        query: Vectors q, floating point, (N, D).
        positive: A vector k for each query, (N, D).
        negatives: Vectors for all queries, (M, D), or for each its own, (N, M, D). By default the other positives.
        temperature: T, greater than 0. A number or a 0-d array, which may be traced and learned.
        normalize: Whether to divide by the lengths of the vectors.
        chunk_size: How many queries to compare at a time. By default all at once. Static.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the batch is spread over: all
            devices' vectors are compared, and a reduction is over all of them.
        where: Boolean mask, (N,) or broadcastable to it. A masked pair is neither query nor negative: what stands
            there has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the loss of each query, (N,), or a pair of scalars; float32, or float64 if an argument is. The mean
        over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `normalize` is not a bool.
        ValueError: If a shape does not fit, `temperature` is a Python number not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.info_nce_loss(jnp.eye(2), jnp.eye(2), temperature=1.0)
        Array(0.3133, dtype=float32)

    Note:
        torch has no such loss. A query without negatives costs 0. A vector of zeros has similarity 0 to all.
        Similarities have JAX's default precision of matmuls, lower than float32 on GPU and TPU: see
        `jax.default_matmul_precision`.

    References:
        van den Oord et al. (2018), "Representation Learning with Contrastive Predictive Coding",
        https://arxiv.org/abs/1807.03748
    """
    name = "info_nce_loss"
    (q, k), keep = _vectors(name, where, normalize, query=query, positive=positive)
    scale = 1 / _check.number(name, "temperature", temperature, q.dtype, low=0, above=True)
    chunk_size = _chunk(name, chunk_size)
    if negatives is None:
        loss = _in_batch(q * scale, k, keep, chunk_size, axis_name)
        return _reduced(name, loss, reduction, keep, axis_name)

    others = _negatives(name, negatives, q, keep, normalize)
    q, k = q.astype(others.dtype) * scale, k.astype(others.dtype)
    if others.ndim == 3:
        loss = _per_anchor(lambda q, own, others: _among(_dots(q, others), own), chunk_size, q, _own(q, k), others)
    else:
        loss = _compared(_among, chunk_size, q, everyone(others, axis_name), _own(q, k))
    return _reduced(name, loss, reduction, keep, axis_name)


def _negatives(name: str, negatives: ArrayLike, q: Array, keep: Array, normalize: bool) -> Array:
    n = _check.floating(name, "negatives", negatives)
    if n.shape[-1:] != q.shape[-1:] or n.ndim not in (2, 3) or (n.ndim == 3 and len(n) != len(q)):
        raise ValueError(
            f"{name}: `negatives` must have shape (M, {q.shape[1]}), or ({q.shape[0]}, M, {q.shape[1]}) for negatives "
            f"of each query's own, got {n.shape}."
        )
    n = _check.masked(n, keep[:, None, None]) if n.ndim == 3 else n
    n = n.astype(jnp.promote_types(q.dtype, n.dtype))
    return unit(n) if normalize else n


def _in_batch(q: Array, k: Array, keep: Array, chunk_size: int | None, axis_name: AxisName | None) -> Array:
    """Cross entropy of each query's own key among all keys."""
    keys, there = everyone(k, axis_name), everyone(keep, axis_name)
    number = jnp.arange(len(keys))

    def row(s: Array, own: Array, i: Array) -> Array:
        return _among(jnp.where(there & (number != i), s, -jnp.inf), own)

    return _compared(row, chunk_size, q, keys, _own(q, k), numbers(len(q), axis_name))


def _own(q: Array, k: Array) -> Array:
    return jnp.sum(q * k, 1)


def _among(others: Array, own: Array, axis: int = 0) -> Array:
    """-log of the share that a query's own key has among itself and others; never formed as a difference."""
    return softplus(_log_total(others, axis) - own)


def clip_loss(
    image_features: ArrayLike,
    text_features: ArrayLike,
    *,
    logit_scale: Number = 1 / 0.07,
    normalize: bool = True,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Finds the text of each image and the image of each text in the batch.

    $$\ell_i = -\frac12 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}} - \frac12 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}},
    \qquad s_{ij} = a \, \frac{x_i \cdot y_j}{\lVert x_i \rVert \, \lVert y_j \rVert}$$

    Args:
        image_features: Vectors x, floating point, (N, D).
        text_features: A vector y for each image, (N, D).
        logit_scale: a, the reciprocal of the temperature, greater than 0. A number or a 0-d array, which may be
            traced and learned.
        normalize: Whether to divide by the lengths of the vectors.
        chunk_size: How many rows to compare at a time. By default all at once. Static.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the batch is spread over: all
            devices' vectors are compared, and a reduction is over all of them.
        where: Boolean mask, (N,) or broadcastable to it. A masked pair is not in the batch: what stands there has
            no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the loss of each pair, (N,), or a pair of scalars; float32, or float64 if an argument is. The mean
        over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `normalize` is not a bool.
        ValueError: If a shape does not fit, `logit_scale` is a Python number not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.clip_loss(jnp.eye(2), jnp.eye(2), logit_scale=1.0)
        Array(0.3133, dtype=float32)

    Note:
        torch has no such loss. As in open_clip, `logit_scale` is the factor itself: pass `jnp.exp` of a parameter
        that holds its logarithm. open_clip takes vectors of length 1, to which `normalize` does nothing.
        Similarities have JAX's default precision of matmuls, lower than float32 on GPU and TPU: see
        `jax.default_matmul_precision`.

    References:
        Radford et al. (2021), "Learning Transferable Visual Models From Natural Language Supervision",
        https://arxiv.org/abs/2103.00020
    """
    name = "clip_loss"
    (x, y), keep = _vectors(name, where, normalize, image_features=image_features, text_features=text_features)
    scale = _check.number(name, "logit_scale", logit_scale, x.dtype, low=0, above=True)
    chunk_size = _chunk(name, chunk_size)
    x *= scale
    if chunk_size is None and axis_name is None and explicit_sharding(x) is None:
        # All are here at once: one matrix serves both ways.
        others = jnp.where(keep[:, None] & keep & ~jnp.eye(len(keep), dtype=bool), _similarities(x, y), -jnp.inf)
        of_images, of_texts = (_among(others, _own(x, y), axis) for axis in (1, 0))
    else:
        of_images, of_texts = (_in_batch(*pair, keep, chunk_size, axis_name) for pair in ((x, y), (y, x)))
    return _reduced(name, (of_images + of_texts) / 2, reduction, keep, axis_name)


def siglip_loss(
    image_features: ArrayLike,
    text_features: ArrayLike,
    *,
    logit_scale: Number = 10.0,
    logit_bias: Number = -10.0,
    normalize: bool = True,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Tells for each image and text in the batch whether they belong together, each pair for itself.

    $$\ell_i = \sum_j \log \bigl(1 + e^{-z_{ij} s_{ij}}\bigr), \qquad
    s_{ij} = a \, \frac{x_i \cdot y_j}{\lVert x_i \rVert \, \lVert y_j \rVert} + b, \quad
    z_{ij} = \begin{cases} 1 & i = j \\ -1 & i \ne j \end{cases}$$

    Args:
        image_features: Vectors x, floating point, (N, D).
        text_features: A vector y for each image, (N, D).
        logit_scale: a, greater than 0. A number or a 0-d array, which may be traced and learned.
        logit_bias: b. A number or a 0-d array, which may be traced and learned.
        normalize: Whether to divide by the lengths of the vectors.
        chunk_size: How many images to compare at a time. By default all at once. Static.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the batch is spread over: all
            devices' texts are compared, passed on from device to device, and a reduction is over all images.
        where: Boolean mask, (N,) or broadcastable to it. A masked pair is not in the batch: what stands there has
            no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the loss of each image, (N,), or a pair of scalars; float32, or float64 if an argument is. The mean
        over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `normalize` is not a bool.
        ValueError: If a shape does not fit, `logit_scale` is a Python number not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.siglip_loss(jnp.eye(2), jnp.eye(2), logit_scale=1.0, logit_bias=0.0)
        Array(1.006, dtype=float32)

    Note:
        torch has no such loss. As in the paper the mean divides by the number of images and not of pairs, and the
        scale and bias default to its initial values. `logit_scale` is the factor itself: pass `jnp.exp` of a
        parameter that holds its logarithm.
        Similarities have JAX's default precision of matmuls, lower than float32 on GPU and TPU: see
        `jax.default_matmul_precision`.

    References:
        Zhai et al. (2023), "Sigmoid Loss for Language Image Pre-Training", https://arxiv.org/abs/2303.15343
    """
    name = "siglip_loss"
    (x, y), keep = _vectors(name, where, normalize, image_features=image_features, text_features=text_features)
    scale = _check.number(name, "logit_scale", logit_scale, x.dtype, low=0, above=True)
    bias = _check.number(name, "logit_bias", logit_bias, x.dtype)
    chunk_size = _chunk(name, chunk_size)
    own_number = numbers(len(x), axis_name)

    def against(texts: Array, there: Array, number: Array) -> Array:
        def row(s: Array, i: Array) -> Array:
            z = s + bias
            return jnp.sum(softplus(jnp.where(there, jnp.where(number == i, -z, z), -jnp.inf)))

        return _compared(row, chunk_size, x * scale, texts, own_number)

    if axis_name is None:
        loss = against(everyone(y, None), everyone(keep, None), jnp.arange(len(y)))
    else:
        loss = _around(against, (y, spread_like(keep, own_number), own_number), axis_name)
    return _reduced(name, loss, reduction, keep, axis_name)


def _around(against: Callable[..., Array], texts: tuple[Array, ...], axis_name: AxisName) -> Array:
    """The sum of `against` the texts of every device in turn; each hands on to the next what it has, in a ring."""
    size = lax.axis_size(axis_name)
    to_the_next = [(i, (i + 1) % size) for i in range(size)]

    def one_step(carry: tuple[Array, tuple[Array, ...]], _: None) -> tuple[tuple[Array, tuple[Array, ...]], None]:
        loss, texts = carry
        texts = jax.tree.map(lambda a: lax.ppermute(a, axis_name, to_the_next), texts)
        return (loss + against(*texts), texts), None

    (loss, _), _ = lax.scan(one_step, (against(*texts), texts), length=size - 1)
    return loss


def nt_xent_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    temperature: Number = 0.1,
    normalize: bool = True,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""SimCLR's normalised, temperature-scaled cross entropy of every positive against all negatives.

    $$\ell_i = \sum_{p \in P_i} -\log \frac{e^{s_{ip}}}{e^{s_{ip}} + \sum_{j \in N_i} e^{s_{ij}}}, \qquad
    s_{ij} = \frac{x_i \cdot x_j}{T \, \lVert x_i \rVert \, \lVert x_j \rVert}$$

    where P are the other vectors with the anchor's label and N those with another label.

    Args:
        input: Vectors x, floating point, (N, D).
        target: A label for each vector, (N,), any integer dtype; or a second view of each, floating point, (N, D).
            Then all 2N vectors are anchors, each with its other view as the one positive.
        temperature: T, greater than 0. A number or a 0-d array, which may be traced and learned.
        normalize: Whether to divide by the lengths of the vectors.
        chunk_size: How many anchors to compare at a time. By default all at once. Static.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the batch is spread over: all
            devices' vectors are compared, and a reduction is over all of them.
        where: Boolean mask, (N,) or broadcastable to it. A masked vector, with its other view, is neither anchor
            nor positive nor negative: what stands there has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            With labels the mean divides by the number of positive pairs, to which an anchor without a positive adds
            none; with views by the number of anchors.

    Returns:
        A scalar, the loss of each anchor, (N,), with views the mean of the two, or a pair of scalars; float32, or
        float64 if an argument is. The mean over nothing, no pair at all included, is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `normalize` is not a bool.
        ValueError: If a shape does not fit, `temperature` is a Python number not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> jaxloss.nt_xent_loss(x, jnp.array([7, 7, 3]), temperature=1.0)
        Array(0.3133, dtype=float32)

    Note:
        torch has no such loss. As in optax and pytorch-metric-learning, other positives are not in the denominator;
        in `supervised_contrastive_loss` they are. A batch without a positive pair is NaN in the mean, as in optax, but
        (0, 0) with "sum_and_weight", so that it does no harm among others.
        Similarities have JAX's default precision of matmuls, lower than float32 on GPU and TPU: see
        `jax.default_matmul_precision`.

    References:
        Chen et al. (2020), "A Simple Framework for Contrastive Learning", https://arxiv.org/abs/2002.05709
    """
    name = "nt_xent_loss"
    second = _check.as_integers(target) is None and _check.array(name, "target", target).ndim > 1
    if second:
        views, keep = _vectors(name, where, normalize, input=input, target=target)
        x, counted = jnp.concatenate(views), jnp.concatenate([keep, keep])
        labels = jnp.tile(numbers(len(keep), axis_name), 2)
    else:
        (x,), keep = _vectors(name, where, normalize, input=input)
        counted, labels = keep, _groups(name, target, len(x))
    scale = 1 / _check.number(name, "temperature", temperature, x.dtype, low=0, above=True)
    batch = _batch(x, labels, counted, axis_name)

    def row(s: Array, label: Array, i: Array) -> tuple[Array, Array]:
        same = batch.labels == label
        positives = same & batch.there & (batch.number != i)
        negatives = _log_total(jnp.where(~same & batch.there, s, -jnp.inf))
        return jnp.sum(softplus(jnp.where(positives, negatives - s, -jnp.inf))), jnp.sum(positives, dtype=s.dtype)

    loss, pairs = _compared(row, _chunk(name, chunk_size), x * scale, batch.vectors, labels, numbers(len(x), axis_name))
    if second:
        return _reduced(name, jnp.mean(loss.reshape(2, -1), 0), reduction, keep, axis_name)
    return _reduced(name, loss, reduction, keep, axis_name, share=pairs)


def supervised_contrastive_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    temperature: Number = 0.1,
    normalize: bool = True,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Pulls vectors of one class together: the mean cross entropy of an anchor's positives among all others.

    $$\ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e^{s_{ip}}}{\sum_{j \ne i} e^{s_{ij}}}, \qquad
    s_{ij} = \frac{x_i \cdot x_j}{T \, \lVert x_i \rVert \, \lVert x_j \rVert}$$

    where P are the other vectors with the anchor's label.

    Args:
        input: Vectors x, floating point, (N, D).
        target: A label for each vector, (N,), any integer dtype.
        temperature: T, greater than 0. A number or a 0-d array, which may be traced and learned.
        normalize: Whether to divide by the lengths of the vectors.
        chunk_size: How many anchors to compare at a time. By default all at once. Static.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the batch is spread over: all
            devices' vectors are compared, and a reduction is over all of them.
        where: Boolean mask, (N,) or broadcastable to it. A masked vector is neither anchor nor positive nor
            negative: what stands there has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            An anchor without a positive is in neither of the two.

    Returns:
        A scalar, the loss of each anchor, (N,), or a pair of scalars; float32, or float64 if an argument is. The mean
        over nothing, no positive at all included, is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `normalize` is not a bool.
        ValueError: If a shape does not fit, `temperature` is a Python number not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> jaxloss.supervised_contrastive_loss(x, jnp.array([7, 7, 3]), temperature=1.0)
        Array(0.3133, dtype=float32)

    Note:
        torch has no such loss. It is the paper's "out" form, with the mean over positives outside the logarithm.
        Several views of a sample are several vectors with one label.
        Similarities have JAX's default precision of matmuls, lower than float32 on GPU and TPU: see
        `jax.default_matmul_precision`.

    References:
        Khosla et al. (2020), "Supervised Contrastive Learning", https://arxiv.org/abs/2004.11362
    """
    name = "supervised_contrastive_loss"
    (x,), keep = _vectors(name, where, normalize, input=input)
    labels = _groups(name, target, len(x))
    batch = _batch(x, labels, keep, axis_name)
    scale = 1 / _check.number(name, "temperature", temperature, x.dtype, low=0, above=True)

    def row(s: Array, label: Array, i: Array) -> tuple[Array, Array]:
        same, another = batch.labels == label, batch.number != i
        positives = same & batch.there & another
        pairs = jnp.sum(positives, dtype=s.dtype)
        # With several the loss is at least the logarithm of their number; that of one alone can be tiny.
        alone = pairs == 1
        top, total = _top_and_total(jnp.where(batch.there & jnp.where(alone, ~same, another), s, -jnp.inf), 0)
        right = jnp.sum(jnp.where(positives, s, 0)) / jnp.maximum(pairs, 1)
        cost = log1p(total - 1) - (right - top)
        return jnp.where(alone, softplus(cost), cost), pairs > 0

    loss, paired = _compared(
        row, _chunk(name, chunk_size), x * scale, batch.vectors, labels, numbers(len(x), axis_name)
    )
    return _reduced(name, loss, reduction, keep & paired, axis_name)


def circle_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    margin: Number = 0.4,
    gamma: Number = 80.0,
    normalize: bool = True,
    chunk_size: int | None = None,
    axis_name: AxisName | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants every positive closer than every negative, and pulls hardest at what is furthest from where it should be.

    $$\ell_i = \log \Bigl(1 + \sum_{n \in N_i} e^{\gamma \alpha_n (s_n - m)} \sum_{p \in P_i}
    e^{-\gamma \alpha_p (s_p - 1 + m)}\Bigr), \qquad
    \alpha_n = \max(0, s_n + m), \quad \alpha_p = \max(0, 1 + m - s_p)$$

    where s is the cosine between the anchor and another vector, P those with its label and N those with another.

    Args:
        input: Vectors, floating point, (N, D).
        target: A label for each vector, (N,), any integer dtype.
        margin: m, how far from 1 and 0 the cosines may stay. A number or a 0-d array.
        gamma: Scale of the logits, greater than 0. A number or a 0-d array, which may be traced.
        normalize: Whether to divide by the lengths of the vectors.
        chunk_size: How many anchors to compare at a time. By default all at once. Static.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the batch is spread over: all
            devices' vectors are compared, and a reduction is over all of them.
        where: Boolean mask, (N,) or broadcastable to it. A masked vector is neither anchor nor positive nor
            negative: what stands there has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            An anchor without a positive or without a negative is in neither of the two.

    Returns:
        A scalar, the loss of each anchor, (N,), or a pair of scalars; float32, or float64 if an argument is. The mean
        over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `normalize` is not a bool.
        ValueError: If a shape does not fit, `gamma` is a Python number not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> jaxloss.circle_loss(x, jnp.array([7, 7, 3]), margin=0.25, gamma=2.0)
        Array(0.5759, dtype=float32)

    Note:
        torch has no such loss. As in the paper the weights alpha carry no gradient; in Keras they do. The paper uses
        m = 0.25 with gamma = 256 for faces and 80 for retrieval.
        Similarities have JAX's default precision of matmuls, lower than float32 on GPU and TPU: see
        `jax.default_matmul_precision`.

    References:
        Sun et al. (2020), "Circle Loss", https://arxiv.org/abs/2002.10857
    """
    name = "circle_loss"
    (x,), keep = _vectors(name, where, normalize, input=input)
    labels = _groups(name, target, len(x))
    batch = _batch(x, labels, keep, axis_name)
    margin = _check.number(name, "margin", margin, x.dtype)
    gamma = _check.number(name, "gamma", gamma, x.dtype, low=0, above=True)

    def row(s: Array, label: Array, i: Array) -> tuple[Array, Array]:
        same, held = batch.labels == label, lax.stop_gradient(s)
        positives, negatives = same & batch.there & (batch.number != i), ~same & batch.there
        pull = _log_total(jnp.where(positives, -gamma * positive_part(1 + margin - held) * (s - 1 + margin), -jnp.inf))
        push = _log_total(jnp.where(negatives, gamma * positive_part(held + margin) * (s - margin), -jnp.inf))
        return softplus(pull + push), (pull != -jnp.inf) & (push != -jnp.inf)

    loss, complete = _compared(row, _chunk(name, chunk_size), x, batch.vectors, labels, numbers(len(x), axis_name))
    return _reduced(name, loss, reduction, keep & complete, axis_name)


def _vectors(name: str, where: ArrayLike | None, normalize: bool, **values: ArrayLike) -> tuple[list[Array], Array]:
    """Vectors (N, D), zero where masked and otherwise of length 1, and which count."""
    _check.flag(name, "normalize", normalize)
    arrays, keep, _ = _check.rows(name, -1, where, integers=(), **values)
    if arrays[0].ndim != 2:
        raise ValueError(f"{name}: `{next(iter(values))}` must be a batch of vectors, (N, D), got {arrays[0].shape}.")
    every = jnp.ones(len(arrays[0]), bool) if keep is None else keep
    return [unit(v) if normalize else v for v in arrays], every


class Batch(NamedTuple):
    """All that an anchor is compared with, of every device."""

    vectors: Array
    labels: Array
    there: Array
    number: Array


def _batch(vectors: Array, labels: Array, there: Array, axis_name: AxisName | None) -> Batch:
    vectors, labels, there = (everyone(a, axis_name) for a in (vectors, labels, there))
    return Batch(vectors, labels, there, jnp.arange(len(vectors)))


def _groups(name: str, target: ArrayLike, number: int) -> Array:
    """A label for each vector. Those that are not JAX's are numbered anew, so that none is narrowed."""
    labels = _labels.indices(name, "target", target)
    if labels.shape != (number,):
        raise ValueError(f"{name}: `target` must have one label for each vector, ({number},), got {labels.shape}.")
    return jnp.asarray(np.unique(labels, return_inverse=True)[1] if isinstance(labels, np.ndarray) else labels)


def _reduced(
    name: str,
    loss: Array,
    reduction: str,
    keep: Array,
    axis_name: AxisName | None,
    share: Array | None = None,
) -> Reduced:
    if axis_name is None or reduction not in ("mean", "sum", "sum_and_weight"):
        return reduce(name, loss, reduction, keep, share)
    total, weight = lax.psum(reduce(name, loss, "sum_and_weight", keep, share), axis_name)
    return {"mean": mean(total, weight), "sum": total, "sum_and_weight": (total, weight)}[reduction]


def _chunk(name: str, chunk_size: int | None) -> int | None:
    return None if chunk_size is None else _check.chunk_size(name, chunk_size)


def _per_anchor(row: Callable[..., Result], chunk_size: int | None, *anchors: Array) -> Result:
    """`row` of each anchor: of all at once, or of some at a time, which the backward pass computes again."""
    anchors = (anchors[0], *(laid_out_like(a, anchors[0]) for a in anchors[1:]))
    if chunk_size is None:
        return jax.vmap(row)(*anchors)
    anchors = tuple(everyone(a, None) for a in anchors)  # a loop over explicitly sharded rows does not exist
    again = jax.checkpoint(lambda anchor: row(*anchor), prevent_cse=False)
    results: Result = lax.map(again, anchors, batch_size=chunk_size)
    return results


def _compared(
    row: Callable[..., Result], chunk_size: int | None, vectors: Array, keys: Array, *anchors: Array
) -> Result:
    """`row` of each vector's similarities to the keys, and of what else belongs to it, as `_per_anchor` has it."""
    if chunk_size is None:
        return _per_anchor(row, None, _similarities(vectors, keys), *anchors)
    return _per_anchor(lambda v, *own: row(_dots(v, keys), *own), chunk_size, vectors, *anchors)


def _dots(x: Array, y: Array) -> Array:
    """The products of x, one vector or several, with all vectors y, which are the last axis: sums are over these."""
    return _dot(x, y, x.ndim - 1, 1)


def _dot(x: Array, y: Array, axis_x: int, axis_y: int) -> Array:
    # In JAX's default precision: with the highest the whole loss takes a GPU several times as long.
    return lax.dot_general(x, y, (((axis_x,), (axis_y,)), ((), ())))


@jax.custom_jvp
def _similarities(x: Array, y: Array) -> Array:
    """The products of all vectors x with all y."""
    return _dots(x, y)


@_similarities.defjvp
def _similarities_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # Left to autodiff, the gradient for y would be the product of a transposed matrix, which takes a CPU twice the time
    # of another. This is (xᵀ G)ᵀ, with small transposes which `again` keeps XLA from moving back.
    (x, y), (dx, dy) = primals, tangents
    return _similarities(x, y), _dots(dx, y) + _dot(_again_as_one(x.T), _again_as_one(dy.T), 0, 0)


@jax.jit  # `again` is unfolded in a linear function, and then compiled at each call outside of jit
def _again_as_one(x: Array) -> Array:
    return again(x)[0]


def _log_total(logits: Array, axis: int = 0) -> Array:
    """log Σ exp, -inf if there is nothing."""
    top, total = _top_and_total(logits, axis)
    return top + log1p(total - 1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
@compiled_once(1)
def _top_and_total(logits: Array, axis: int) -> tuple[Array, Array]:
    """The largest logit, a constant to differentiation, and Σ exp of all less that one."""

    def apart(logits: Array) -> tuple[Array, Array]:
        z, top = shift(logits, axis)
        return jnp.squeeze(top, axis), jnp.sum(jnp.exp(z), axis)

    def at_once(logits: Array) -> tuple[Array, Array]:
        top, total = joined(axis, *of_one(logits))
        return top, total

    # Each reading of all pairs is a pass over memory on a GPU.
    found: tuple[Array, Array] = lax.platform_dependent(logits, cpu=apart, tpu=apart, default=at_once)
    return found


@_top_and_total.defjvp
def _top_and_total_jvp(
    axis: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    top, total = _top_and_total(*primals, axis)
    (logits,) = afresh(*primals, shared_by_cpu=True)
    e = jnp.exp(logits - jnp.expand_dims(top, axis))
    return (top, total), (jnp.zeros_like(top), jnp.sum(e * tangents[0], axis))
