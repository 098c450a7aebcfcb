"""Several losses as one: every method against its paper, its invariants, and jit, vmap, scan and devices."""

import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_multitask as oracles
import pytest
import quick
from jax import export

from jaxloss import multitask

LOSSES = {"class": 2.0, "box": 0.5, "depth": 3.0}
KINDS = {"class": "classification", "box": "regression", "depth": "regression"}
NAN = jnp.array(jnp.nan)


def as_arrays(losses):
    return {task: jnp.asarray(value) for task, value in losses.items()}


def test_weighted_sum_of_numbers_arrays_and_schedules():
    schedule = optax.linear_schedule(0.0, 2.0, 10)
    weights = {"class": 1, "box": jnp.array(4.0), "depth": schedule}

    @quick.jit
    def terms(losses, step):
        return multitask.weighted_sum(losses, weights, step=step)

    for step in (0, 5, 20):
        got = terms(as_arrays(LOSSES), step)
        expected = {"class": 2.0, "box": 2.0, "depth": 3.0 * float(schedule(step))}
        chex.assert_trees_all_close(got.weighted, expected, rtol=1e-6)
        chex.assert_trees_all_close(got.raw, LOSSES)
        np.testing.assert_allclose(got.total, sum(expected.values()), rtol=1e-6)
        chex.assert_trees_all_close(got.total, sum(got.weighted.values()), rtol=1e-12)
    assert multitask.weighted_sum(as_arrays(LOSSES)).total == 5.5
    grads = quick.jit(jax.grad(lambda x: multitask.weighted_sum(x, weights, step=5).total))(as_arrays(LOSSES))
    chex.assert_trees_all_close(grads, {"class": 1.0, "box": 4.0, "depth": 1.0}, rtol=1e-6)


@pytest.mark.without_x64
def test_half_precision_is_summed_in_float32():
    terms = multitask.weighted_sum({"a": jnp.float16(40000), "b": jnp.float16(40000)}, {"a": jnp.float16(1), "b": 1})
    assert terms.total == 80000
    assert terms.total.dtype == jnp.float32


def undefined(x):
    """NaN, and so is its gradient."""
    return jnp.sum(jnp.sqrt(-jnp.abs(x)))


@pytest.mark.parametrize("kind", ["number", "function", "traced function", "schedule"])
def test_a_weight_of_zero_skips_a_task_even_if_it_is_nan(kind):
    def total(x, weight):
        value = undefined(x) if kind == "number" else lambda: undefined(x)
        weight = {"number": 0, "function": 0.0, "traced function": weight}.get(kind, optax.constant_schedule(0.0))
        terms = multitask.weighted_sum({"good": jnp.sum(x**2), "bad": value}, {"good": 3.0, "bad": weight}, step=7)
        return terms.total, terms

    x = jnp.array([1.0, -2.0])
    (value, terms), gradient = quick.jit(jax.value_and_grad(total, has_aux=True))(x, jnp.array(0.0))
    assert value == 15
    assert terms.weighted["bad"] == 0
    assert jnp.isnan(terms.raw["bad"])
    np.testing.assert_array_equal(gradient, 6 * x)
    if kind == "traced function":
        value, _ = quick.jit(total)(x, jnp.array(1.0))
        assert jnp.isnan(value)
        several = quick.jit(jax.vmap(jax.grad(lambda x, w: total(x, w)[0]), (None, 0)))(x, jnp.zeros(2))
        np.testing.assert_array_equal(several, [6 * x] * 2)


def test_a_traced_weight_of_zero_masks_a_number():
    def total(losses, weight):
        return multitask.weighted_sum(losses, {"good": 1.0, "bad": weight}).total

    losses = {"good": jnp.array(2.0), "bad": NAN}
    value, (by_loss, by_weight) = quick.jit(jax.value_and_grad(total, (0, 1)))(losses, jnp.array(0.0))
    assert value == 2
    assert by_loss == {"good": 1, "bad": 0}
    assert by_weight == 0


@pytest.mark.parametrize("traced", [False, True])
def test_every_method_skips_a_task(traced):
    losses = {**as_arrays(LOSSES), "box": NAN}
    gradients = {task: jnp.full(3, NAN if task == "box" else 1.0) for task in losses}

    @quick.jit
    def three_steps(weight):
        weights = {"class": 1.0, "box": weight if traced else 0.0, "depth": 2.0}
        uncertain = multitask.uncertainty(KINDS)
        likelihood = jax.value_and_grad(lambda s: uncertain.apply(losses, s, weights=weights).total)
        results = [likelihood(uncertain.init(losses))]
        for name, extra in (("dynamic", ()), ("random", ()), ("gradnorm", (gradients,))):
            state = METHODS[name].init(losses)
            for _ in range(3):
                terms, state = METHODS[name].apply(losses, *extra, state, weights=weights)
            results.append((terms.total, terms.weighted["box"], state))
        return results

    (value, slopes), *others = three_steps(jnp.array(0.0))
    np.testing.assert_allclose(value, 2.0 + 2 * 1.5)
    chex.assert_trees_all_close(slopes, {"class": -2.0 + 0.5, "box": 0.0, "depth": 2 * (-1.5 + 0.5)})
    for total, skipped, state in others:
        assert jnp.isfinite(total)
        assert skipped == 0
        numbers = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]
        assert all(jnp.isfinite(a).all() for a in numbers)


def test_uncertainty_is_the_papers():
    method = multitask.uncertainty(KINDS)
    s = {"class": jnp.array(0.3), "box": jnp.array(-1.2), "depth": jnp.array(2.0)}
    assert method.init(LOSSES) == dict.fromkeys(LOSSES, 0.0)
    terms, slopes = quick.jit(
        lambda s: (method.apply(as_arrays(LOSSES), s), jax.grad(lambda s: method.apply(as_arrays(LOSSES), s).total)(s))
    )(s)
    expected = oracles.uncertainty(LOSSES, s, KINDS)
    np.testing.assert_allclose(terms.total, expected, rtol=1e-12)
    np.testing.assert_allclose(sum(terms.weighted.values()), terms.total, rtol=1e-12)
    for task in s:
        ahead, behind = (oracles.uncertainty(LOSSES, {**s, task: s[task] + d}, KINDS) for d in (1e-6, -1e-6))
        np.testing.assert_allclose(slopes[task], (ahead - behind) / 2e-6, rtol=1e-6)


def test_uncertainty_is_bounded_and_comes_back():
    method = multitask.uncertainty({"a": "regression"}, bound=3.0)
    value, slope = jax.value_and_grad(lambda s: method.apply({"a": jnp.array(1.0)}, {"a": s}).total)(jnp.array(-50.0))
    np.testing.assert_allclose(value, 0.5 * np.exp(3) - 1.5)
    np.testing.assert_allclose(slope, -0.5 * np.exp(3) + 0.5)  # at the bound, and downhill is towards it


def test_dynamic_weight_average_is_the_papers():
    period, tasks = 3, list(LOSSES)
    method = multitask.dynamic_weight_average(period, temperature=1.5)
    history = np.random.default_rng(0).uniform(0.5, 3, size=(11, 3))
    history[4, 1] = 0

    @quick.jit
    def run(history):
        def step(state, losses):
            terms, state = method.apply(dict(zip(tasks, losses, strict=True)), state)
            return state, terms

        return jax.lax.scan(step, method.init(tasks), history)[1]

    terms = run(history)
    for n in range(len(history)):
        expected = oracles.dynamic_weights(history[:n].reshape(-1, 3), period, 1.5)
        np.testing.assert_allclose([terms.weights[task][n] for task in tasks], expected, rtol=1e-12)
        np.testing.assert_allclose(terms.total[n], expected @ history[n], rtol=1e-12)
    np.testing.assert_allclose(sum(terms.weights.values()), 3, rtol=1e-12)


def test_dynamic_weight_average_leaves_out_what_is_not_finite():
    method = multitask.dynamic_weight_average(2)
    state = method.init(["a", "b"])
    for a in (1.0, 3.0, jnp.nan, 4.0, jnp.nan, jnp.nan):
        _, state = method.apply({"a": jnp.asarray(a), "b": jnp.array(1.0)}, state)
    assert (state.before["a"], state.last["a"]) == (2.0, 4.0)
    terms, _ = method.apply({"a": jnp.array(1.0), "b": jnp.array(1.0)}, state)
    np.testing.assert_allclose(terms.weights["a"], 2 * np.exp(1) / (np.exp(1) + np.exp(0.5)))


def test_random_weights_are_drawn_anew_and_sum_to_one():
    method = multitask.random_weighting(jax.random.key(0))

    @quick.jit
    def run(key):
        def step(state, _):
            terms, state = method.apply(as_arrays(LOSSES), state)
            return state, terms

        return jax.lax.scan(step, method.init(LOSSES)._replace(key=key), None, 400)[1]

    terms = run(jax.random.key(0))
    np.testing.assert_allclose(sum(terms.weights.values()), 1, rtol=1e-12)
    drawn = np.log(np.stack(list(terms.weights.values()), 1))
    centred = drawn - drawn.mean(1, keepdims=True)
    np.testing.assert_allclose(centred.std(0), np.sqrt(2 / 3), atol=0.1)  # of normal numbers less their mean
    assert len(np.unique(drawn[:, 0])) == 400
    assert not np.allclose(drawn[:, 0], np.log(np.stack(list(run(jax.random.key(1)).weights.values()), 1))[:, 0])


def test_gradnorm_is_the_papers():
    rng = np.random.default_rng(1)
    method = multitask.gradnorm(alpha=0.7)
    losses, tasks = rng.uniform(0.5, 3, size=(6, 3)), list(LOSSES)
    gradients = rng.normal(size=(6, 3, 4, 2))

    @quick.jit
    def run(losses, gradients):
        def step(state, now):
            loss, g = (dict(zip(tasks, a, strict=True)) for a in now)
            terms, state = method.apply(loss, {task: {"w": g[task]} for task in tasks}, state)
            return state, (terms, state.weights)

        return jax.lax.scan(step, method.init(tasks), (losses, gradients))[1]

    terms, after = run(losses, gradients)
    weights = np.ones(3)
    for n in range(6):
        np.testing.assert_allclose([terms.weights[task][n] for task in tasks], weights, rtol=1e-7)
        norms = np.sqrt(np.sum(gradients[n] ** 2, (1, 2)))
        weights = oracles.gradnorm(weights, losses[n], losses[0], norms, 0.7, 0.025)
        np.testing.assert_allclose([after[task][n] for task in tasks], weights, rtol=1e-7)
    np.testing.assert_allclose(sum(after.values()), 3, rtol=1e-12)


def test_gradnorm_at_its_edges():
    losses = as_arrays({"a": 1.0, "b": 0.0})
    gradients = {"a": jnp.zeros(2), "b": jnp.array([1e3, 0])}
    method = multitask.gradnorm(optimizer=optax.adam(0.5))
    state = method.init(losses)
    for _ in range(5):
        terms, state = method.apply(losses, gradients, state)
        assert all(jnp.isfinite(a) for a in jax.tree.leaves((terms, state)))
        np.testing.assert_allclose(sum(state.weights.values()), 2)
    assert 0 < state.weights["b"] < 0.01  # its gradient is the longest, and it may not vanish
    assert state.initial == {"a": 1.0, "b": 0.0}
    before = state.weights
    _, state = method.apply({"a": NAN, "b": NAN}, gradients, state)
    assert state.weights == before


AGGREGATORS = {
    "pcgrad": (multitask.pcgrad, lambda g: oracles.pcgrad(g, [range(len(g))] * len(g))),
    "mgda": (multitask.mgda, oracles.mgda),
    "cagrad": (multitask.cagrad, lambda g: oracles.cagrad(g, 0.5)),
    "upgrad": (multitask.upgrad, oracles.upgrad),
}
each_aggregator = pytest.mark.parametrize("name", AGGREGATORS)


def tree(rows):
    """Rows (..., 6) as trees of two leaves."""
    return {"w": rows[..., :4].reshape(*rows.shape[:-1], 2, 2), "b": rows[..., 4:]}


def flat(t):
    return np.concatenate([np.reshape(t["w"], (*np.shape(t["b"])[:-1], 4)), t["b"]], -1)


def aggregated(name, rows):
    """The aggregate of many sets of gradients (cases, K, 6), compiled once for each K."""
    tasks = rows.shape[1]
    run = quick.jit(jax.vmap(lambda rows: AGGREGATORS[name][0]([tree(rows[k]) for k in range(tasks)])))
    return flat(jax.device_get(run(rows)))


def gradient_sets(tasks):
    """Gradients that conflict, agree, nearly cancel, differ in length by a thousand, repeat each other, or are 0."""
    rng = np.random.default_rng(tasks)
    sets = [rng.normal(size=(tasks, 6)) for _ in range(6)]
    sets += [np.abs(rng.normal(size=(tasks, 6)))]
    sets += [rng.normal(size=(tasks, 6)) * 10.0 ** rng.uniform(-2, 1, size=(tasks, 1))]
    common = rng.normal(size=6)
    sets += [common + 0.3 * rng.normal(size=(tasks, 6)) * np.array([[(-1.0) ** k] for k in range(tasks)])]
    opposed = rng.normal(size=(tasks, 6))
    opposed[1] = -0.8 * opposed[0] + 0.05 * opposed[1]
    repeated = rng.normal(size=(tasks, 6))
    repeated[-1] = 2 * repeated[0]
    return np.stack([*sets, opposed, repeated])


@each_aggregator
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_aggregators_are_the_papers(name, tasks):
    rows = gradient_sets(tasks)
    got, expected = aggregated(name, rows), np.stack([AGGREGATORS[name][1](g) for g in rows])
    scale = np.linalg.norm(rows, axis=-1).max(-1)
    np.testing.assert_array_less(np.abs(got - expected).max(-1) / scale, 2e-6 if name == "cagrad" else 1e-9)
    worst = np.einsum("nki,ni->nk", rows, got).min(-1)
    if name in ("mgda", "upgrad") or (name == "pcgrad" and tasks == 2):
        np.testing.assert_array_less(-1e-12, worst / scale**2)
    if name == "mgda":
        lengths = np.linalg.norm(got, axis=-1)
        np.testing.assert_array_less(lengths, np.linalg.norm(rows, axis=-1).min(-1) * (1 + 1e-9))
        np.testing.assert_allclose(worst / scale**2, lengths**2 / scale**2, atol=1e-12)
    if name == "cagrad":
        mean = rows.mean(1)
        off = np.linalg.norm(got - mean, axis=-1)
        np.testing.assert_allclose(off, 0.5 * np.linalg.norm(mean, axis=-1), rtol=1e-9)
        best = np.stack([(g @ oracles.cagrad(g, 0.5)).min() for g in rows])
        np.testing.assert_array_less(best - 1e-9 * scale**2, worst)


@each_aggregator
def test_gradients_of_zero_divide_nothing(name):
    rows = np.random.default_rng(3).normal(size=(4, 3, 6))
    rows[0] = 0
    rows[1, 1] = 0
    rows[2, 1:] = 0
    rows[3, 1] = -rows[3, 0]
    got = aggregated(name, rows)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[0], 0)
    if name == "mgda":
        np.testing.assert_allclose(got, 0, atol=1e-12)
    if name == "pcgrad":
        np.testing.assert_allclose(got[2], rows[2, 0])
    if name == "upgrad":
        np.testing.assert_allclose(got[1], 2 / 3 * aggregated(name, rows[1:2, ::2])[0], atol=1e-12)
        np.testing.assert_allclose(got[2], rows[2, 0] / 3)


@pytest.mark.without_x64
def test_in_float32_the_cone_is_met_to_rounding():
    rows = gradient_sets(5).astype(np.float32)
    for name, exact in (("upgrad", 1e-4), ("mgda", 1e-4), ("cagrad", 1e-3)):
        got = aggregated(name, rows)
        expected = np.stack([AGGREGATORS[name][1](g.astype(float)) for g in rows])
        scale = np.linalg.norm(rows, axis=-1).max(-1)
        np.testing.assert_array_less(np.abs(got - expected).max(-1) / scale, exact)


def test_pcgrad_in_the_order_of_its_key():
    # All three conflict, so that it matters against which a gradient is projected first.
    rows = np.random.default_rng(2).normal(size=(1, 3, 6))
    rows -= 0.8 * rows.mean(1, keepdims=True)
    run = quick.jit(jax.vmap(lambda key: multitask.pcgrad([tree(jnp.asarray(g)) for g in rows[0]], key=key)))
    got = flat(jax.device_get(run(jax.random.split(jax.random.key(0), 40))))
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    possible = [oracles.pcgrad(rows[0], (a, b, c)) for a in orders for b in orders for c in orders]
    distance = np.abs(got[:, None] - np.stack(possible)).max(-1).min(1)
    np.testing.assert_array_less(distance, 1e-12)
    assert len(np.unique(got.round(9), axis=0)) == len(np.unique(np.round(possible, 9), axis=0)) > 1


def test_pcgrad_never_projects_a_gradient_on_itself():
    # The third, projected off both others, ends up pointing against itself.
    angles = np.deg2rad([150, 210, 0])
    rows = np.zeros((1, 3, 6))
    rows[0, :, 0], rows[0, :, 1] = np.cos(angles), np.sin(angles)
    np.testing.assert_allclose(aggregated("pcgrad", rows)[0], oracles.pcgrad(rows[0], [range(3)] * 3), atol=1e-12)


def test_limits_of_cagrad():
    rows = np.random.default_rng(5).normal(size=(1, 3, 6)) + 0.5
    run = quick.jit(lambda c: multitask.cagrad([tree(jnp.asarray(g)) for g in rows[0]], c=c))
    np.testing.assert_allclose(flat(run(0.0)), rows[0].mean(0), rtol=1e-12)
    far, shortest = flat(run(1e4)), aggregated("mgda", rows)[0]
    cosine = far @ shortest / np.linalg.norm(far) / np.linalg.norm(shortest)
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)


def test_leaves_keep_their_dtypes_and_nothing_flows_through_the_weights():
    gradients = {
        "a": {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)},
        "b": {"w": -jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)},
    }
    for aggregate, _ in AGGREGATORS.values():
        got = aggregate(gradients)
        assert (got["w"].dtype, got["b"].dtype) == (jnp.bfloat16, jnp.float64)
    jacobian = jax.jacobian(lambda g: multitask.mgda([g, jnp.array([0.0, 1.0])]))(jnp.array([2.0, 0.0]))
    np.testing.assert_allclose(jacobian, 0.2 * np.eye(2), atol=1e-12)


def test_value_and_grads_is_that_of_each_loss():
    def losses(params, x, scale=1.0):
        shared = jnp.tanh(x @ params["w"])
        return {"a": jnp.sum(shared), "b": scale * jnp.sum(shared**2), "broken": jnp.sum(jnp.log(0 * shared))}

    params, x = {"w": jnp.arange(6.0).reshape(3, 2) / 10}, jnp.arange(12.0).reshape(4, 3) / 10
    values, grads = quick.jit(multitask.value_and_grads(losses))(params, x, scale=2.0)
    for task in ("a", "b"):
        value, gradient = jax.value_and_grad(lambda p, task=task: losses(p, x, 2.0)[task])(params)
        np.testing.assert_allclose(values[task], value)
        chex.assert_trees_all_close(grads[task], gradient, rtol=1e-12)
    (_, aux), again = multitask.value_and_grads(lambda p: (losses(p, x), "aux" and p["w"].sum()), has_aux=True)(params)
    assert aux == params["w"].sum()
    chex.assert_trees_all_close(again["a"], grads["a"], rtol=1e-12)
    with pytest.raises(TypeError, match="must return a mapping"):
        multitask.value_and_grads(lambda p: p.sum())(jnp.ones(2))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (
            ValueError,
            r"`weights` must name the tasks of `losses`",
            lambda: multitask.weighted_sum({"a": 1.0}, {"b": 1}),
        ),
        (ValueError, r"is a schedule and needs a `step`", lambda: multitask.weighted_sum({"a": 1.0}, {"a": float})),
        (ValueError, r"must be a scalar, got shape \(2,\)", lambda: multitask.weighted_sum({"a": jnp.ones(2)})),
        (ValueError, r"at least one task", lambda: multitask.weighted_sum({})),
        (ValueError, r"must be a number, got nan", lambda: multitask.weighted_sum({"a": 1.0}, {"a": float("nan")})),
        (TypeError, r"must be floating point", lambda: multitask.weighted_sum({"a": 1})),
        (ValueError, r"'regression' or 'classification'", lambda: multitask.uncertainty({"a": "poisson"})),
        (ValueError, r"`bound` must be greater than 0", lambda: multitask.uncertainty({"a": "regression"}, bound=0)),
        (ValueError, r"name the tasks", lambda: multitask.uncertainty({"a": "regression"}).init(["b"])),
        (ValueError, r"`period` must be at least 1", lambda: multitask.dynamic_weight_average(0)),
        (ValueError, r"`temperature` must be greater", lambda: multitask.dynamic_weight_average(1, temperature=0)),
        (ValueError, r"`alpha` must be at least 0", lambda: multitask.gradnorm(alpha=-1)),
        (ValueError, r"`gradients` must hold one tree", lambda: multitask.mgda([])),
        (ValueError, r"trees of one structure", lambda: multitask.upgrad([jnp.ones(2), jnp.ones(3)])),
        (TypeError, r"`gradients` must be floating", lambda: multitask.pcgrad([jnp.ones(2, int)])),
        (ValueError, r"`c` must be at least 0", lambda: multitask.cagrad([jnp.ones(2)], c=-1)),
    ],
)
def test_refusals(error, match, call):
    with pytest.raises(error, match=match):
        call()


def everything(losses, gradients, states):
    """Every method in one program."""
    names = ("uncertainty", "dynamic", "random", "gradnorm")
    uncertain, dynamic, random, norm = (METHODS[name] for name in names)
    dynamic_terms, dynamic_state = dynamic.apply(losses, states["dynamic"])
    random_terms, random_state = random.apply(losses, states["random"])
    norm_terms, norm_state = norm.apply(losses, gradients, states["gradnorm"])
    terms = [uncertain.apply(losses, states["uncertainty"]), dynamic_terms, random_terms, norm_terms]
    steps = {name: aggregate(gradients) for name, (aggregate, _) in AGGREGATORS.items()}
    after = {**states, "dynamic": dynamic_state, "random": random_state, "gradnorm": norm_state}
    return [t.total for t in terms], steps, after


METHODS = {
    "uncertainty": multitask.uncertainty(KINDS),
    "dynamic": multitask.dynamic_weight_average(2),
    "random": multitask.random_weighting(jax.random.PRNGKey(0)),
    "gradnorm": multitask.gradnorm(),
}


def inputs(dtype=jnp.float32):
    states = {name: method.init(LOSSES) for name, method in METHODS.items()}
    rows = np.random.default_rng(0).normal(size=(3, 16, 8))
    gradients = {task: {"w": jnp.asarray(rows[k], dtype)} for k, task in enumerate(LOSSES)}
    return {task: jnp.asarray(x, dtype) for task, x in LOSSES.items()}, gradients, states


@pytest.mark.without_x64
def test_states_keep_their_types_so_that_everything_scans_and_lowers_everywhere():
    losses, gradients, states = inputs()
    after = jax.eval_shape(everything, losses, gradients, states)[2]
    chex.assert_trees_all_equal_shapes_and_dtypes(after, states)
    exported = export.export(jax.jit(everything), platforms=("cpu", "cuda", "tpu"))(losses, gradients, states)
    assert exported.platforms == ("cpu", "cuda", "tpu")


ON_DEVICES = """
import jax, numpy as np
import quick
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from test_multitask import everything, inputs

assert len(jax.devices()) == 8
losses, gradients, states = inputs()
expected = quick.jit(everything)(losses, gradients, states)
for kind in (AxisType.Auto, AxisType.Explicit):
    layout = NamedSharding(jax.make_mesh((8,), ("x",), (kind,)), P("x"))
    split = jax.device_put(gradients, layout)
    compiled = quick.jit(everything).lower(losses, split, states).compile()
    got = compiled(losses, split, states)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    assert got[1]["upgrad"]["w"].sharding.is_equivalent_to(layout, 2)
    assert "all-gather" not in compiled.as_text(), "a gradient was gathered, where inner products suffice"
"""


def test_gradients_split_over_eight_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here), environment.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", ON_DEVICES], env=environment, cwd=here, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_a_skipped_task_has_no_part_in_the_others_average():
    method = multitask.dynamic_weight_average(period=1)
    state = method.init(["a", "b", "c"])
    for b in (1e-3, 1e3):  # b got a million times worse
        _, state = method.apply({"a": 1.0, "b": b, "c": 1.0}, state)
    terms, _ = method.apply({"a": 1.0, "b": 1.0, "c": 1.0}, state, weights={"a": 1.0, "b": 0.0, "c": 1.0})
    assert [float(w) for w in terms.weights.values()] == [1, 0, 1]
    state = method.init(["a", "b"])
    for b in (1e-37, 1e30):  # by more than a float32 holds
        _, state = method.apply({"a": jnp.float32(1), "b": jnp.float32(b)}, state)
    terms, _ = method.apply({"a": jnp.float32(1), "b": jnp.float32(1)}, state)
    assert [float(w) for w in terms.weights.values()] == [0, 2]
