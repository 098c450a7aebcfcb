"""Every pitfall of the documents is built and recognised, and nothing is said about what is right."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from cases import CASES

import jaxloss

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(6, 4)) * 2, jnp.float32)
CLASSES = jnp.array([0, 3, 1, 2, 0, 1])
IMAGE, PIXELS = jnp.asarray(RNG.normal(size=(2, 5, 3)), jnp.float32), jnp.asarray(RNG.integers(3, size=(2, 5)))
YES_NO = jnp.asarray(RNG.integers(2, size=(6, 4)), jnp.float32)
ONE_ROW = list({case.loss: case for case in CASES}.values())
HUGE = jnp.array([70000.0, 1.0, 2.0, 3.0])


def soft(x, axis=-1):
    return jax.nn.softmax(x, axis)


def saturated(x, t):
    return jnp.mean((jnp.clip(x, 0, 1) - t) ** 2)


def in_half_precision(x, t):
    return jnp.mean((x - t) ** 2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """What it compiles is algebra."""
    monkeypatch.setattr(jax, "jit", quick.jit)


ctc = functools.partial(jaxloss.ctc_loss_with_logits, targets=jnp.array([[1, 1, 2]]), target_lengths=jnp.array([3]))

# the pitfalls it has to name, and the call that has them
PITFALLS = [
    ({"softmax twice"}, jaxloss.cross_entropy, (soft(LOGITS), CLASSES), {}),
    ({"softmax twice"}, jaxloss.cross_entropy, (soft(IMAGE), PIXELS), {"axis": -1}),
    ({"softmax twice"}, jaxloss.softmax_focal_loss, (soft(LOGITS).astype(jnp.bfloat16), CLASSES), {}),
    ({"softmax twice"}, jaxloss.dice_loss, (soft(LOGITS), CLASSES), {"mode": "multiclass"}),
    ({"softmax twice"}, ctc, (soft(LOGITS)[:, None],), {"input_lengths": jnp.array([6])}),
    ({"sigmoid twice"}, jaxloss.binary_cross_entropy_with_logits, (jax.nn.sigmoid(LOGITS), YES_NO), {}),
    ({"sigmoid twice"}, jaxloss.sigmoid_focal_loss, (jax.nn.sigmoid(LOGITS[0]), YES_NO[0]), {}),
    ({"sigmoid twice"}, jaxloss.dice_loss, (jax.nn.sigmoid(LOGITS), YES_NO), {}),
    ({"column"}, jaxloss.mse_loss, (LOGITS[:, 0], LOGITS[:, :1]), {}),
    ({"column"}, jaxloss.cross_entropy, (LOGITS, CLASSES[:, None]), {}),
    ({"column"}, jaxloss.cross_entropy, (IMAGE, PIXELS[..., None]), {"axis": -1}),
    ({"column"}, lambda x, t: jnp.mean((x - t) ** 2), (LOGITS[:, 0], LOGITS[:, 1:2]), {}),
    ({"float classes"}, jaxloss.cross_entropy, (LOGITS, CLASSES.astype(jnp.float32)), {}),
    ({"float classes"}, jaxloss.multi_margin_loss, (LOGITS, CLASSES.astype(jnp.float32)), {}),
    ({"float classes", "column"}, jaxloss.cross_entropy, (LOGITS, CLASSES[:, None].astype(jnp.float32)), {}),
    ({"class axis"}, jaxloss.cross_entropy, (IMAGE, PIXELS), {}),
    ({"class axis"}, jaxloss.cross_entropy, (IMAGE, soft(IMAGE[:, ::-1])), {}),
    ({"nothing counts"}, jaxloss.cross_entropy, (LOGITS, jnp.full(6, -100)), {}),
    ({"nothing counts"}, jaxloss.mse_loss, (LOGITS, LOGITS), {"where": jnp.array(False)}),
    ({"nothing counts"}, jaxloss.nll_loss, (LOGITS, CLASSES), {"weight": jnp.zeros(4)}),
    ({"nothing counts"}, jaxloss.l1_loss, (LOGITS[:0], LOGITS[:0]), {}),
    ({"one class"}, jaxloss.cross_entropy, (LOGITS, jnp.full(6, 2).at[1].set(-100)), {}),
    ({"one class"}, jaxloss.binary_cross_entropy_with_logits, (LOGITS, jnp.zeros((6, 4))), {}),
    ({"one class"}, jaxloss.hinge_loss, (LOGITS, jnp.full((6, 4), -1)), {}),
    ({"one class"}, jaxloss.cross_entropy, (LOGITS[:, :1], jnp.zeros(6, jnp.int32)), {}),
    ({"out of range", "not finite", "gradient not finite"}, jaxloss.cross_entropy, (LOGITS, CLASSES + 1), {}),
    ({"out of range"}, jaxloss.kl_div, (LOGITS, soft(LOGITS)), {}),
    ({"not finite", "gradient not finite"}, jaxloss.mse_loss, (LOGITS.at[2, 1].set(jnp.nan), LOGITS), {}),
    ({"not finite"}, ctc, (LOGITS[:3, None],), {"input_lengths": jnp.array([3])}),
    ({"not finite", "gradient not finite"}, lambda x: jnp.mean(jnp.log(x)), (jnp.array([1.0, 0.0]),), {}),
    ({"zero gradient"}, saturated, (jnp.array([3.0, -2.0]), jnp.array([0.0, 1.0])), {}),
    ({"zero gradient"}, saturated, (jnp.array([3, -2], jnp.float16), jnp.array([0, 1], jnp.float16)), {}),
    ({"exploding gradient"}, jaxloss.binary_cross_entropy, (jnp.array([0.0, 0.5]), jnp.array([1.0, 1.0])), {}),
    ({"exploding gradient"}, jaxloss.gaussian_nll_loss, (LOGITS, LOGITS + 1, jnp.full((6, 4), 1e-6)), {}),
    (
        {"half precision", "not finite", "gradient not finite"},
        jaxloss.mse_loss,
        (HUGE.astype(jnp.float16), jnp.ones(4)),
        {},
    ),
    (
        {"half precision", "not finite"},
        in_half_precision,
        (jnp.full(4, 3e4, jnp.float16), jnp.zeros(4, jnp.float16)),
        {},
    ),
    (
        {"half precision"},
        jaxloss.binary_cross_entropy,
        (jnp.array([0, 0.5], jnp.float16), jnp.array([1.0, 1.0])),
        {},
    ),
    (
        {"half precision", "zero gradient"},
        jaxloss.cross_entropy,
        (jnp.array([[20.0, 0.0], [0.0, 20.0]], jnp.float16), jnp.array([0, 1])),
        {},
    ),
    ({"refused"}, jaxloss.binary_cross_entropy, (soft(LOGITS), CLASSES), {}),
    ({"refused"}, jaxloss.mse_loss, (LOGITS,), {}),
]


@pytest.mark.without_x64
@pytest.mark.parametrize(("pitfalls", "loss", "args", "kwargs"), PITFALLS, ids=[str(i) for i in range(len(PITFALLS))])
def test_recognises(pitfalls, loss, args, kwargs):
    diagnosis = jaxloss.diagnose(loss, *args, **kwargs)
    assert pitfalls <= diagnosis.pitfalls, diagnosis
    # And nothing that would mislead.
    consequences = (
        {"gradient not finite", "not finite", "exploding gradient"} if "half precision" in pitfalls else set()
    )
    assert diagnosis.pitfalls <= pitfalls | consequences | {"out of range"} & pitfalls, diagnosis
    text = str(diagnosis)
    assert all(str(hint) in text and hint.text for hint in diagnosis.hints)
    assert (diagnosis.error is None) == (diagnosis.value is not None)


@pytest.mark.parametrize("case", ONE_ROW, ids=lambda case: case.loss.__name__)
def test_says_nothing_of_what_is_right(case):
    diagnosis = jaxloss.diagnose(case.loss, **case.data(), **case.options)
    assert diagnosis.hints == (), diagnosis
    assert diagnosis.starts is None
    assert diagnosis.error is None
    assert set(diagnosis.arguments) >= set(case.data())
    assert diagnosis.gradients
    assert str(diagnosis).endswith("nothing suspicious")


@pytest.mark.without_x64
def test_says_nothing_of_what_is_only_unusual():
    right = [
        (jaxloss.cross_entropy, (jnp.zeros((6, 4)), CLASSES), {}),  # a model that has just begun
        (jaxloss.binary_cross_entropy_with_logits, (jnp.zeros((6, 4)), YES_NO), {}),
        (jaxloss.cross_entropy, (LOGITS.at[0, 1].set(-jnp.inf), CLASSES), {}),  # a class ruled out
        (jaxloss.cross_entropy, (LOGITS.at[0].set(jnp.nan), CLASSES.at[0].set(-100)), {}),
        (jaxloss.mse_loss, (LOGITS, LOGITS), {}),  # a loss of 0 has a gradient of 0
        (jaxloss.cross_entropy, (LOGITS, CLASSES[:1].repeat(6)), {"where": jnp.arange(6) < 2}),
        (jaxloss.binary_cross_entropy, (soft(LOGITS), YES_NO), {}),
        (jaxloss.cross_entropy, (LOGITS[:4], jnp.eye(4)), {}),  # sums to 1 along both axes
    ]
    for loss, args, kwargs in right:
        diagnosis = jaxloss.diagnose(loss, *args, **kwargs)
        assert diagnosis.hints == (), diagnosis


@pytest.mark.without_x64
def test_says_where_it_starts_and_how_many():
    in_input = jaxloss.diagnose(jaxloss.mse_loss, LOGITS.at[2, 1].set(jnp.nan).at[3, 0].set(jnp.inf), LOGITS)
    assert in_input.starts == "argument `input` at (2, 1)"
    assert (in_input.arguments["input"].nan, in_input.arguments["input"].inf) == (1, 1)
    assert "1 NaN, 1 inf of 24" in str(in_input)
    in_loss = jaxloss.diagnose(jaxloss.cross_entropy, LOGITS, CLASSES.at[4].set(9))
    assert in_loss.starts == "the loss at (4,)"
    assert "first 9 at position (4,)" in str(in_loss)
    in_gradient = jaxloss.diagnose(lambda x: jnp.sum(jnp.sqrt(x)), jnp.array([1.0, 0.0]))
    assert in_gradient.starts == "the gradient for `x` at (1,)"
    assert in_gradient.pitfalls == {"gradient not finite"}


@pytest.mark.without_x64
def test_its_fields():
    call = functools.partial(jaxloss.cross_entropy, reduction="sum_and_weight")
    diagnosis = jaxloss.diagnose(call, LOGITS, CLASSES)
    assert diagnosis.loss == "cross_entropy"
    assert diagnosis.arguments["target"].dtype == "int32"
    assert diagnosis.arguments["input"].shape == (6, 4)
    np.testing.assert_allclose(diagnosis.arguments["input"].high, LOGITS.max())
    np.testing.assert_allclose(diagnosis.value.low, jaxloss.cross_entropy(LOGITS, CLASSES, reduction="sum"), rtol=1e-6)
    assert diagnosis.unreduced.shape == (6,)
    gradient = jax.grad(lambda x: jaxloss.cross_entropy(x, CLASSES, reduction="sum"))(LOGITS)
    np.testing.assert_allclose(diagnosis.gradients["input"].norm, jnp.linalg.norm(gradient), rtol=1e-5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        diagnosis.loss = ""
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda x: jaxloss.diagnose(jaxloss.mse_loss, x, x))(LOGITS)
    spoilt = LOGITS.at[0, 0].set(jnp.nan)
    with jax.debug_nans(True):
        assert "not finite" in jaxloss.diagnose(jaxloss.mse_loss, spoilt, LOGITS).pitfalls


def test_a_loss_that_looks_at_values_is_run_as_it_is():
    def loss(x):
        return jnp.sum(x) if x[0] > 0 else jnp.sum(-x)

    assert jaxloss.diagnose(loss, jnp.array([1.0, 2.0])).hints == ()


@pytest.mark.without_x64
def test_what_wraps_a_loss_and_what_is_no_array():
    x, y = jnp.eye(3), jnp.array([0, 1, 2])
    expected = str(jaxloss.diagnose(jaxloss.cross_entropy, x, y))
    for loss in (jax.jit(jaxloss.cross_entropy), jaxloss.checked(jaxloss.cross_entropy)):
        assert str(jaxloss.diagnose(loss, x, y)) == expected
    assert "nothing suspicious" in str(jaxloss.diagnose(jaxloss.mse_loss, 1.0, 2.0))

    def noisy(x, key):
        return jnp.mean(x * jax.random.normal(key, x.shape))

    assert "nothing suspicious" in str(jaxloss.diagnose(noisy, x, jax.random.key(0)))
