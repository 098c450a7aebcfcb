"""The rows of "Where the values differ on purpose" in docs/from_pytorch.md as checks, torch's where they are short.

Each returns whether the cell is true. torch is given to its checks, which run where it is installed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss as j

INF, NAN = float("inf"), float("nan")


class Difference(NamedTuple):
    ours: Callable[[], Any]
    torchs: Callable[[Any, Any], Any] | None = None


def grad(loss, x, dtype=jnp.float32):
    return jax.jit(jax.grad(lambda x: jnp.sum(loss(x))))(jnp.asarray(x, dtype))


def tgrad(torch, loss, x, dtype=None):
    leaf = torch.tensor(x, dtype=dtype, requires_grad=True)
    loss(leaf).sum().backward()
    return leaf.grad


def f(*numbers):
    return jnp.asarray(numbers, jnp.float32)


def refused(call, error=Exception):
    try:
        call()
    except error:
        return True
    return False


def is_nan(x):
    return bool(np.isnan(np.asarray(x)).all())


def finite(x):
    return bool(np.isfinite(np.asarray(x)).all())


def half():
    loss, gradient = jax.value_and_grad(lambda x: j.cross_entropy(x, 0))(jnp.ones(3, jnp.bfloat16))
    return loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16


def poisoned():
    x = [[1.0, 2.0], [jnp.nan, jnp.inf]]
    return (grad(lambda x: j.cross_entropy(x, jnp.array([0, -100])), x)[1] == 0).all()


def bad_class():
    value, gradient = jax.value_and_grad(lambda x: j.cross_entropy(x, jnp.array([7, 0]), reduction="none")[0])(
        jnp.ones((2, 3))
    )
    return is_nan(value) and is_nan(gradient[0]) and finite(gradient[1])


def no_product_of_zero():
    x = f(1, 1, -INF)
    by_weight = j.cross_entropy(x, 0, weight=f(1, 1, 0), label_smoothing=0.1)
    return finite(by_weight) and finite(j.cross_entropy(x, f(0.5, 0.5, 0)))


def certain():
    value, gradient = jax.value_and_grad(lambda x: j.cross_entropy(x, 0))(f(30, 0))
    return np.isclose(value, np.exp(-30.0), rtol=1e-5) and np.isclose(gradient[0], -np.exp(-30.0), rtol=1e-5)


def no_weight():
    def loss(x):
        return j.cross_entropy(x, jnp.array([0, 0]), weight=f(0, 1))

    return is_nan(loss(jnp.ones((2, 2)))) and (grad(loss, np.ones((2, 2))) == 0).all()


def logits_at_infinity(loss):
    def both(x):
        return loss(x, f(1, 0, 1, 0))

    x = f(INF, -INF, -INF, INF)
    return both(x).tolist() == [0, 0, INF, INF] and finite(grad(both, x))


def chance_at_the_ends():
    return finite(grad(lambda t: j.binary_cross_entropy(f(0, 1), t), [0.3, 0.3]))


def chance_out_of_range():
    value, gradient = jax.value_and_grad(lambda p: j.binary_cross_entropy(p, f(1)))(f(1.5))
    return is_nan(value) and is_nan(gradient)


def nothing_expected():
    at = j.kl_div(f(-INF), f(0), reduction="sum")
    return at == 0 and finite(grad(lambda t: j.kl_div(f(-1), t), [0.0]))


def negative_variance():
    value, gradient = jax.value_and_grad(lambda x: j.gaussian_nll_loss(x, f(0), f(-1)))(f(1))
    return is_nan(value) and is_nan(gradient)


def soft_margin():
    value, gradient = jax.value_and_grad(lambda x: j.soft_margin_loss(x, f(1)))(f(-1000))
    return value == 1000 and gradient[0] == -1


def labels_out_of_range():
    return is_nan(j.multi_margin_loss(f(1, 2, 3), 5)) and is_nan(j.multilabel_margin_loss(f(1, 2), jnp.array([5, -1])))


def large_vectors():
    cosine = j.cosine_similarity(f(1e20, 1e20), f(1e20, 0), axis=-1)
    return np.isclose(cosine, np.sqrt(0.5)) and np.isclose(j.pairwise_distance(f(3e20, 4e20), f(0, 0)), 5e20)


def powers():
    x = jnp.ones((1, 2))
    return all(
        refused(lambda call=call: call(p=0.0), ValueError)
        for call in (
            lambda p: j.pairwise_distance(x, x, p=p),
            lambda p: j.triplet_margin_loss(x, x, x, p=p),
        )
    )


def ctc(x, target=(1, 1, 1), frames=4, labels=3, **options):
    return j.ctc_loss(x, jnp.asarray(target), jnp.asarray(frames), jnp.asarray(labels), **options)


def ctc_slope():
    x = jax.nn.log_softmax(jnp.sin(jnp.arange(12.0)).reshape(4, 3))
    slope, step = grad(lambda x: ctc(x, (1, 2), 4, 2), x)[0, 0], 1e-2
    value = jax.jit(lambda x: ctc(x, (1, 2), 4, 2))
    numeric = (value(x.at[0, 0].add(step)) - value(x.at[0, 0].add(-step))) / (2 * step)
    return np.isclose(slope, numeric, rtol=1e-2) and not np.isclose(slope + np.exp(x[0, 0]), numeric, rtol=1e-2)


def ctc_impossible():
    def loss(x):
        return ctc(jax.nn.log_softmax(x))

    return jax.jit(loss)(jnp.zeros((4, 3))) == INF and (grad(loss, np.zeros((4, 3))) == 0).all()


def ctc_twice():
    x = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
    return finite(jax.jit(jax.hessian(lambda x: ctc(jax.nn.log_softmax(x), (1, 2), 4, 2)))(x))


def ctc_out_of_range():
    x = jax.nn.log_softmax(jnp.zeros((4, 3)))
    return is_nan(ctc(x, (1, 7), 4, 2)) and is_nan(ctc(x, (1, 2), 9, 2))


def ctc_never():
    return ctc(jnp.full((2, 2), -2e6), (1,), 2, 1) == INF


X, TABLE = jnp.sin(jnp.arange(12.0)).reshape(4, 3), jnp.cos(jnp.arange(15.0)).reshape(5, 3)


def linear(x, **options):
    return j.linear_cross_entropy(x, TABLE, jnp.array([0, 4, 1, 2]), chunk_size=2, **options)


def linear_in_chunks():
    """No product in the trace has the logits of all rows."""
    soft = jnp.full((4, 5), 0.2)
    for call in (
        lambda x: linear(x, label_smoothing=0.1),
        lambda x: j.linear_cross_entropy(x, TABLE, soft, chunk_size=2),
    ):
        assert "f32[4,5] = dot_general" not in str(jax.make_jaxpr(jax.grad(call))(X))
    return True


def linear_twice():
    many = jax.vmap(lambda x: linear(x))(jnp.stack([X, X + 1]))
    return finite(jax.jit(jax.hessian(linear))(X)) and many.shape == (2,)


def linear_forward():
    one = jnp.ones_like(X)
    wrong = refused(lambda: jax.jvp(linear, (X,), (one,)), TypeError)
    _, slope = jax.jvp(lambda x: linear(x, implementation="autodiff"), (X,), (one,))
    return wrong and np.isclose(slope, grad(linear, X).sum(), rtol=1e-5)


def constant_denominator():
    slope = grad(lambda w: j.mse_loss(f(1, 3), f(0, 0), weight=w), [1.0, 1.0])
    return np.allclose(slope, [0.5, 4.5])  # x² / Σw; that of the quotient is (x² - mean) / Σw


CHECKS: dict[str, Difference] = {
    "float16 or bfloat16 input": Difference(
        half, lambda t, F: F.cross_entropy(t.ones(3, dtype=t.bfloat16), t.tensor(0)).dtype == t.bfloat16
    ),
    "NaN or inf in an ignored row": Difference(
        poisoned,
        lambda t, F: (
            tgrad(t, lambda x: F.cross_entropy(x, t.tensor([0, -100])), [[1.0, 2.0], [NAN, INF]])[1].isnan().all()
        ),
    ),
    "shapes that differ": Difference(
        lambda: refused(lambda: j.mse_loss(jnp.ones(3), jnp.ones((3, 1))), ValueError),
        lambda t, F: F.mse_loss(t.ones(3), t.ones(3, 1), reduction="none").shape == (3, 3),
    ),
    "class index out of range": Difference(
        bad_class, lambda t, F: refused(lambda: F.cross_entropy(t.ones(1, 3), t.tensor([7])), IndexError)
    ),
    "dtype of class indices": Difference(
        lambda: j.cross_entropy(jnp.ones((1, 3)), jnp.array([1], jnp.int8)) > 0,
        lambda t, F: refused(lambda: F.cross_entropy(t.ones(1, 3), t.tensor([1], dtype=t.int32))),
    ),
    "0 · inf: a class of logit -inf with weight, probability or smoothing 0": Difference(
        no_product_of_zero,
        lambda t, F: F.cross_entropy(t.tensor([1.0, 1.0, -INF]), t.tensor([0.5, 0.5, 0.0])).isnan(),
    ),
    "float32 loss and gradient of a class that is all but certain": Difference(
        certain, lambda t, F: F.cross_entropy(t.tensor([17.5, 0.0]), t.tensor(0)) == 0
    ),
    "weights that sum to 0, mean": Difference(
        no_weight,
        lambda t, F: (
            tgrad(t, lambda x: F.cross_entropy(x, t.tensor([0]), weight=t.tensor([0.0, 1.0])), [[1.0, 1.0]])
            .isnan()
            .all()
        ),
    ),
    "`binary_cross_entropy_with_logits` at ±inf": Difference(
        lambda: logits_at_infinity(lambda x, t: j.binary_cross_entropy_with_logits(x, t, reduction="none")),
        lambda t, F: F.binary_cross_entropy_with_logits(t.tensor(INF), t.tensor(1.0)).isnan(),
    ),
    "`binary_cross_entropy`, gradient of a target at probability 0 or 1": Difference(
        chance_at_the_ends,
        lambda t, F: tgrad(t, lambda y: F.binary_cross_entropy(t.tensor([0.0]), y), [0.3]).isinf().all(),
    ),
    "`binary_cross_entropy`, probability outside [0, 1]": Difference(
        chance_out_of_range,
        lambda t, F: refused(lambda: F.binary_cross_entropy(t.tensor([1.5]), t.tensor([1.0])), RuntimeError),
    ),
    "`kl_div`, target 0 at log-input -inf, or the gradient of a target of 0": Difference(
        nothing_expected, lambda t, F: F.kl_div(t.tensor([-INF]), t.tensor([0.0]), reduction="sum").isnan()
    ),
    "`poisson_nll_loss`, count 0 at log-input -inf": Difference(
        lambda: j.poisson_nll_loss(f(-INF), f(0)) == 0,
        lambda t, F: F.poisson_nll_loss(t.tensor([-INF]), t.tensor([0.0])).isnan(),
    ),
    "`gaussian_nll_loss`, negative variance in an array": Difference(
        negative_variance,
        lambda t, F: refused(lambda: F.gaussian_nll_loss(t.ones(1), t.zeros(1), -t.ones(1)), ValueError),
    ),
    "`soft_margin_loss` at y·x = -1000": Difference(
        soft_margin, lambda t, F: F.soft_margin_loss(t.tensor([-1000.0]), t.tensor([1.0])).isinf()
    ),
    "`multilabel_soft_margin_loss` at ±inf": Difference(
        lambda: logits_at_infinity(
            lambda x, t: j.multilabel_soft_margin_loss(x[:, None], t[:, None], reduction="none")
        ),
        lambda t, F: F.multilabel_soft_margin_loss(t.tensor([[INF]]), t.tensor([[1.0]])).isnan(),
    ),
    "`multilabel_margin_loss`, `multi_margin_loss`, label out of range": Difference(
        labels_out_of_range, lambda t, F: refused(lambda: F.multi_margin_loss(t.ones(1, 3), t.tensor([5])))
    ),
    "`cosine_similarity`, `pairwise_distance` of vectors near 1e20": Difference(
        large_vectors,
        lambda t, F: (
            F.cosine_similarity(t.full((2,), 1e20), t.full((2,), 1e20), dim=0) == 0
            and F.pairwise_distance(t.full((2,), 1e20), t.zeros(2)).isinf()
        ),
    ),
    "`pairwise_distance`, `triplet_margin_loss` with p ≤ 0": Difference(
        powers, lambda t, F: F.pairwise_distance(t.ones(2), t.zeros(2), p=0.0) == 2
    ),
    "`ctc_loss`, gradient for `log_probs`": Difference(ctc_slope),
    "`ctc_loss` of a target that cannot be aligned": Difference(
        ctc_impossible,
        lambda t, F: (
            tgrad(
                t,
                lambda x: F.ctc_loss(x.log_softmax(-1), t.tensor([1, 1, 1]), t.tensor(4), t.tensor(3)),
                [[0.0] * 3] * 4,
            )
            .isnan()
            .all()
        ),
    ),
    "`ctc_loss`, second derivatives": Difference(ctc_twice),
    "`ctc_loss`, length or label out of range": Difference(ctc_out_of_range),
    "`ctc_loss`, float32 gradient at 1,000 frames": Difference(lambda: True),  # measured by benchmarks/accuracy.py
    "`ctc_loss`, a log-probability below -1e6": Difference(
        ctc_never,
        lambda t, F: F.ctc_loss(t.full((2, 2), -2e6), t.tensor([1]), t.tensor(2), t.tensor(1)).isfinite(),
    ),
    "`linear_cross_entropy` in chunks with smoothing, probabilities or K dimensions": Difference(linear_in_chunks),
    "`linear_cross_entropy` in chunks, second derivatives and `vmap`": Difference(linear_twice),
    "`linear_cross_entropy` in chunks, forward mode": Difference(linear_forward),
    "gradient of `mse_loss` and `l1_loss` for `weight`, mean": Difference(
        constant_denominator,
        lambda t, F: np.allclose(
            tgrad(t, lambda w: F.mse_loss(t.tensor([1.0, 3.0]), t.zeros(2), weight=w), [1.0, 1.0]), [-2.0, 2.0]
        ),
    ),
}
