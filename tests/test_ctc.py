"""CTC: every path written out, edges, memory, kernels."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_ctc as oracle
import pytest
import quick
from jax import export
from jax.extend import core

import jaxloss
from jaxloss import _lattice, _sequences, _wide

# name, frames, classes, blank, target
SMALL = {
    "one label": (3, 3, 0, [1]),
    "two labels": (4, 3, 0, [1, 2]),
    "repeats": (5, 3, 0, [1, 1, 2]),
    "all the same": (5, 3, 2, [1, 1, 1]),
    "empty": (4, 3, 0, []),
    "as long as the input": (3, 4, 0, [1, 2, 3]),
    "as long as the input, repeated": (3, 3, 0, [1, 1, 2]),
    "longer than the input": (2, 4, 0, [1, 2, 3]),
    "no frame, no label": (0, 3, 0, []),
    "no frame, a label": (0, 3, 0, [1]),
    "blank in the middle": (5, 5, 2, [0, 1, 4]),
    "blank last": (5, 4, 3, [0, 2, 0]),
    "one class more than the blank": (6, 2, 1, [0, 0]),
    "blank alone": (3, 1, 0, []),
}
LONGEST, LABELS, CLASSES = 6, 3, 5


def log_probs_of(name, seed=0):
    frames, classes, _, _ = SMALL[name]
    return oracle.log_softmax(np.random.default_rng(seed).normal(size=(frames, classes)) * 2)


def padded(name):
    """A sample of `SMALL` in a frame large enough for all of them, with rubbish around it."""
    frames, classes, _, target = SMALL[name]
    x = np.full((LONGEST, CLASSES), np.nan)
    x[:frames, :classes] = log_probs_of(name)
    x[:frames, classes:] = -np.inf
    return x, np.array(target + [10**6] * (LABELS - len(target))), frames, len(target)


@partial(quick.jit, static_argnums=(4, 5))
def value_and_gradient(x, target, frames, size, blank, implementation):
    def loss(x):
        return jaxloss.ctc_loss(x, target, frames, size, blank=blank, implementation=implementation, reduction="none")

    return jax.value_and_grad(loss)(x)


@pytest.mark.parametrize("implementation", ["auto", "autodiff"])
@pytest.mark.parametrize("name", SMALL)
def test_equals_all_paths_written_out(name, implementation):
    frames, classes, blank, target = SMALL[name]
    log_probs = log_probs_of(name)
    value, gradient = value_and_gradient(*padded(name), blank, implementation)
    np.testing.assert_allclose(value, oracle.loss(log_probs, target, blank), rtol=1e-12, atol=1e-14)
    expected = np.zeros((LONGEST, CLASSES))
    expected[:frames, :classes] = oracle.gradient(log_probs, target, blank)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-13)


def test_the_recursion_of_the_oracles_equals_all_paths():
    for name, (_, _, blank, target) in SMALL.items():
        log_probs = log_probs_of(name)
        np.testing.assert_allclose(
            oracle.recursion(log_probs, target, blank), oracle.loss(log_probs, target, blank), rtol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("name", SMALL)
def test_alignment_is_the_best_of_all_paths(name):
    frames, _, blank, target = SMALL[name]
    x, labels, _, size = padded(name)
    path = quick.jit(partial(jaxloss.ctc_alignment, blank=blank))(x, labels, frames, size)
    top, best = oracle.best(log_probs_of(name), target, blank)
    if not best:
        assert path.score == -np.inf
        assert (np.asarray(path.labels) == -1).all()
        return
    np.testing.assert_allclose(path.score, np.log(top), rtol=1e-12)
    found = np.asarray(path.labels)
    assert tuple(found[:frames]) in best
    positions = np.asarray(path.positions)
    assert (found[frames:] == -1).all()
    assert (positions[frames:] == -1).all()
    # Each frame's class is that of its position, and the positions are all taken, in order.
    assert [target[s] if s >= 0 else blank for s in positions[:frames]] == list(found[:frames])
    assert list(dict.fromkeys(s for s in positions if s >= 0)) == list(range(size))


@pytest.mark.parametrize("name", SMALL)
def test_posteriors_are_shares_of_all_paths(name):
    frames, _, blank, target = SMALL[name]
    x, labels, _, size = padded(name)
    got = quick.jit(partial(jaxloss.ctc_posteriors, blank=blank))(x, labels, frames, size)
    expected = np.zeros((LONGEST, LABELS))
    expected[:frames, :size] = oracle.label_posteriors(log_probs_of(name), target, blank)
    np.testing.assert_allclose(got.labels, expected, rtol=1e-11, atol=1e-13)
    possible = np.isfinite(oracle.loss(log_probs_of(name), target, blank))
    total = np.asarray(got.labels.sum(-1) + got.blank)
    np.testing.assert_allclose(total, np.where(np.arange(LONGEST) < frames, float(possible), 0), rtol=1e-12)


def drawn(seed=0, batch_first=True, dtype=np.float64, shape=(9, 4, 5, 3)):
    """Logits, targets and lengths; the second sample repeats a label, the last is impossible."""
    length, count, classes, labels = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, length, classes)).astype(dtype) * 2
    y = rng.integers(1, classes, size=(count, labels))
    y[1] = 2
    frames = rng.integers(min(2 * labels, length), length + 1, size=count)
    sizes = rng.integers(1, labels + 1, size=count)
    frames[0], sizes[0], frames[-1], sizes[-1] = length, labels, 1, labels
    return (x if batch_first else x.swapaxes(0, 1)), y, frames, sizes


def expected_losses(x, y, frames, sizes, **options):
    return oracle.batch(oracle.log_softmax(x), y, frames, sizes, **options)


def test_layouts_and_forms_of_targets_agree():
    x, y, frames, sizes = drawn()
    expected = expected_losses(x, y, frames, sizes)
    joined = np.concatenate([t[:s] for t, s in zip(y, sizes, strict=True)])
    loss = partial(jaxloss.ctc_loss_with_logits, reduction="none")
    for targets, lengths in ((y, sizes), (joined, sizes), (joined, tuple(sizes)), (jnp.asarray(joined), list(sizes))):
        first, second = quick.jit(
            lambda x, targets=targets, lengths=lengths: (
                loss(x, targets, frames, lengths, batch_first=True),
                loss(x.swapaxes(0, 1), targets, frames, lengths),
            )
        )(x)
        np.testing.assert_allclose(first, expected, rtol=1e-12)
        chex.assert_trees_all_equal(first, second)
    one = quick.jit(loss)
    each = [one(*sample) for sample in zip(x, y, frames, sizes, strict=True)]
    assert each[0].shape == ()
    np.testing.assert_allclose(each, expected, rtol=1e-12)
    np.testing.assert_allclose(one(x[1], y[1], frames[1:2], sizes[1:2]), expected[1], rtol=1e-12)


def test_alignment_and_posteriors_in_every_layout():
    x, y, frames, sizes = drawn()
    log_probs = oracle.log_softmax(x)
    path = jaxloss.ctc_alignment(log_probs, y, frames, sizes, batch_first=True)
    share = jaxloss.ctc_posteriors(log_probs, y, frames, sizes, batch_first=True)
    chex.assert_shape([path.labels, path.positions, share.blank], (4, 9))
    chex.assert_shape(share.labels, (4, 9, 3))
    across = jaxloss.ctc_alignment(log_probs.swapaxes(0, 1), y, frames, sizes)
    chex.assert_trees_all_equal(across.labels.T, path.labels)
    chex.assert_trees_all_equal(
        jaxloss.ctc_posteriors(log_probs.swapaxes(0, 1), y, frames, sizes).labels.swapaxes(0, 1), share.labels
    )
    one = jaxloss.ctc_alignment(log_probs[0], y[0], frames[0], sizes[0])
    chex.assert_trees_all_equal(one.labels, path.labels[0])
    np.testing.assert_allclose(one.score, path.score[0], rtol=1e-14)
    # The score is a sum of entries: its gradient is 1 where the path goes.
    gradient = jax.grad(lambda x: jaxloss.ctc_alignment(x, y[0], frames[0], sizes[0]).score)(log_probs[0])
    chex.assert_trees_all_equal(gradient, jax.nn.one_hot(one.labels, 5, dtype=jnp.float64))


@pytest.mark.parametrize("logits", [False, True])
def test_reductions_divide_by_the_targets_as_torch_does(logits):
    x, y, frames, sizes = drawn()
    sizes[1] = 0
    losses = expected_losses(x, y, frames, sizes, zero_infinity=True)
    loss = jaxloss.ctc_loss_with_logits if logits else jaxloss.ctc_loss
    scores = x if logits else oracle.log_softmax(x)
    f = partial(loss, batch_first=True, zero_infinity=True)
    reductions = ("none", "sum", "mean", "sum_and_weight")
    got = quick.jit(lambda x: {r: f(x, y, frames, sizes, reduction=r) for r in reductions})(scores)
    by_label = losses / np.maximum(sizes, 1)
    expected = {"none": losses, "sum": losses.sum(), "mean": by_label.mean(), "sum_and_weight": (by_label.sum(), 4.0)}
    chex.assert_trees_all_close(got, expected, rtol=1e-12)


@pytest.mark.parametrize("implementation", ["auto", "autodiff"])
@pytest.mark.parametrize(("zero_infinity", "cost"), [(False, np.inf), (True, 0)])
def test_impossible_samples_cost_infinity_and_teach_nothing(implementation, zero_infinity, cost):
    x, y, frames, sizes = drawn()
    options = {"batch_first": True, "zero_infinity": zero_infinity, "implementation": implementation}

    def total(x):
        losses = jaxloss.ctc_loss_with_logits(x, y, frames, sizes, reduction="none", **options)
        return losses.sum(), losses

    gradient, losses = jax.device_get(quick.jit(jax.grad(total, has_aux=True))(x))
    assert losses[-1] == cost
    assert (gradient[-1] == 0).all()
    assert np.isfinite(gradient).all()
    assert (gradient[0] != 0).all()


def test_a_batch_with_impossible_samples_trains():
    x, y, frames, sizes = drawn()
    step = quick.jit(
        jax.value_and_grad(partial(jaxloss.ctc_loss_with_logits, batch_first=True, zero_infinity=True, reduction="sum"))
    )
    first, _ = step(x, y, frames, sizes)
    for _ in range(200):
        value, gradient = step(x, y, frames, sizes)
        x = x - 0.5 * gradient
    assert value < 0.05 * first


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("implementation", ["auto", "autodiff"])
def test_what_stands_behind_the_ends_does_not_exist(logits, implementation):
    x, y, frames, sizes = drawn()
    scores = x if logits else oracle.log_softmax(x)
    loss = jaxloss.ctc_loss_with_logits if logits else jaxloss.ctc_loss

    @quick.jit
    def both(scores, y):
        f = partial(loss, batch_first=True, zero_infinity=True, implementation=implementation)
        return jax.value_and_grad(f)(scores, y, frames, sizes)

    clean = both(scores, y)
    behind = np.arange(x.shape[1]) >= frames[:, None]
    for poison in (np.nan, np.inf, -np.inf):
        dirty = jnp.where(behind[..., None], poison, scores)
        rubbish = np.where(np.arange(y.shape[1]) >= sizes[:, None], -7, y)
        chex.assert_trees_all_equal(both(dirty, rubbish), clean)
        with jax.debug_nans(True):
            loss(dirty, rubbish, frames, sizes, batch_first=True, implementation=implementation)
    assert (np.asarray(clean[1])[behind] == 0).all()


def test_what_stands_behind_the_ends_has_no_second_derivatives():
    x, y, frames, sizes = (a[:2] for a in drawn(shape=(4, 4, 3, 1)))
    frames = np.array([4, 2])
    behind = np.arange(4) >= frames[:, None]

    @quick.jit
    def twice(x):
        f = partial(
            jaxloss.ctc_loss_with_logits, targets=y, input_lengths=frames, target_lengths=sizes, batch_first=True
        )
        return jax.hessian(f)(x), jax.jacrev(jax.jacrev(f))(x), jax.hessian(partial(f, implementation="autodiff"))(x)

    dirty, clean = twice(jnp.where(behind[..., None], jnp.nan, x)), twice(x)
    chex.assert_trees_all_equal(dirty, clean)
    for second in clean:
        assert (np.asarray(second)[behind] == 0).all()


def test_a_class_that_is_impossible_and_not_needed_is_no_problem():
    x, y, frames, sizes = (a[:2] for a in drawn())
    y = np.full_like(y, 1)
    x[:, :, 3] = -np.inf
    for loss, scores in ((jaxloss.ctc_loss_with_logits, x), (jaxloss.ctc_loss, oracle.log_softmax(x))):
        f = partial(loss, batch_first=True, reduction="sum", zero_infinity=True)
        value, gradient = jax.value_and_grad(f)(scores, y, frames, sizes)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[..., 3] == 0).all()
    needed = np.where(np.arange(5) == 1, -np.inf, oracle.log_softmax(x))
    value, gradient = jax.value_and_grad(partial(jaxloss.ctc_loss, batch_first=True, reduction="sum"))(
        needed, y, frames, sizes
    )
    assert value == np.inf
    assert (np.asarray(gradient) == 0).all()


def test_nan_where_it_is_read_is_nan_and_stays_in_its_sample():
    x, y, frames, sizes = drawn()
    x[1, 2, 0] = np.nan
    f = partial(jaxloss.ctc_loss_with_logits, batch_first=True, reduction="none", zero_infinity=True)
    assert np.isnan(f(x, y, frames, sizes)).tolist() == [False, True, False, False]
    gradient = jax.grad(lambda x: f(x, y, frames, sizes).sum())(x)
    assert np.isnan(gradient).any((1, 2)).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        lambda y, frames, sizes: y.__setitem__((1, 0), 5),
        lambda y, frames, sizes: y.__setitem__((1, 0), -1),
        lambda y, frames, sizes: frames.__setitem__(1, 10),
        lambda y, frames, sizes: frames.__setitem__(1, -1),
        lambda y, frames, sizes: sizes.__setitem__(1, 4),
        lambda y, frames, sizes: sizes.__setitem__(1, -2),
        lambda y, frames, sizes: sizes.__setitem__(1, 2**32 + 1),
    ],
    ids=["label", "negative label", "frames", "negative frames", "size", "negative size", "size beyond int32"],
)
def test_out_of_range_is_nan_in_its_sample_alone(change):
    x, y, frames, sizes = drawn()
    change(y, frames, sizes)
    f = partial(jaxloss.ctc_loss_with_logits, batch_first=True, reduction="none", zero_infinity=True)
    bad = [False, True, False, False]
    assert np.isnan(f(x, y, frames, sizes)).tolist() == bad
    gradient = np.asarray(jax.grad(lambda x: f(x, y, frames, sizes).sum())(x))
    assert np.isnan(gradient).all((1, 2)).tolist() == bad
    assert np.isnan(gradient).any((1, 2)).tolist() == bad
    # Where the sample is masked nothing of it counts.
    assert np.isfinite(f(x, y, frames, sizes, where=~np.array(bad))).all()
    assert np.isnan(jaxloss.ctc_alignment(x, y, frames, sizes, batch_first=True).score).tolist() == bad
    assert np.isnan(jaxloss.ctc_posteriors(x, y, frames, sizes, batch_first=True).blank).all(1).tolist() == bad


def test_never_negative_where_an_alignment_is_nearly_certain():
    rng = np.random.default_rng(3)
    y = np.array([[1, 2, 3, 1]])
    losses = (jaxloss.ctc_loss_with_logits, jaxloss.ctc_loss)
    compiled = {loss: jax.jit(partial(loss, batch_first=True)) for loss in losses}
    for sharpness in (20.0, 40.0, 1000.0):
        x = rng.normal(size=(1, 400, 5)) + sharpness * np.eye(5)[[1, 2, 3, 0, 1]].repeat(80, 0)
        x = x.astype(np.float32)
        for loss, scores in ((jaxloss.ctc_loss_with_logits, x), (jaxloss.ctc_loss, jax.nn.log_softmax(x))):
            value = compiled[loss](scores, y, [400], [4])
            assert value.dtype == jnp.float32
            assert 0 <= value < 1
    # Two classes whose probabilities add up to a little more or less than 1, and hardly a path that is no alignment.
    x = np.stack([-rng.uniform(7, 12, size=(1000, 2)), np.zeros((1000, 2))], -1).astype(np.float32)
    values = jaxloss.ctc_loss(
        jax.nn.log_softmax(x), np.ones((1000, 1), int), [2] * 1000, [1] * 1000, batch_first=True, reduction="none"
    )
    assert (values >= 0).all()
    assert (values == 0).any()
    assert (values > 0).any()
    # Scores that are no log-probabilities have a loss of their own, below 0 too, as in torch.
    np.testing.assert_allclose(jaxloss.ctc_loss(np.ones((3, 2)), [1], 3, 1, reduction="sum"), -3 - np.log(6))


def test_long_and_sharp_inputs_neither_underflow_nor_lose_digits():
    # The only alignment is far from likely: its α is e^-20000 of the largest α in the same frame.
    length, classes = 200, 6
    x = np.zeros((length, classes))
    x[:, 0] = 200
    y = np.arange(length) % 5 + 1
    value, gradient = jax.value_and_grad(jaxloss.ctc_loss_with_logits)(x.astype(np.float32), y, length, length)
    np.testing.assert_allclose(value, -oracle.log_softmax(x)[0, 1], rtol=1e-6)
    expected = np.exp(oracle.log_softmax(x)) - np.eye(classes)[y]
    np.testing.assert_allclose(gradient, expected / length, atol=1e-8)


def test_a_masked_sample_may_hold_nan_beside_a_good_target():
    x = np.random.default_rng(0).normal(size=(2, 4, 3))
    x[1] = np.nan
    arguments = np.array([[1, 2], [2, 1]]), np.array([4, 4]), np.array([2, 2])

    def loss(x, *arguments, **options):
        return jaxloss.ctc_loss_with_logits(x, *arguments, batch_first=True, **options)

    value, gradient = jax.value_and_grad(loss)(x, *arguments, where=np.array([True, False]))
    expected = jax.value_and_grad(loss)(x[:1], *(a[:1] for a in arguments))
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, np.concatenate([expected[1], np.zeros((1, 4, 3))]), rtol=1e-12)


def test_an_empty_target_beside_others_is_blank_throughout():
    # What pads it would be the likelier path, and no frame is left behind the end to kill it.
    x = np.log(np.array([[[0.1, 0.6, 0.3]] * 2] * 3))
    arguments = x, np.array([[1, 0], [0, 2]]), np.array([3, 3]), np.array([0, 2])
    loss = jaxloss.ctc_loss(*arguments, blank=1, reduction="none")
    np.testing.assert_allclose(loss[0], -3 * np.log(0.6), rtol=1e-12)
    likely = jaxloss.ctc_loss(x[..., ::-1], *arguments[1:], blank=1, reduction="none")
    np.testing.assert_allclose(likely[0], -3 * np.log(0.6), rtol=1e-12)
    found = jaxloss.ctc_alignment(np.roll(x, 1, -1), np.array([[0], [2]]), np.array([3, 3]), np.array([0, 1]), blank=1)
    assert found.labels[:, 0].tolist() == [1, 1, 1]
    without_blank = jnp.asarray(x).at[..., 1].set(-jnp.inf)
    impossible = jaxloss.ctc_alignment(without_blank, np.array([[0], [2]]), np.array([3, 3]), np.array([0, 1]), blank=1)
    assert impossible.labels[:, 0].tolist() == [-1, -1, -1]
    np.testing.assert_allclose(found.score[0], 3 * np.log(0.1), rtol=1e-12)


def test_what_has_vanished_stays_so_over_thousands_of_states():
    # Each frame and each state takes 1.3 million powers of two, and an int32 has 2^31.
    x = np.full((2000, 3), -9e5, np.float32)
    value, gradient = jax.value_and_grad(jaxloss.ctc_loss)(x, np.tile([1, 2], 800), 2000, 1600)
    assert value == np.inf
    assert (gradient == 0).all()


@pytest.mark.without_x64
def test_float32_gradients_keep_their_digits():
    # performance.md's first row, shortened: torch's float32 gradient is off by 1e-3 here.
    x, y, frames, sizes = drawn(shape=(500, 2, 32, 100), dtype=np.float32)
    frames[-1], sizes[-1] = 400, 80
    loss = partial(jaxloss.ctc_loss_with_logits, batch_first=True, reduction="sum")
    got = jax.jit(jax.grad(loss))(x, y, frames, sizes)
    with jax.enable_x64(True):
        exact = jax.jit(jax.grad(loss))(x.astype(np.float64), y, frames, sizes)
    np.testing.assert_allclose(got, exact, atol=1e-5)


@pytest.mark.parametrize("logits", [False, True])
def test_the_custom_rule_is_the_derivative_to_second_order(logits):
    x, y, frames, sizes = (a[:3] for a in drawn(shape=(6, 4, 4, 2)))
    loss = jaxloss.ctc_loss_with_logits if logits else jaxloss.ctc_loss
    scores = jnp.asarray(x if logits else oracle.log_softmax(x))

    def f(scores, implementation):
        return loss(scores, y, frames, sizes, batch_first=True, implementation=implementation)

    quick.check_two_derivatives(partial(f, implementation="auto"), scores, rtol=1e-4, atol=1e-5)
    hessians = [quick.jit(jax.hessian(partial(f, implementation=i)))(scores) for i in ("auto", "autodiff")]
    np.testing.assert_allclose(*hessians, atol=1e-12)
    twice = quick.jit(jax.jacrev(jax.jacrev(partial(f, implementation="auto"))))(scores)
    np.testing.assert_allclose(twice, hessians[1], atol=1e-12)
    direction = jnp.ones_like(scores)
    _, tangent = jax.jvp(partial(f, implementation="autodiff"), (scores,), (direction,))
    np.testing.assert_allclose(tangent, jnp.sum(jax.grad(partial(f, implementation="auto"))(scores)), atol=1e-12)
    with pytest.raises(TypeError, match="custom_vjp") as refusal:
        jax.jvp(partial(f, implementation="auto"), (scores,), (direction,))
    assert "implementation='autodiff'" in "".join(refusal.value.__notes__)


def test_both_directions_at_once_give_what_they_give_in_turn():
    # The form for accelerators beside that for a CPU, with their derivatives.
    x, y, frames, sizes = drawn(batch_first=False)
    logs = _sequences.emissions(jnp.asarray(oracle.log_softmax(x)), jnp.asarray(y), jnp.asarray(frames), 0)
    skip, sizes = _sequences.may_skip(jnp.asarray(y)), jnp.asarray(sizes)

    def moved(shares):
        f = partial(shares, skip=skip, sizes=sizes)
        return quick.jit(lambda *logs: jax.jvp(lambda *logs: as_floats(f(*logs)), logs, logs_moved))(*logs)

    def as_floats(shares):
        return shares.labels, jnp.where(jnp.arange(len(sizes)) < len(sizes) - 1, _wide.log(shares.mass), 0)

    logs_moved = jax.tree.map(
        lambda a: jnp.where(jnp.isfinite(a), jnp.sin(jnp.arange(a.size)).reshape(a.shape), 0), logs
    )
    at_once, in_turn = moved(_lattice.shares_at_once), moved(_lattice.shares_in_turn)
    chex.assert_trees_all_close(at_once, in_turn, rtol=1e-12, atol=1e-14)
    assert (np.asarray(at_once[1][0]) != 0).any()


def arrays_of(jaxpr):
    """Every array of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


@pytest.mark.without_x64
def test_of_many_classes_the_shares_of_the_labels_are_kept():
    length, count, classes, labels = 500, 64, 5000, 100
    scores = jax.ShapeDtypeStruct((length, count, classes), jnp.float32)
    y, frames, full = np.ones((count, labels), int), np.full(count, length), np.full(count, labels)

    def pull(scores):
        return jax.vjp(lambda s: jaxloss.ctc_loss_with_logits(s, y, frames, full), scores)[1]

    kept = [a.shape for a in jax.tree.leaves(jax.eval_shape(pull, scores)) if a.size > length * count]
    # Beside the logits themselves, a fiftieth of their size.
    assert sorted(kept) == [(length, count, classes), (length, labels, count)]


@pytest.mark.without_x64
@pytest.mark.parametrize("logits", [False, True])
def test_what_is_kept_is_one_array_of_the_size_of_the_gradient(logits):
    length, count, classes, labels = 1000, 32, 128, 200
    scores = jax.ShapeDtypeStruct((length, count, classes), jnp.bfloat16)
    y, frames, full = np.ones((count, labels), int), np.full(count, length), np.full(count, labels)
    loss = partial(jaxloss.ctc_loss_with_logits if logits else jaxloss.ctc_loss, reduction="sum")

    def pull(scores):
        return jax.vjp(lambda s: loss(s, y, frames, full), scores)[1]

    kept = [a for a in jax.tree.leaves(jax.eval_shape(pull, scores)) if a.size > 2 * count]
    assert [(a.shape, a.dtype) for a in kept] == [((length, count, classes), jnp.bfloat16)]
    # The loss alone keeps nothing of the frames it has gone through.
    trace = jax.make_jaxpr(lambda s: loss(s, y, frames, full))(scores)
    slots = length * count * labels
    sizes = [a.size for a in arrays_of(trace.jaxpr) if jnp.issubdtype(a.dtype, jnp.floating)]
    assert max(sizes) == slots


def test_many_classes_with_repeated_labels():
    # More classes than a product with one-hot labels is worth: a scatter, into which labels come more than once.
    x, y, frames, sizes = drawn(shape=(8, 4, 300, 3))
    gradients = [
        quick.jit(
            jax.grad(partial(jaxloss.ctc_loss_with_logits, batch_first=True, zero_infinity=True, implementation=i))
        )(x, y, frames, sizes)
        for i in ("auto", "autodiff")
    ]
    np.testing.assert_allclose(*gradients, atol=1e-14)


def test_half_precision_is_computed_in_float32():
    x, y, frames, sizes = drawn(dtype=np.float32)
    half = jnp.asarray(x, jnp.bfloat16)
    f = jax.jit(jax.value_and_grad(partial(jaxloss.ctc_loss_with_logits, batch_first=True, zero_infinity=True)))
    value, gradient = f(half, y, frames, sizes)
    exact, exact_gradient = f(half.astype(jnp.float32), y, frames, sizes)
    assert value.dtype == jnp.float32
    assert value == exact
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), exact_gradient, atol=2**-8)


# --- the kernel, interpreted ---


@pytest.mark.without_x64
@pytest.mark.parametrize("shape", [(9, 4, 5, 3), (1, 3, 4, 1), (17, 4, 300, 8)], ids=str)
@pytest.mark.parametrize("logits", [False, True])
def test_kernel_agrees_with_xla(shape, logits):
    x, y, frames, sizes = drawn(dtype=np.float32, shape=shape)
    frames = np.minimum(frames, shape[0])
    sizes[1] = 0
    loss = jaxloss.ctc_loss_with_logits if logits else jaxloss.ctc_loss
    scores = x if logits else jax.nn.log_softmax(x)

    def f(implementation, scores):
        def losses(scores):
            return loss(scores, y, frames, sizes, batch_first=True, implementation=implementation, reduction="none")

        value, pull = jax.vjp(losses, scores)
        return value, pull(jnp.arange(1.0, 5.0)[: len(y)])

    kernel, xla = (quick.jit(partial(f, i))(scores) for i in ("pallas", "xla"))
    chex.assert_trees_all_close(kernel, xla, rtol=1e-6, atol=1e-6)


@pytest.mark.without_x64
def test_kernel_under_vmap_and_second_derivatives():
    x, y, frames, sizes = (a[:2] for a in drawn(dtype=np.float32, shape=(5, 4, 4, 2)))

    def f(scores, implementation):
        return jaxloss.ctc_loss_with_logits(
            scores, y, frames, sizes, batch_first=True, implementation=implementation, zero_infinity=True
        )

    def everything(implementation):
        loss = partial(f, implementation=implementation)
        many = jnp.stack([x, 0.5 * x])
        return quick.jit(lambda: (jax.vmap(jax.grad(loss))(many), jax.hessian(loss)(jnp.asarray(x))))()

    chex.assert_trees_all_close(everything("pallas"), everything("xla"), rtol=1e-5, atol=1e-6)


def lowered(platform, implementation, dtype=jnp.float32, labels=200):
    x = jax.ShapeDtypeStruct((50, 4, 32), dtype)
    y, frames, sizes = np.ones((4, labels), int), np.full(4, 50), np.full(4, 20)
    f = jax.jit(jax.grad(partial(jaxloss.ctc_loss_with_logits, implementation=implementation, reduction="sum")))
    kernel = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    return export.export(f, platforms=(platform,), disabled_checks=(kernel,))(x, y, frames, sizes).mlir_module()


@pytest.mark.without_x64
def test_auto_is_the_kernel_on_cuda_and_xla_elsewhere():
    assert "xla.gpu.triton" in lowered("cuda", "auto")
    assert "xla.gpu.triton" in lowered("cuda", "pallas", jnp.bfloat16)
    for platform, implementation in (("cuda", "xla"), ("cuda", "autodiff"), ("cpu", "auto"), ("tpu", "auto")):
        assert "triton" not in lowered(platform, implementation)
    assert "triton" not in lowered("cuda", "auto", labels=5000), "too many labels for one program"
    with pytest.raises(NotImplementedError, match="tpu"):
        lowered("tpu", "pallas")
    with pytest.raises(ValueError, match=r"ctc_loss_with_logits.*4096 labels, not 5000"):
        lowered("cuda", "pallas", labels=5000)


def test_the_kernel_does_not_compute_in_float64():
    x, y, frames, sizes = drawn()
    with pytest.raises(ValueError, match=r"ctc_loss: .*pallas.*float32, not in float64; pass 'auto'"):
        jaxloss.ctc_loss(x, y, frames, sizes, batch_first=True, implementation="pallas")
    with pytest.raises(ValueError, match="no frame"):
        jaxloss.ctc_loss(x[:, :0].astype(np.float32), y, 0 * frames, sizes, batch_first=True, implementation="pallas")


def test_what_is_refused():
    x, y, frames, sizes = drawn()
    loss = partial(jaxloss.ctc_loss, batch_first=True)
    joined = np.concatenate([t[:s] for t, s in zip(y, sizes, strict=True)])
    with pytest.raises(ValueError, match=r"ctc_loss: `targets`.*known while tracing.*pad the targets to \(N, S\)"):
        jax.jit(loss)(x, joined, frames, sizes)
    with pytest.raises(ValueError, match=r"4 `target_lengths` that add up to 4, got"):
        loss(x, joined[:4], frames, [1, 1, 1, 2])
    with pytest.raises(ValueError, match=r"`input_lengths`.*shape \(4,\), got \(3,\)"):
        loss(x, y, frames[:3], sizes)
    with pytest.raises(ValueError, match=r"`targets` must have shape \(4, S\).*got \(3, 3\)"):
        loss(x, y[:3], frames, sizes)
    with pytest.raises(ValueError, match=r"`log_probs` must have shape \(N, T, C\).*got \(4, 9, 5, 1\)"):
        loss(x[..., None], y, frames, sizes)
    with pytest.raises(ValueError, match="`blank` must be a class, from 0 to 4, got 5"):
        loss(x, y, frames, sizes, blank=5)
    with pytest.raises(TypeError, match=r"`targets` of float64"):
        loss(x, y.astype(float), frames, sizes)
    with pytest.raises(TypeError, match="`log_probs` must be floating point, got int"):
        loss(y[..., None], y, frames, sizes)
    with pytest.raises(TypeError, match="`zero_infinity` must be True or False"):
        loss(x, y, frames, sizes, zero_infinity=1)
    with pytest.raises(ValueError, match="`implementation` must be"):
        loss(x, y, frames, sizes, implementation="triton")
    with pytest.raises(ValueError, match="`reduction` must be"):
        loss(x, y, frames, sizes, reduction="batchmean")


def test_no_frames_and_no_samples_at_all():
    frames, samples = jnp.zeros((0, 2, 3)), jnp.zeros((4, 0, 3))
    none, zero = jnp.zeros((2, 0), int), jnp.zeros(2, int)
    for loss in (jaxloss.ctc_loss, jaxloss.ctc_loss_with_logits):
        assert loss(frames, none, zero, zero, reduction="none").tolist() == [0, 0]
        assert jax.grad(loss)(frames, none, zero, zero).shape == frames.shape
    assert jaxloss.ctc_loss(frames, jnp.ones((2, 1), int), zero, zero + 1, reduction="none").tolist() == [np.inf] * 2
    assert jaxloss.ctc_posteriors(frames, none, zero, zero).labels.shape == (0, 2, 0)
    empty = jnp.zeros((0, 2), int), jnp.zeros(0, int), jnp.zeros(0, int)
    assert jaxloss.ctc_alignment(samples, *empty).labels.shape == (4, 0)
