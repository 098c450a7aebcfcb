"""What holds for every loss: the rows of `cases.CASES` against the properties of the contract."""

from contextlib import contextmanager
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from cases import CASES, Case, differentiable, one_of_each, one_of_each_family

import jaxloss


def of(cases):
    return pytest.mark.parametrize("case", list(cases), ids=str)


each = of(CASES)
masked = of(case for case in CASES if not case.regions)
# Where a loss has several rows, what does not hang on its formula takes one; JAXLOSS_TESTS=all takes them all.
one_each = of(one_of_each(CASES))
masked_one_each = of(one_of_each(case for case in CASES if not case.regions))
# The three that every shared property needs and that reach all of the tail: no option, a number, a weight.
REDUCTIONS = ("none", "sum", "mean", "sum_and_weight")


def reduced(loss, share, reduction):
    return {
        "none": loss,
        "sum": loss.sum(),
        "mean": loss.sum() / share.sum(),
        "sum_and_weight": (loss.sum(), share.sum()),
    }[reduction]


def split(case: Case, arrays):
    """A function of the differentiable arrays alone, and those arrays."""
    fixed = {name: a for name, a in arrays.items() if name not in differentiable(arrays)}

    def loss(moving, **options):
        return case.loss(**moving, **fixed, **{**case.options, **options})

    return loss, differentiable(arrays)


def with_mask(case: Case, arrays, seed=1):
    """A mask over the unreduced loss with entries of both kinds, and the loss there."""
    loss, share = case.expected(arrays)
    keep = np.random.default_rng(seed).random(loss.shape) < 0.6
    keep.flat[0], keep.flat[-1] = True, False
    return keep, np.where(keep, loss, 0), np.where(keep, share, 0)


def poisoned(case: Case, arrays, keep, poison):
    """The same arrays with `poison`, or a class that does not exist, wherever `keep` is False."""
    axes = case.inner_axes(arrays)
    out = dict(arrays)
    for name in case.rows:
        a = arrays[name]
        mask = np.expand_dims(keep, axes[: a.ndim - keep.ndim])
        out[name] = np.where(mask, a, poison if np.issubdtype(a.dtype, np.floating) else 10**6)
    return out


@each
def test_value_for_every_shape_and_reduction(case):
    for shape in case.shapes:
        arrays = case.data(shape=shape)
        expected = case.expected(arrays)
        got = quick.jit(lambda a: {r: case.loss(**a, **case.options, reduction=r) for r in REDUCTIONS})(arrays)
        chex.assert_trees_all_close(got, {r: reduced(*expected, r) for r in REDUCTIONS}, rtol=1e-12, atol=1e-14)
        assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(got))


@masked_one_each
def test_mask_of_every_shape_of_broadcast(case):
    arrays = case.data()
    loss, share = case.expected(arrays)
    masks = [np.asarray(False), np.asarray(True), np.arange(loss.shape[-1]) % 2 == 0]
    if loss.ndim > 1:
        masks.append((np.arange(loss.shape[0]) % 2 == 0).reshape(-1, *[1] * (loss.ndim - 1)))

    @quick.jit
    def values(arrays, masks):
        return [case.loss(**arrays, **case.options, where=where, reduction="sum_and_weight") for where in masks]

    for where, got in zip(masks, values(arrays, masks), strict=True):
        keep = np.broadcast_to(where, loss.shape)
        chex.assert_trees_all_close(got, (loss[keep].sum(), share[keep].sum()), rtol=1e-12, atol=1e-14)


@of(case for case in CASES if not case.held)
def test_first_derivative_is_that_of_the_oracle(case):
    arrays = case.data()
    loss, moving = split(case, arrays)
    rng = np.random.default_rng(5)
    cotangent = rng.normal(size=case.expected(arrays)[0].shape)
    grads = quick.jit(jax.grad(lambda m: jnp.sum(cotangent * loss(m, reduction="none"))))(moving)
    for name, a in moving.items():
        direction = rng.normal(size=a.shape)
        ahead, behind = (
            np.sum(cotangent * case.expected({**arrays, name: a + step * direction})[0]) for step in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(np.vdot(grads[name], direction), (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)


@one_each
def test_mean_has_the_gradient_of_the_sum_over_a_constant(case):
    arrays = case.data()
    loss, moving = split(case, arrays)
    _, share = case.expected(arrays)

    @quick.jit
    def gradients(moving):
        mean, total = (jax.grad(partial(loss, reduction=r))(moving) for r in ("mean", "sum"))
        return mean, total, jax.grad(lambda m: loss(m, reduction="sum_and_weight")[1])(moving)

    mean, total, weight = jax.device_get(gradients(moving))
    chex.assert_trees_all_close(mean, jax.tree.map(lambda g: g / share.sum(), total), rtol=1e-12, atol=1e-15)
    chex.assert_trees_all_equal(weight, jax.tree.map(np.zeros_like, weight))


@of(case for case in CASES if case.numbers)
def test_derivative_of_every_number(case):
    arrays = case.data()
    grads = quick.jit(jax.grad(lambda numbers: case.loss(**arrays, **case.static, **numbers, reduction="sum")))(
        case.numbers
    )
    for name, value in case.numbers.items():
        step = 1e-6 * value
        ahead, behind = (case.expected(arrays, **{name: value + s})[0].sum() for s in (step, -step))
        np.testing.assert_allclose(grads[name], (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


@of(one_of_each(case for case in CASES if not case.held))
def test_second_derivatives(case):
    loss, moving = split(case, case.data())
    # The sum, since the mean holds its denominator constant, weights and all.
    quick.check_two_derivatives(partial(loss, reduction="sum"), moving, rtol=1e-4, atol=1e-5)
    name = case.first

    def of_one(x):
        return loss({**moving, name: x})

    forward, reverse = quick.jit(lambda x: (jax.hessian(of_one)(x), jax.jacrev(jax.jacrev(of_one))(x)))(moving[name])
    np.testing.assert_allclose(forward, reverse, atol=1e-12)


@of(one_of_each(case for case in CASES if case.forward_mode))
def test_forward_mode(case):
    loss, moving = split(case, case.data())
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), moving)
    total = partial(loss, reduction="sum")

    @quick.jit
    def both_ways(moving):
        _, tangent = jax.jvp(total, (moving,), (direction,))
        _, change = jax.jvp(jax.grad(total), (moving,), (direction,))  # forward over reverse
        _, twice = jax.jvp(lambda m: jax.jvp(total, (m,), (direction,))[1], (moving,), (direction,))
        return (tangent, inner(change)), (inner(jax.grad(total)(moving)), twice)

    def inner(tree):
        return sum(jnp.sum(a * d) for a, d in zip(jax.tree.leaves(tree), jax.tree.leaves(direction), strict=True))

    chex.assert_trees_all_close(*both_ways(moving), rtol=1e-10, atol=1e-12)


@one_each
def test_vmap_over_everything_is_a_loop(case):
    runs = [case.data(seed) for seed in range(3)]
    numbers = [{name: value * (1 + 0.1 * i) for name, value in case.numbers.items()} for i in range(3)]

    def stack(trees):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    def value_and_gradient(arrays, numbers):
        def loss(moving):
            return case.loss(**{**arrays, **moving}, **numbers, **case.static)

        return jax.value_and_grad(loss)(differentiable(arrays))

    one = quick.jit(value_and_gradient)
    looped = stack([one(a, n) for a, n in zip(runs, numbers, strict=True)])
    mapped = quick.jit(jax.vmap(value_and_gradient))(stack(runs), stack(numbers) if case.numbers else {})
    chex.assert_trees_all_close(mapped, looped, rtol=1e-12, atol=1e-14)


@of(one_of_each_family(CASES))
def test_without_jit_the_same(case):
    arrays = case.data()
    got = case.loss(**arrays, **case.options)
    chex.assert_trees_all_close(got, jax.jit(partial(case.loss, **case.options))(**arrays), rtol=1e-13)
    with nothing_compiled():  # or each call would take as long as the first, and memory
        case.loss(**arrays, **case.options)


@contextmanager
def nothing_compiled():
    compiled = []

    def listen(event, seconds, **_):
        compiled.extend([event] * ("backend_compile" in event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


@pytest.mark.parametrize("loss", [jaxloss.mse_loss, jaxloss.hinge_loss, jaxloss.binary_cross_entropy_with_logits])
def test_many_entries_without_jit_compile_at_the_first_call(loss):
    x = jnp.linspace(-2, 2, 2**15, dtype=jnp.float32)
    y, keep = jnp.where(x > 1, 1.0, 0.0), x > -1

    def run():
        return loss(x, y), loss(x, y, where=keep), loss(x, y, reduction="none"), jax.grad(loss)(x, y, where=keep)

    run(), run()
    with nothing_compiled():
        run()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, jnp.float32) for case in CASES]
    + [(case, dtype) for case in one_of_each_family(CASES) for dtype in (jnp.bfloat16, jnp.float16)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_no_worse_than_the_rounding_of_its_input(case, dtype):
    arrays = case.data()
    rounded = {name: jnp.asarray(a, dtype) for name, a in differentiable(arrays).items()}
    exactly = {name: np.asarray(a, np.float64) for name, a in rounded.items()}
    loss, _ = split(case, arrays)
    jit = jax.jit if dtype == jnp.float32 else quick.jit  # the same float32 arithmetic after a conversion
    got, grads = jit(lambda m: (loss(m, reduction="none"), jax.grad(loss)(m)))(rounded)
    assert got.dtype == jnp.float32
    expected = case.expected({**arrays, **exactly})[0]
    # The terms of a loss can cancel, and its condition number grows with the size of what enters it.
    scale = 1 + np.abs(expected).max() + max(np.abs(a).max() for a in exactly.values())
    np.testing.assert_allclose(got, expected, rtol=4e-6, atol=4 * np.finfo(np.float32).eps * scale)

    exact_grads = quick.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, exactly))
    for name, g in grads.items():
        assert g.dtype == dtype
        exact = np.asarray(exact_grads[name])
        eps = max(float(jnp.finfo(dtype).eps), 1e-6)
        np.testing.assert_allclose(np.asarray(g, np.float64), exact, rtol=eps, atol=eps * np.abs(exact).max() + 1e-7)


@masked
def test_masked_entries_do_not_exist(case):
    arrays = case.data()
    keep, loss, share = with_mask(case, arrays)

    @jax.jit
    def values_and_gradients(arrays):
        function, moving = split(case, arrays)
        values = {r: function(moving, where=keep, reduction=r) for r in REDUCTIONS}
        return values, jax.grad(partial(function, where=keep))(moving)

    values, clean = values_and_gradients(arrays)
    chex.assert_trees_all_close(values, {r: reduced(loss, share, r) for r in REDUCTIONS}, rtol=1e-12, atol=1e-14)
    for poison in (np.nan, np.inf, -np.inf):
        dirty, got = values_and_gradients(poisoned(case, arrays, keep, poison))
        chex.assert_trees_all_equal(dirty, values)
        chex.assert_trees_all_equal(got, clean)
    for name in set(case.rows) & set(clean):
        axes = case.inner_axes(arrays)[: clean[name].ndim - keep.ndim]
        rows = np.moveaxis(clean[name], axes, range(-len(axes), 0))
        assert (np.asarray(rows)[~keep] == 0).all(), name


@of(one_of_each_family(case for case in CASES if not case.regions))
def test_no_nan_is_made_on_the_way(case):
    arrays = case.data()
    keep, _, _ = with_mask(case, arrays)
    loss, moving = split(case, poisoned(case, arrays, keep, np.inf))
    nans, moving_nans = split(case, jax.tree.map(jnp.asarray, poisoned(case, arrays, keep, np.nan)))
    with jax.debug_nans(True):  # without jit, where each operation is looked at
        nans(moving_nans, where=keep)
        jax.value_and_grad(partial(nans, where=keep))(moving_nans)
        jax.value_and_grad(partial(loss, where=keep))(moving)


@masked_one_each
def test_mean_over_nothing(case):
    arrays = case.data()
    loss, moving = split(case, poisoned(case, arrays, np.zeros(case.expected(arrays)[0].shape, bool), np.nan))
    value, grads = jax.jit(jax.value_and_grad(partial(loss, where=False)))(moving)
    assert np.isnan(value)
    chex.assert_trees_all_equal(jax.device_get(grads), jax.tree.map(np.zeros_like, grads))
    assert loss(moving, where=False, reduction="sum_and_weight") == (0, 0)


@masked_one_each
def test_empty_batch(case):
    shape = (0, *case.shapes[0][1:])
    arrays = case.data(shape=shape)
    name = case.first

    def loss(x, reduction="mean"):
        return case.loss(**{**arrays, name: x}, **case.options, reduction=reduction)

    (value, grads), pair, rows = quick.jit(
        lambda x: (jax.value_and_grad(loss)(x), loss(x, "sum_and_weight"), loss(x, "none"))
    )(arrays[name])
    assert np.isnan(value)
    assert grads.shape == shape
    assert pair == (0, 0)
    assert rows.size == 0


@of(case for case in CASES if "weight" in case.rows)
def test_a_weight_is_a_repetition(case):
    arrays = case.data(shape=(4,))
    repeat = np.array([2, 0, 3, 1])
    weighted = {**arrays, "weight": repeat}
    repeated = {n: np.repeat(a, repeat, 0) for n, a in arrays.items() if n != "weight" and a.shape == (4,)}
    others = {n: a for n, a in arrays.items() if n not in ("weight", *repeated)}
    if "pos_weight" in repeated:
        repeated["pos_weight"] = np.repeat(arrays["pos_weight"], repeat)
    total = quick.jit(lambda arrays: case.loss(**arrays, **case.options, reduction="sum"))
    chex.assert_trees_all_close(total(weighted), total({**repeated, **others}), rtol=1e-12)


@masked_one_each
def test_micro_batches_add_up(case):
    arrays = case.data()
    keep, loss, share = with_mask(case, arrays)

    @quick.jit
    def parts_and_whole(arrays, keep):
        parts = []
        for rows in (slice(0, 1), slice(1, None)):
            part = {n: a[rows] if a.shape[:1] == case.shapes[0][:1] else a for n, a in arrays.items()}
            parts.append(case.loss(**part, **case.options, where=keep[rows], reduction="sum_and_weight"))
        return parts, case.loss(**arrays, **case.options, where=keep)

    parts, whole = parts_and_whole(arrays, keep)
    total, weight = np.sum(parts, 0)
    np.testing.assert_allclose(total / weight, whole, rtol=1e-12)
    np.testing.assert_allclose(total / weight, loss.sum() / share.sum(), rtol=1e-12)


@one_each
def test_nothing_is_broadcast(case):
    arrays = case.data()
    for name in set(case.rows[1:]) - {"var", "weight", "targets"}:  # these may broadcast, or be longer
        a = arrays[name]
        for shape in ((*a.shape, 1), (1, *a.shape), a.shape[:-1], (*a.shape[:-1], 1)):
            with pytest.raises((ValueError, TypeError), match=f"`{name}`") as refusal:
                case.loss(**{**arrays, name: np.resize(a, shape)}, **case.options)
            assert str(shape) in str(refusal.value)
            assert case.loss.__name__ in str(refusal.value)


@of(one_of_each(case for case in CASES if case.numbers))
def test_a_new_number_does_not_retrace(case):
    arrays = case.data()
    chex.clear_trace_counter()

    @quick.jit
    @chex.assert_max_traces(n=1)
    def loss(numbers):
        return case.loss(**arrays, **case.static, **numbers)

    for factor in (1.0, 0.5):
        numbers = {name: value * factor for name, value in case.numbers.items()}
        unreduced, share = case.expected(arrays, **numbers)
        np.testing.assert_allclose(loss(numbers), unreduced.sum() / share.sum(), rtol=1e-12)
