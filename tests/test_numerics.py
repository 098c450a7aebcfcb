"""Log-sum-exp and its family: value, derivatives, what is kept for the backward pass."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import quick

import jaxloss

FUNCTIONS = {
    "logsumexp": (jaxloss.logsumexp, oracles.logsumexp),
    "log_softmax": (jaxloss.log_softmax, oracles.log_softmax),
}
each = pytest.mark.parametrize("name", FUNCTIONS)


@each
@pytest.mark.parametrize(("shape", "axis"), [((5,), 0), ((3, 4), -1), ((3, 4), 0), ((2, 3, 4), 1), ((2, 1), 1)])
def test_value_and_derivatives(name, shape, axis):
    function, oracle = FUNCTIONS[name]
    x = np.random.default_rng(0).normal(size=shape) * 4
    np.testing.assert_allclose(function(x, axis), oracle(x, axis), rtol=1e-12, atol=1e-14)
    quick.check_two_derivatives(partial(function, axis=axis), x, rtol=1e-6, atol=1e-6)
    reference = getattr(jax.nn, name)

    def hessian(f):
        return quick.jit(jax.hessian(lambda x: jnp.sum(f(x, axis) ** 2)))(x)

    chex.assert_trees_all_close(hessian(function), hessian(reference), atol=1e-10)


@each
def test_vmap_over_any_axis(name):
    function, _ = FUNCTIONS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)))
    looped = jnp.stack([function(x[:, i], 0) for i in range(4)])
    chex.assert_trees_all_close(jax.vmap(partial(function, axis=0), in_axes=1)(x), looped, rtol=1e-13)


def kept(function, *args):
    """Shapes of what the backward pass keeps."""
    _, backward = jax.eval_shape(partial(jax.vjp, function), *args)
    return sorted(leaf.shape for leaf in jax.tree.leaves(backward))


@each
def test_keeps_its_input_and_two_numbers_per_row(name):
    function, _ = FUNCTIONS[name]
    assert kept(function, jax.ShapeDtypeStruct((4, 1000), jnp.float32)) == [(4,), (4,), (4, 1000)]
    _, backward = jax.vjp(function, jnp.ones((4, 1000), jnp.bfloat16))
    wide = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == (4, 1000)]
    assert [leaf.dtype for leaf in wide] == [jnp.bfloat16]


@pytest.mark.parametrize("weight", [None, np.ones(1000, np.float32)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_cross_entropy_keeps_the_logits_and_numbers_per_row(weight, dtype):
    def loss(x, where):
        y = jnp.zeros(x.shape[0], jnp.int32)
        return jaxloss.cross_entropy(x, y, weight=weight, label_smoothing=0.1, where=where, reduction="none")

    logits, where = jax.ShapeDtypeStruct((4, 1000), dtype), jax.ShapeDtypeStruct((4,), bool)
    _, backward = jax.eval_shape(partial(jax.vjp, loss), logits, where)
    wide = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= 4000]
    assert [(leaf.shape, leaf.dtype) for leaf in wide] == [((4, 1000), dtype)]


def test_the_compiled_gradient_needs_no_second_array_of_logits():
    x, y = jax.ShapeDtypeStruct((512, 4096), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(jaxloss.cross_entropy)).lower(x, y).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < x.size * 4 / 50


def test_softmax_gradient_sums_to_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)) * 30)
    np.testing.assert_allclose(jnp.sum(jax.grad(lambda x: jnp.sum(jaxloss.logsumexp(x)))(x), 1), 1, rtol=1e-12)


def test_infinities():
    x = jnp.array([-jnp.inf, 0.0, 1.0])
    np.testing.assert_allclose(jax.grad(jaxloss.logsumexp)(x), [0, 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-12)
    assert jaxloss.logsumexp(jnp.array([jnp.inf, 0.0])) == jnp.inf
    assert jaxloss.logsumexp(jnp.zeros((2, 0))).tolist() == [-jnp.inf, -jnp.inf]
    with jax.debug_nans(True):
        assert jax.grad(jaxloss.logsumexp)(jnp.full(3, -jnp.inf)).tolist() == [0, 0, 0]


def test_implementations_agree_under_random_cotangents():
    rng = np.random.default_rng(3)
    x, y = jnp.asarray(rng.normal(size=(6, 9)) * 5), jnp.asarray(rng.integers(0, 9, 6))
    q = jax.nn.softmax(jnp.asarray(rng.normal(size=(6, 9))))
    weight, g = jnp.asarray(rng.uniform(0.1, 2, 9)), jnp.asarray(rng.normal(size=6))

    def gradients(implementation, target, moving):
        def loss(x, weight, smoothing, *target):
            rows = jaxloss.cross_entropy(
                x, *target, weight=weight, label_smoothing=smoothing, implementation=implementation, reduction="none"
            )
            return jnp.sum(g * rows)

        return quick.jit(jax.value_and_grad(loss, moving))(x, weight, 0.3, target)

    for target, moving in ((y, (0, 1, 2)), (q, (0, 1, 2, 3))):
        chex.assert_trees_all_close(
            gradients("xla", target, moving), gradients("autodiff", target, moving), rtol=1e-12, atol=1e-13
        )
