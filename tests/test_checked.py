"""Losses that look at their values: what they refuse, where they say it stands, and that nobody pays for it unasked."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from cases import CASES
from jax.experimental import checkify
from test_surface import LOSSES

import jaxloss
from jaxloss._rules import RULES

ONE_ROW = list({case.loss: case for case in CASES}.values())
LOGITS, CLASSES = np.linspace(-1, 2, 12).reshape(4, 3), np.array([0, 2, 1, 1])
SHARES = np.linspace(0, 1, 6).reshape(2, 3)
CTC = (np.log(np.full((4, 2, 3), 1 / 3)), np.array([[1, 2], [1, 1]]), np.array([4, 3]), np.array([2, 1]))
BOXES = np.array([[0.0, 0, 1, 1], [1, 1, 2, 2]])


def test_every_loss_has_its_line():
    assert set(RULES) == set(LOSSES)


def changed(x, place, value):
    x = np.array(x, copy=True)
    x[place] = value
    return x


def at(place):
    return "(" + ", ".join(map(str, place)) + ("," if len(place) == 1 else "") + ")"


# loss, arguments, options, the argument to spoil, where, and with what
BAD = [
    ("cross_entropy", (LOGITS, CLASSES), {}, "target", (2,), 3),
    ("cross_entropy", (LOGITS, CLASSES), {}, "target", (0,), -1),
    ("cross_entropy", (LOGITS, CLASSES), {}, "input", (3, 1), np.nan),
    ("cross_entropy", (LOGITS, CLASSES), {}, "input", (3, 1), -np.inf),
    ("cross_entropy", (LOGITS, CLASSES), {}, "input", (3, 0), np.inf),
    ("cross_entropy", (LOGITS, np.eye(3)[CLASSES]), {}, "target", (1, 2), 1.5),
    ("cross_entropy", (LOGITS, np.eye(3)[CLASSES]), {}, "input", (1, 2), -np.inf),
    ("cross_entropy", (LOGITS.reshape(2, 2, 3), CLASSES.reshape(2, 2)), {"axis": -1}, "target", (1, 0), 7),
    ("cross_entropy", (LOGITS, CLASSES), {"weight": np.ones(3)}, "weight", (2,), np.nan),
    ("nll_loss", (LOGITS, CLASSES), {"ignore_index": 1}, "target", (1,), 4),
    ("multi_margin_loss", (LOGITS, CLASSES), {}, "target", (1,), -100),
    ("multilabel_margin_loss", (LOGITS[:2], np.array([[0, -1, 9], [1, 2, -1]])), {}, "target", (1, 1), 3),
    ("distillation_loss", (LOGITS, LOGITS), {}, "teacher", (2, 0), np.nan),
    ("softmax_focal_loss", (LOGITS, CLASSES), {}, "target", (3,), 3),
    ("binary_cross_entropy", (SHARES, SHARES), {}, "input", (1, 0), 1.0001),
    ("binary_cross_entropy", (SHARES, SHARES), {}, "target", (0, 2), -0.1),
    ("binary_cross_entropy_with_logits", (SHARES, SHARES), {}, "input", (1, 1), -np.inf),
    ("binary_cross_entropy_with_logits", (SHARES, SHARES), {}, "target", (1, 1), 2),
    ("multilabel_soft_margin_loss", (SHARES, SHARES), {}, "target", (1, 1), -1),
    ("dice_loss", (LOGITS, CLASSES), {"mode": "multiclass"}, "target", (2,), 3),
    ("dice_loss", (SHARES, SHARES), {}, "target", (0, 1), 255),
    ("mse_loss", (SHARES, SHARES), {}, "target", (0, 0), np.inf),
    ("l1_loss", (SHARES, SHARES), {"weight": SHARES}, "weight", (1, 2), np.nan),
    ("gaussian_nll_loss", (SHARES, SHARES, SHARES + 1), {}, "var", (1, 2), -1e-3),
    ("poisson_nll_loss", (SHARES, SHARES), {}, "target", (0, 1), -1),
    ("poisson_nll_loss", (SHARES, SHARES), {"log_input": False}, "input", (0, 1), -1),
    ("mean_squared_logarithmic_error", (SHARES, SHARES), {}, "input", (1, 1), -1),
    ("kl_div", (np.log(SHARES + 0.1) - 1, SHARES), {}, "input", (0, 2), 0.5),
    ("kl_div", (np.log(SHARES + 0.1) - 1, SHARES - 1), {"log_target": True}, "target", (0, 2), 0.5),
    ("hinge_embedding_loss", (SHARES, np.sign(SHARES - 0.5)), {}, "target", (0, 2), 0),
    ("cosine_embedding_loss", (LOGITS, LOGITS, np.array([1, -1, 1, 1])), {}, "target", (2,), 0),
    ("triplet_margin_loss", (LOGITS, LOGITS, LOGITS), {}, "negative", (3, 2), np.nan),
    ("info_nce_loss", (LOGITS, LOGITS), {}, "positive", (0, 2), np.nan),
    ("box_iou_loss", (BOXES, BOXES), {}, "boxes2", (1, 3), 0.5),
    ("ctc_loss", CTC, {}, "log_probs", (2, 0, 1), 0.5),
    ("ctc_loss", CTC, {}, "targets", (0, 1), 3),
    ("ctc_loss", CTC, {}, "input_lengths", (1,), 5),
    ("ctc_loss", CTC, {}, "target_lengths", (0,), -1),
    ("ctc_loss_with_logits", CTC, {}, "logits", (3, 0, 2), np.nan),
]


def spoilt(loss, arrays, options, argument, place, value):
    names = list(jaxloss.__dict__[loss].__code__.co_varnames[: len(arrays)])
    arguments = {**dict(zip(names, arrays, strict=True)), **options}
    arguments[argument] = changed(arguments[argument], place, value)
    return arguments


@functools.cache
def errors_of(loss, static):
    """The error alone, compiled: XLA drops the loss."""
    function = functools.partial(jaxloss.checked(loss), **dict(static))
    return quick.jit(lambda arrays: checkify.checkify(function)(**arrays)[0])


def error_of(loss, arguments):
    static = {name: x for name, x in arguments.items() if not isinstance(x, np.ndarray)}
    arrays = {name: x for name, x in arguments.items() if name not in static}
    return errors_of(loss, tuple(static.items()))(arrays).get()


@pytest.mark.parametrize(
    ("loss", "arrays", "options", "argument", "place", "value"), BAD, ids=lambda x: x if isinstance(x, str) else ""
)
def test_names_function_argument_position_and_value(loss, arrays, options, argument, place, value):
    arguments = spoilt(loss, arrays, options, argument, place, value)
    message = error_of(getattr(jaxloss, loss), arguments)
    assert message is not None
    assert message.startswith(f"{loss}: `{argument}` must be "), message
    assert re.search(rf"got {re.escape(str(jnp.asarray(value).astype(arguments[argument].dtype)))}\b", message), message
    assert f"at position {at(place)}." in message


def test_raises_at_once_outside_of_jit():
    loss = jaxloss.checked(jaxloss.mse_loss)
    message = r"mse_loss: `target` must be finite, got nan at position \(1, 2\)"
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        loss(SHARES, changed(SHARES, (1, 2), np.nan))
    np.testing.assert_allclose(jax.grad(loss)(SHARES, SHARES + 1), -1 / 3)


@pytest.mark.parametrize("case", ONE_ROW, ids=lambda case: case.loss.__name__)
def test_passes_what_is_right(case):
    assert error_of(case.loss, {**case.data(), **case.options}) is None


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (jaxloss.cross_entropy, np.eye(4, dtype=np.float32)[None].repeat(2, 0)),
        (jaxloss.sparsemax_loss, np.arange(8).reshape(2, 4) % 4),
        (jaxloss.multilabel_margin_loss, np.array([[[0, -1, 0, 0]] * 4, [[3, 2, 1, -1]] * 4])),
    ],
    ids=["probabilities", "sparsemax", "multilabel_margin"],
)
def test_loops_of_a_loss_under_vmap(loss, target):
    # Checkify refuses a loop that has a condition for each sample.
    x = jnp.cos(jnp.arange(32.0)).reshape(2, 4, 4).at[1].multiply(50)
    each = quick.jit(checkify.checkify(jax.vmap(loss)))
    error, values = each(x, target)
    assert error.get() is None
    np.testing.assert_allclose(values, [loss(*sample) for sample in zip(x, target, strict=True)], rtol=1e-6)


def test_inside_jit_grad_vmap_and_scan():
    loss = jaxloss.checked(jaxloss.cross_entropy)
    x, good, bad = (jnp.asarray(a) for a in (LOGITS, CLASSES, changed(CLASSES, (2,), 5)))
    step = quick.jit(checkify.checkify(lambda x, y: (jax.value_and_grad(loss)(x, y), jax.vmap(loss)(x, y))))
    error, ((value, gradient), each) = step(x, good)
    assert error.get() is None
    np.testing.assert_allclose(value, each.mean())
    np.testing.assert_allclose(gradient, jax.grad(jaxloss.cross_entropy)(x, good))
    assert "got 5 at position (2,)" in step(x, bad)[0].get()
    assert "got 5 at position ()" in quick.jit(checkify.checkify(jax.vmap(loss)))(x, bad)[0].get()

    def over_batches(x, ys):
        return jax.lax.scan(lambda total, y: (total + loss(x, y), None), 0.0, ys)[0]

    error, _ = quick.jit(checkify.checkify(over_batches))(x, jnp.stack([good, bad]))
    assert "`target` must be a class index in [0, 3), got 5 at position (2,)" in error.get()
    with pytest.raises(ValueError, match="not functionalized"):
        jax.jit(loss)(x, good)


def test_what_does_not_count_may_be_anything():
    logits, classes = changed(LOGITS, 1, np.nan), changed(CLASSES, (1,), 99)
    keep, one = np.array([[True, False, True]]), np.array([True, False, True, True])
    log_probs, targets, frames, sizes = CTC
    ctc = {"targets": targets, "input_lengths": frames, "target_lengths": sizes}

    def passes(loss, **arguments):
        error = error_of(loss, arguments)
        assert error is None, error

    passes(jaxloss.cross_entropy, input=logits, target=classes, ignore_index=99)
    passes(jaxloss.cross_entropy, input=logits, target=classes, where=one)
    passes(jaxloss.cross_entropy, input=changed(LOGITS, (0, 1), -np.inf), target=CLASSES)  # a class ruled out
    passes(jaxloss.binary_cross_entropy, input=changed(SHARES, (0, 1), np.nan), target=SHARES, where=keep)
    passes(jaxloss.mse_loss, input=SHARES, target=SHARES, weight=changed(SHARES, (1, 1), np.nan), where=keep)
    passes(jaxloss.dice_loss, input=logits, target=classes, mode="multiclass", ignore_index=99)
    passes(jaxloss.dice_loss, input=SHARES, target=changed(SHARES, (0, 1), 255), ignore_index=255)
    passes(jaxloss.triplet_margin_loss, anchor=logits, positive=LOGITS, negative=LOGITS, where=one)
    own = np.repeat(logits[:, None], 2, 1)
    passes(jaxloss.info_nce_loss, query=logits, positive=LOGITS, negatives=own, where=one)
    shared = {"query": LOGITS, "positive": LOGITS, "negatives": logits, "where": one}  # the mask is one of queries
    assert "`negatives` must be finite, got nan at position (1, 0)" in error_of(jaxloss.info_nce_loss, shared)
    passes(jaxloss.ctc_loss, log_probs=changed(log_probs, (3, 1), np.nan), **ctc)
    beyond = {**ctc, "targets": changed(targets, (1, 1), 9), "input_lengths": np.array([9, 3])}
    passes(jaxloss.ctc_loss, log_probs=changed(log_probs, (0, 0), 7), **beyond, where=np.array([False, True]))


def test_concatenated_targets_and_indices_too_large_for_int32():
    log_probs, targets, frames, _ = CTC

    def error(targets):  # lengths that decide a shape are static
        loss = functools.partial(jaxloss.checked(jaxloss.ctc_loss), target_lengths=np.array([2, 1]))
        return quick.jit(lambda x: checkify.checkify(loss)(x, targets, frames)[0])(log_probs).get()

    assert error(targets.ravel()[:3]) is None
    assert "`targets` must be a class index in [0, 3), got 8 at position (2,)" in error(np.array([1, 2, 8]))
    with jax.enable_x64(False), pytest.raises(checkify.JaxRuntimeError, match=r"got 2147483647 at position \(1,\)"):
        jaxloss.checked(jaxloss.nll_loss)(LOGITS, changed(CLASSES, (1,), 2**32 + 1))


def test_of_a_partial_and_of_nothing_it_knows():
    total = jaxloss.checked(functools.partial(jaxloss.cross_entropy, reduction="sum", axis=1))
    np.testing.assert_allclose(total(LOGITS, CLASSES), jaxloss.cross_entropy(LOGITS, CLASSES, reduction="sum"))
    with pytest.raises(checkify.JaxRuntimeError, match="cross_entropy: `target`"):
        total(LOGITS, CLASSES + 1)

    def mse_loss(x, y):
        return jnp.mean((x - y) ** 2)

    for stranger in (jaxloss.log_softmax, jnp.sum, mse_loss):
        with pytest.raises(ValueError, match="must be a loss of this package"):
            jaxloss.checked(stranger)
    with pytest.raises(TypeError, match="class indices must be integers"):  # what the loss refuses comes first
        jaxloss.checked(jaxloss.cross_entropy)(LOGITS, CLASSES.astype(float))


def test_costs_nothing_when_not_used():
    for path in Path(jaxloss.__file__).parent.rglob("*.py"):
        assert path.stem == "_checked" or "import checkify" not in path.read_text()

    def traced(loss, *arrays):
        return jax.make_jaxpr(loss)(*arrays)

    for loss, arrays in ((jaxloss.cross_entropy, (LOGITS, CLASSES)), (jaxloss.ctc_loss, CTC)):
        alone = traced(loss, *arrays)
        with_checks = traced(jaxloss.checked(loss), *arrays)
        assert sum(e.primitive.name == "check" for e in with_checks.jaxpr.eqns) == len(arrays)
        assert str(traced(loss, *arrays)) == str(alone)
        assert "check[" not in str(alone)
        # And the checks are all that was added.
        assert [str(e.primitive) for e in with_checks.jaxpr.eqns][: len(alone.jaxpr.eqns)] == [
            str(e.primitive) for e in alone.jaxpr.eqns
        ]
