"""Micro-batches with different numbers of valid tokens add up to one large batch, through "sum_and_weight"."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick

import jaxloss

SIZES = (1, 4, 2)  # of the micro-batches
VOCABULARY, FEATURES, TOKENS = 7, 6, 9


def batch(size, seed, valid):
    """Features (size, T, H) and labels (size, T), of which a share of `valid` counts, but at least one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, VOCABULARY, size=(size, TOKENS))
    labels[rng.random(labels.shape) > valid] = -100
    labels[0, 0] = 1
    return {
        "features": rng.normal(size=(size, TOKENS, FEATURES)),
        "labels": labels,
        "frames": rng.integers(6, TOKENS + 1, size=size),
        "lengths": rng.integers(1, 4, size=size),
    }


PARTS = [batch(size, n, valid) for n, (size, valid) in enumerate(zip(SIZES, (0.9, 0.1, 0.6), strict=True))]
WHOLE = {name: np.concatenate([part[name] for part in PARTS]) for name in PARTS[0]}
PARAMS = {"w": np.random.default_rng(9).normal(size=(VOCABULARY, FEATURES))}
WEIGHT = np.linspace(0.2, 2.0, VOCABULARY)


def logits(params, part):
    return part["features"] @ params["w"].T


def by_cross_entropy(params, part, reduction):
    return jaxloss.cross_entropy(logits(params, part), part["labels"], weight=WEIGHT, axis=-1, reduction=reduction)


def by_ctc(params, part, reduction):
    log_probs = jax.nn.log_softmax(logits(params, part))
    targets = np.where(part["labels"] < 0, 1, part["labels"])[:, :3]
    return jaxloss.ctc_loss(
        log_probs, targets, part["frames"], part["lengths"], batch_first=True, zero_infinity=True, reduction=reduction
    )


def by_linear_cross_entropy(params, part, reduction):
    loss = jaxloss.linear_cross_entropy
    return loss(part["features"], params["w"], part["labels"], weight=WEIGHT, reduction=reduction)


BY = {"cross_entropy": by_cross_entropy, "ctc_loss": by_ctc, "linear_cross_entropy": by_linear_cross_entropy}
each = pytest.mark.parametrize("name", [name for name in BY if hasattr(jaxloss, name)])


@each
def test_micro_batches_are_one_large_batch(name):
    loss = BY[name]

    @quick.jit
    def results(params):
        large = jax.value_and_grad(lambda p: loss(p, WHOLE, "mean"))(params)
        total = weight = 0.0
        gradient = jax.tree.map(jnp.zeros_like, params)
        for part in PARTS:
            (numerator, denominator), pull = jax.vjp(lambda p, part=part: loss(p, part, "sum_and_weight"), params)
            total, weight = total + numerator, weight + denominator
            gradient = jax.tree.map(jnp.add, gradient, pull((jnp.ones(()), jnp.zeros(())))[0])
        accumulated = (total / weight, jax.tree.map(lambda g: g / weight, gradient))
        naive = sum(loss(params, part, "mean") for part in PARTS) / len(PARTS)
        return large, accumulated, naive

    large, accumulated, naive = results(PARAMS)
    chex.assert_trees_all_close(accumulated, large, rtol=1e-12, atol=1e-15)
    assert abs(naive - large[0]) > 1e-2 * abs(large[0]), "the mean of means is another number"


def test_multi_steps_of_optax_is_exact_once_each_part_is_scaled():
    """MultiSteps takes the mean of the gradients: each is numerator · k / denominator of all."""
    loss, count = by_cross_entropy, len(PARTS)
    optimizer = optax.MultiSteps(optax.sgd(0.1), count)

    @quick.jit
    def results(params):
        weight = sum(loss(params, part, "sum_and_weight")[1] for part in PARTS)
        state, accumulated = optimizer.init(params), params
        for part in PARTS:
            scaled = jax.grad(lambda p, part=part: loss(p, part, "sum_and_weight")[0] * count / weight)(params)
            updates, state = optimizer.update(scaled, state, accumulated)
            accumulated = optax.apply_updates(accumulated, updates)
        large = jax.grad(lambda p: loss(p, WHOLE, "mean"))(params)
        return accumulated, jax.tree.map(lambda p, g: p - 0.1 * g, params, large)

    chex.assert_trees_all_close(*results(jax.tree.map(jnp.asarray, PARAMS)), rtol=1e-6)
