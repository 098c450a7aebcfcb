"""The last matmul of a classifier and its cross entropy in one: logits that never exist as a whole."""

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from . import _check, _rows
from ._chunks import over_rows
from ._devices import AxisName, Classes, MeshAxes, alone, explicit_sharding, mesh_axes, vary_alike
from ._numerics import at_least_float32, upcast
from ._reduce import REDUCTIONS, denominator, mean, reduce
from ._types import Array, ArrayLike, KernelImplementation, Number, Reduced, Reduction, RowStatistics


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    logit_softcap: Number | None = None,
    aux: bool = False,
    axis_name: AxisName | None = None,
    feature_axis: int = -1,
    chunk_size: int | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    implementation: KernelImplementation = "auto",
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Cross entropy of a linear layer's logits, of which no more than a chunk of rows ever exists.

    $$\ell = \operatorname{cross\_entropy}(x W^\top + b,\; y)$$

    With a large vocabulary the logits are the largest array in training. Here a chunk of rows is multiplied with W, its
    loss is taken, and at once its gradient is multiplied into those of x and W: three matmuls in all, and the memory
    of one chunk. The matmuls take the inputs' dtype and add up in float32; everything between them is in float32.

    Args:
        input: Features x, floating point: (H), (N, H), or with more leading axes, such as (batch, time, H).
        linear_weight: Weight W of the layer, floating point: (C, H), or (C, d1, ..., dK, H) for K-dimensional loss. An
            embedding table (V, H) is one; for the kernel (H, C) of a Dense layer pass `feature_axis=0`.
        target: Class indices of any integer dtype, () for (H), (N) for (N, H), and so on, with d1, ..., dK behind; or
            class probabilities q, floating point, in the shape of the logits: the input's with C for H, with
            d1, ..., dK behind. They are neither checked nor normalised.
        linear_bias: Bias b, (C) or (C, d1, ..., dK).
        ignore_index: Rows with this class index count neither in the sum nor in the mean. None is -100. With class
            probabilities it means nothing and is refused.
        label_smoothing: ε in [0, 1], as in `cross_entropy`. A number or a 0-d array, which may be traced.
        z_loss: ζ ≥ 0, as in `cross_entropy`. A number or a 0-d array.
        logit_softcap: s > 0, as in `cross_entropy`, or None. A number or a 0-d array.
        aux: Whether to return the pair (loss, statistics), as in `cross_entropy`.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the classes are spread over, as in
            `cross_entropy`: `linear_weight`, `linear_bias`, `weight` and class probabilities hold this device's
            classes, and so do their gradients.
        feature_axis: The axis of `linear_weight` that holds the features: the last, or 0 for (H, C) or
            (H, C, d1, ..., dK). No transposed copy of the weight or of its gradient is made in either case.
        chunk_size: How many rows of `input` have logits at a time. By default an eighth of them, but never so few
            that their logits are small beside the weight, nor so many that they exceed a GiB.
        accumulator_dtype: The dtype in which the weight's gradient is added up over the chunks, by default at
            least float32. bfloat16 saves half of that memory and loses digits with every chunk.
        implementation: "xla" carries a `jax.custom_vjp`; "pallas" reads each row of logits once for its sums, in a
            kernel for CUDA that is interpreted on a CPU; "auto" takes it on CUDA where it is faster. "autodiff" is
            the same arithmetic without custom_vjp, for `jax.jvp`, `jax.jacfwd` and `jax.linearize`, which a
            custom_vjp refuses; its reverse mode computes each chunk again, and adds the weight's gradient up in the
            weight's dtype.
        weight: Weight w of each class, (C,).
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            The mean divides by the sum of w at the targets that count; with class probabilities by the number
            of rows. With "none" the gradient needs a fourth matmul, since each row's cotangent comes later.

    Returns:
        A scalar, the unreduced loss in the input's shape without H, with d1, ..., dK behind, or a pair of scalars;
        float32, or float64 if an argument is; with `aux` in a pair with the statistics. The mean over nothing is
        NaN with gradient 0. A class index outside [0, C) makes its row's loss and gradient NaN, and with them the
        gradients of weight and bias that the row is a part of.

    Raises:
        TypeError: If a dtype does not fit, such as class indices that are floating point.
        ValueError: If a shape does not fit, a Python number such as `label_smoothing` is out of its range, or an
            option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x, w = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> jaxloss.linear_cross_entropy(x, w, jnp.array([2, 0]))
        Array(1.8103, dtype=float32)
        >>> jaxloss.cross_entropy(x @ w.T, jnp.array([2, 0]))
        Array(1.8103, dtype=float32)

    Note:
        Differs from torch on purpose, as `cross_entropy` does. torch's chunks, which have to be asked for, take class
        indices without smoothing alone; here every option works in chunks, and so do second derivatives and `vmap`. If
        dtypes differ, both factors of the matmul are converted to the wider one: cast a float32 weight to bfloat16
        yourself for fast matmuls. float32 matmuls have JAX's default precision, which is lower on GPU and TPU: see
        `jax.default_matmul_precision`.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.linear_cross_entropy.html
        Wijmans et al. (2025), "Cut Your Losses in Large-Vocabulary Language Models".
    """
    name = "linear_cross_entropy"
    x, w = _check.floating(name, "input", input), _check.floating(name, "linear_weight", linear_weight)
    features = _features(name, feature_axis, x, w)
    outputs = _check.without(features, w.shape)  # (C, d1, ..., dK)
    b = None if linear_bias is None else _bias(name, linear_bias, outputs)
    _check.choice(name, "implementation", implementation, ("auto", "xla", "pallas", "autodiff"))
    if implementation == "pallas" and len(outputs) > 1:
        raise ValueError(f'{name}: implementation "pallas" needs a `linear_weight` with two axes, got shape {w.shape}.')
    _check.choice(name, "reduction", reduction, REDUCTIONS)
    _check.flag(name, "aux", aux)
    matmul = jnp.result_type(x, w)
    wide, over = at_least_float32(matmul), mesh_axes(axis_name)
    precise = wide if b is None else jnp.promote_types(wide, b.dtype)
    logits = jax.eval_shape(partial(jnp.zeros, (*x.shape[:-1], *outputs), precise))
    terms, keep, share = _rows.terms(
        name,
        target,
        logits,
        Classes(x.ndim - 1, over),
        ignore_index=_ignore_index(name, ignore_index, target),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        weight=weight,
        where=where,
    )
    chunks = _chunks(name, chunk_size, accumulator_dtype, x, outputs, wide)
    plan = _Plan(features, over, aux, implementation, matmul, wide, *chunks)
    shape = _check.without(x.ndim - 1, logits.shape)
    weights = denominator(jnp.promote_types(precise, terms.scale.dtype), math.prod(shape), keep, share)
    args = _Args(
        _flat(x.ndim - 1, _features_that_count(x, keep)).astype(matmul),
        w.astype(matmul),
        b,
        jax.tree.map(partial(_flat, x.ndim - 1), terms),
        None,
    )
    args = vary_alike(args, over)._replace(weight=weights if reduction == "mean" else None)
    with _check.forward_mode_hint(name, "pass implementation='autodiff'"):
        of = _losses if implementation == "autodiff" else _each if reduction == "none" else _total
        loss, found = of(plan, args)
    if loss.ndim:
        loss = reduce(name, loss.reshape(shape), reduction, keep, share)
    elif reduction == "sum_and_weight":
        loss = loss, weights
    if found is None:
        return loss
    found = jax.tree.map(lambda a: a.reshape(shape), found)
    return loss, _rows.reduced(name, found, reduction, keep, share)


def _features(name: str, axis: int, x: Array, w: Array) -> int:
    """The axis of the weight that is contracted, counted from the front."""
    if x.ndim == 0:
        raise ValueError(f"{name}: `input` must have a feature axis, got a scalar.")
    if w.ndim < 2:
        raise ValueError(f"{name}: `linear_weight` must have a class and a feature axis, got shape {w.shape}.")
    axis = _check.integer(name, "feature_axis", axis)
    if axis not in (0, -1, w.ndim - 1):
        raise ValueError(
            f"{name}: `feature_axis` must be the first or the last axis of `linear_weight`, got {axis} "
            f"for shape {w.shape}."
        )
    axis %= w.ndim
    if w.shape[axis] != x.shape[-1]:
        turned = axis != 0 and w.shape[0] == x.shape[-1]
        remedy = "; for a kernel (H, C), pass `feature_axis=0`" if turned else ""
        raise ValueError(
            f"{name}: `input` and `linear_weight` must have the same number of features, got {x.shape[-1]} of shape "
            f"{x.shape} and {w.shape[axis]} on axis {axis} of shape {w.shape}{remedy}."
        )
    outputs = _check.without(axis, w.shape)
    if outputs[0] == 0:
        raise ValueError(f"{name}: `linear_weight` must have at least one class, got shape {w.shape}.")
    if x.ndim == 1 and len(outputs) > 1:
        raise ValueError(
            f"{name}: a K-dimensional loss, of `linear_weight` {w.shape}, needs an `input` (N, H), got {x.shape}."
        )
    return axis


def _bias(name: str, value: ArrayLike, outputs: _check.Shape) -> Array:
    b = _check.floating(name, "linear_bias", value)
    if b.shape != outputs:
        raise ValueError(
            f"{name}: `linear_bias` must have the shape of `linear_weight` without features, {outputs}, got {b.shape}."
        )
    return upcast(b)


def _ignore_index(name: str, value: int | None, target: ArrayLike) -> int:
    if value is None:
        return -100
    value = _check.integer(name, "ignore_index", value)
    if _check.as_integers(target) is None and jnp.issubdtype(_check.array(name, "target", target).dtype, jnp.floating):
        raise ValueError(
            f"{name}: `ignore_index` has no meaning with class probabilities, got {value}; mask rows with `where=`."
        )
    return value


class _Plan(NamedTuple):
    """What is known while tracing."""

    features: int  # the axis of the weight that is contracted
    axis_name: MeshAxes  # over which the classes are spread
    aux: bool
    implementation: KernelImplementation
    matmul: jnp.dtype  # of the factors of every matmul
    wide: jnp.dtype  # of their sums
    chunk: int  # rows at a time
    accumulator: jnp.dtype  # of the weight's gradient

    @property
    def classes(self) -> Classes:
        """Of a chunk of logits."""
        return Classes(1, self.axis_name)


class _Args(NamedTuple):
    """What can be differentiated, or with None for what is not wanted, the gradients."""

    x: Array  # (N, H)
    w: Array  # (C, *D, H) or (H, C, *D)
    b: Array | None  # (C, *D)
    terms: _rows.Terms  # (N or 1, C or 1, *D)
    weight: Array | None  # what the sum over all rows is divided by, a constant


def _chunks(
    name: str,
    size: int | None,
    accumulator: jax.typing.DTypeLike | None,
    x: Array,
    outputs: _check.Shape,
    wide: jnp.dtype,
) -> tuple[int, jnp.dtype]:
    """Rows at a time, all chunks of about the same size, and the dtype of the accumulator."""
    rows, width = math.prod(x.shape[:-1]), max(1, math.prod(outputs))
    if size is None:
        # Each chunk reads and writes the accumulator of the weight's gradient, H·C numbers, for logits of size·C.
        size = max(rows // 8, x.shape[-1] // 4, 2**20 // width)
        size = min(size, max(2**28 // width, 128))
    else:
        size = _check.chunk_size(name, size)
    number = max(1, -(-rows // size))
    dtype = wide if accumulator is None else jnp.dtype(accumulator)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: `accumulator_dtype` must be floating point, got {dtype}.")
    return max(1, -(-rows // number)), dtype


def _features_that_count(x: Array, keep: Array | None) -> Array:
    """Rows of features, zero where none of their losses counts."""
    if keep is None:
        return x
    return _check.masked(x, jnp.any(keep, tuple(range(x.ndim - 1, keep.ndim)))[..., None])


def _flat(lead: int, a: Array) -> Array:
    """The leading axes as one."""
    return a.reshape(math.prod(a.shape[:lead]), *a.shape[lead:]) if a.ndim else a


# Terms with one entry for each row go through the chunks with their rows; the others stay outside.


def _split(terms: _rows.Terms, soft: bool) -> tuple[_rows.Terms, _rows.Terms]:
    none: Any = None
    shared = _rows.Terms(none, terms.scale if soft else none, None, terms.uniform, None, terms.cap)
    return terms._replace(scale=none if soft else terms.scale, uniform=None, cap=None), shared


def _apart(each: _rows.Terms) -> tuple[_rows.Terms, Array | None]:
    """Class probabilities, which are as large as the logits, by themselves."""
    none: Any = None
    return (each._replace(target=none), each.target) if _rows.is_soft(each) else (each, None)


def _join(each: _rows.Terms, shared: _rows.Terms, target: Array | None = None) -> _rows.Terms:
    given = {**shared._asdict(), "target": target}
    return each._replace(**{name: a for name, a in given.items() if a is not None})


def _logits(plan: _Plan, x: Array, args: _Args) -> Array:
    y = _dot(x, args.w, (1,), (plan.features,), plan.wide)
    return y if args.b is None else y + args.b


def _dot(
    a: Array, b: Array, over_a: tuple[int, ...], over_b: tuple[int, ...], dtype: jnp.dtype, like: Array | None = None
) -> Array:
    """A product over some axes of each; laid out as `like` is, where that is part of types."""
    layout = None if like is None else explicit_sharding(like)
    return lax.dot_general(a, b, ((over_a, over_b), ((), ())), preferred_element_type=dtype, out_sharding=layout)


Found: TypeAlias = tuple[Array, RowStatistics | None]


# Compiled as a whole: calls outside a `jax.jit` compile once, and jax_debug_nans sees no masked row.


@partial(jax.jit, static_argnums=0)
def _losses(plan: _Plan, args: _Args) -> Found:
    """The loss of each row, (N, 1, *D), in plain operations."""
    terms, shared = _split(args.terms, _rows.is_soft(args.terms))

    def of(rows: tuple[Array, _rows.Terms], target: Array | None, total: None) -> tuple[Found, None]:
        x, each = rows
        whole = _join(each, shared, target)
        return _rows.losses(plan.classes, plan.implementation, plan.aux, _logits(plan, x, args), whole)[:2], total

    each, target = _apart(terms) if plan.implementation != "autodiff" else (terms, None)
    found: Found = over_rows(of, (args.x, each), plan.chunk, None, target)[0]
    return found


@partial(jax.jit, static_argnums=0)
def _with_gradient(plan: _Plan, args: _Args, wanted: _Args, g: Array) -> tuple[Found, _Args]:
    """The loss of each row, and what is wanted of the gradient of their sum with coefficients `g`, or with one for all.

    The gradients of features and weight are in the precision that they were added up in.
    """
    soft = _rows.is_soft(args.terms)
    terms, shared = _split(args.terms, soft)
    classes = tuple(i for i in range(args.w.ndim) if i != plan.features)

    none: Any = None
    nothing = {name: none for name, a in wanted.terms._asdict().items() if a is None}

    def of(rows: tuple[Array, _rows.Terms, Array | None], target: Array | None, total: _Args) -> tuple[Any, _Args]:
        x, each, g_each = rows
        whole = _join(each, shared, target)
        logits = _logits(plan, x, args)
        loss, found, sums = _rows.losses(plan.classes, plan.implementation, plan.aux, logits, whole)
        g_rows = _check.masked(jnp.full_like(loss, g), each.keep) if g_each is None else g_each
        dlogits, dterms = _rows.pull(plan.classes, logits, sums, whole, g_rows)
        d = dlogits.astype(plan.matmul)
        dx = None if wanted.x is None else _dot(d, args.w, tuple(range(1, d.ndim)), classes, plan.wide, x)
        dw = None if total.w is None else _plus_product(plan, total.w, x, d)
        db = None if total.b is None else total.b + jnp.sum(dlogits, 0).astype(total.b.dtype)
        deach, dshared = _split(dterms._replace(**nothing), soft)
        return (loss, found, dx, deach), _Args(none, dw, db, jax.tree.map(jnp.add, total.terms, dshared), None)

    start: _Args = jax.tree.map(jnp.zeros_like, wanted._replace(x=none, terms=_split(wanted.terms, soft)[1]))
    if wanted.w is not None:
        start = start._replace(w=jnp.zeros_like(wanted.w, plan.accumulator))
    start = vary_alike((start, args))[0]
    each, target = _apart(terms)
    rows = args.x, each, g if g.ndim else None
    (loss, found, dx, deach), total = over_rows(of, rows, plan.chunk, start, target)
    return (loss, found), total._replace(x=dx, terms=_join(deach, total.terms))


BLOCK = 2**20  # entries of the weight's gradient that are worked on at a time on a CPU


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _plus_product(plan: _Plan, total: Array, x: Array, d: Array) -> Array:
    """`total`, in place, with a chunk's part of the weight's gradient added."""
    if total.size < 2 * BLOCK or not alone():
        return total + _product(plan, x, d, total)
    # On a GPU the matmul itself adds to what stands there. On a CPU it would have a copy of the gradient beside it.
    plus: Array = lax.platform_dependent(
        total, x, d, cpu=partial(_in_blocks, plan), default=lambda total, x, d: total + _product(plan, x, d, total)
    )
    return plus


@_plus_product.defjvp
def _plus_product_jvp(
    plan: _Plan, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    _, x, d = primals
    dtotal, dx, dd = tangents
    return _plus_product(plan, *primals), dtotal + _product(plan, dx, d, dtotal) + _product(plan, x, dd, dtotal)


def _product(plan: _Plan, x: Array, d: Array, like: Array) -> Array:
    pair = (x, d) if plan.features == 0 else (d, x)
    product = _dot(*pair, (0,), (0,), jnp.promote_types(plan.matmul, plan.accumulator), like)
    return product.astype(plan.accumulator)


def _in_blocks(plan: _Plan, total: Array, x: Array, d: Array) -> Array:
    axis, classes = 1 if plan.features == 0 else 0, d.shape[1]
    size = -(-classes // -(-total.size // BLOCK))

    def step(i: Array, total: Array) -> Array:
        first = jnp.minimum(i * size, classes - size)
        # The last block begins early, at classes that have had theirs.
        due = jnp.expand_dims(first + jnp.arange(size) >= i * size, range(1, d.ndim - 1))
        part = lax.dynamic_slice_in_dim(total, first, size, axis)
        part += _product(plan, x, _check.masked(lax.dynamic_slice_in_dim(d, first, size, 1), due), part)
        return lax.dynamic_update_slice_in_dim(total, part, first, axis)

    summed: Array = lax.fori_loop(0, -(-classes // size), step, total)
    return summed


# A mean or a sum gives every row the same coefficient. So the forward rule can take the gradient while a chunk's logits
# are there, and the backward rule only scales it, behind a plain `jax.grad` by 1: three matmuls, and no other pass over
# the weight's gradient. A cotangent for each row is not known before the backward pass, which computes the logits
# again. All rules are plain operations, so that they can be differentiated in turn.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(plan: _Plan, args: _Args) -> Found:
    """The sum or the mean over all rows that count."""
    return _summed(_losses(plan, args), args)


def _summed(found: Found, args: _Args) -> Found:
    total = jnp.sum(_check.masked(found[0], args.terms.keep))
    return total if args.weight is None else mean(total, args.weight), found[1]


def _total_fwd(plan: _Plan, primals: Any) -> tuple[Found, _Args]:
    args, wanted = _values(primals), _moving(primals)
    g = jnp.ones((), plan.wide) if args.weight is None else _share(args.weight)
    late = plan.matmul == jnp.float16  # in which p / N would vanish
    found, gradient = _with_gradient(plan, args, wanted, jnp.ones_like(g) if late else g)
    if late:
        gradient = _times(g, gradient)
    return _summed(found, args), gradient


def _share(weight: Array) -> Array:
    """What each row counts in a mean: nothing in one over nothing."""
    nothing = weight == 0
    return jnp.where(nothing, 0, 1 / jnp.where(nothing, 1, weight))


def _total_bwd(plan: _Plan, gradient: _Args, cotangents: Found) -> tuple[_Args | None]:
    if _is_zero(cotangents[0]):
        return (None,)
    return (_scaled(plan, plan.classes.to_parts(cotangents[0]), gradient),)


_total.defvjp(_total_fwd, _total_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _each(plan: _Plan, args: _Args) -> Found:
    """The loss of each row, (N, 1, *D)."""
    found: Found = _losses(plan, args)
    return found


def _each_fwd(plan: _Plan, primals: Any) -> tuple[Found, tuple[_Args, _Args]]:
    args = _values(primals)
    return _losses(plan, args), (args, _moving(primals))


def _each_bwd(plan: _Plan, residuals: tuple[_Args, _Args], cotangents: Found) -> tuple[_Args | None]:
    if _is_zero(cotangents[0]):
        return (None,)
    _, gradient = _with_gradient(plan, *residuals, plan.classes.to_parts(cotangents[0]))
    return (_scaled(plan, 1, gradient),)


_each.defvjp(_each_fwd, _each_bwd, symbolic_zeros=True)


def _values(primals: Any) -> Any:
    return jax.tree.map(lambda p: p.value, primals)


def _moving(primals: Any) -> Any:
    """What is differentiated, and None for the rest, whose gradients are not computed."""
    return jax.tree.map(
        lambda p: p.value if p.perturbed and jnp.issubdtype(p.value.dtype, jnp.floating) else None, primals
    )


def _is_zero(cotangent: Any) -> bool:
    return isinstance(cotangent, jax.custom_derivatives.SymbolicZero)


def _scaled(plan: _Plan, g: Array | int, gradient: _Args) -> _Args:
    """`g` times a gradient, rounded to the dtypes of the arguments."""
    scaled = _times(g, gradient)
    x, w = (None if d is None else d.astype(plan.matmul) for d in (scaled.x, scaled.w))
    return scaled._replace(x=x, w=w)


def _times(g: Array | int, gradient: _Args) -> _Args:
    scaled: _Args = jax.tree.map(lambda d: (g * d).astype(d.dtype), gradient)
    return scaled
