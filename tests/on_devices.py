"""Batches spread over devices: the same value and gradient as on one, in each style that JAX has for it."""

import math
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import two_processes
from cases import CASES, differentiable, one_of_each
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import _lattice, spmd
from jaxloss._types import RowStatistics

ROWS, DEVICES = 6, 3
CONTRASTIVE = {
    *(jaxloss.info_nce_loss, jaxloss.clip_loss, jaxloss.siglip_loss),
    *(jaxloss.nt_xent_loss, jaxloss.supervised_contrastive_loss, jaxloss.circle_loss),
}


def of(cases):
    return pytest.mark.parametrize("case", one_of_each(cases), ids=str)


def mesh(kind=AxisType.Auto, **sizes):
    count = math.prod(sizes.values())
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes), devices=jax.devices()[:count]
    )


def batch(case):
    """The arrays of a case with a row for each of two per device, and how they are spread."""
    arrays = case.data(shape=(ROWS, *case.shapes[0][1:]))
    spread = {name for name in (*case.rows, "var") if name in arrays and arrays[name].shape[:1] == (ROWS,)}
    return arrays, {name: P("data") if name in spread else P() for name in arrays}


def value_and_grad(case, **options):
    """Of a case's arrays, in one dictionary, for those that are differentiable."""

    def of_all(arrays):
        moving = differentiable(arrays)
        fixed = {name: a for name, a in arrays.items() if name not in moving}
        return jax.value_and_grad(lambda moving: case.loss(**moving, **fixed, **case.options, **options))(moving)

    return of_all


def close(got, expected, rtol=1e-10, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, expected)


def gathered(program):
    """The sizes of what a compiled program gathers from other devices."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", program.as_text())
    return [math.prod(int(size) for size in shape.split(",") if size) for shape in shapes]


@of(CASES)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
def test_a_sharded_batch_under_jit(case, kind):
    arrays, specs = batch(case)
    devices = mesh(kind, data=DEVICES)
    with jax.set_mesh(devices):
        spread = {name: jax.device_put(a, NamedSharding(devices, specs[name])) for name, a in arrays.items()}
        program = quick.jit(value_and_grad(case)).lower(spread).compile()
        got = program(spread)
    close(got, quick.jit(value_and_grad(case))(arrays))
    if case.loss not in CONTRASTIVE:  # which compare every row with every other
        # A chunk of rows that the devices cannot share evenly moves features, which are no logits.
        features = arrays[case.first].size if case.loss is jaxloss.linear_cross_entropy else 0
        assert max(gathered(program), default=0) < arrays[case.first].size + features


def test_the_lattice_moves_nothing_between_devices():
    devices = mesh(data=DEVICES)
    shapes = {"log_blank": (4, ROWS), "log_labels": (4, 2, ROWS), "skip": (2, ROWS), "sizes": (ROWS,)}
    dtypes = {"skip": bool, "sizes": jnp.int32}
    arrays = [
        jax.ShapeDtypeStruct(
            shape, dtypes.get(name, jnp.float32), sharding=NamedSharding(devices, P(*[None] * (len(shape) - 1), "data"))
        )
        for name, shape in shapes.items()
    ]

    for shares in (_lattice.shares_in_turn, _lattice.shares_at_once):  # a CPU's, and an accelerator's
        assert gathered(quick.jit(shares).lower(*arrays).compile()) == []


def uneven(arrays, case):
    """A mask over rows under which the devices count 0, 1 and 2 rows."""
    keep = np.arange(ROWS) > ROWS // DEVICES
    loss, _ = case.expected(arrays)
    return np.broadcast_to(keep.reshape(-1, *[1] * (loss.ndim - 1)), loss.shape)


ADDED_UP = [case for case in CASES if not case.regions]


@of(ADDED_UP)
def test_the_global_mean_inside_shard_map(case):
    arrays, specs = batch(case)
    keep = uneven(arrays, case)
    moving = differentiable(arrays)
    fixed = {name: a for name, a in arrays.items() if name not in moving}

    def inside(moving, fixed, keep):
        def loss(moving):
            parts = case.loss(**moving, **fixed, **case.options, where=keep, reduction="sum_and_weight")
            return spmd.mean(parts, "data")

        return jax.value_and_grad(loss)(moving)

    spread, same = ({name: specs[name] for name in part} for part in (moving, fixed))
    sharded = jax.shard_map(
        inside, mesh=mesh(data=DEVICES), in_specs=(spread, same, P("data")), out_specs=(P(), spread)
    )
    expected = quick.jit(lambda arrays, keep: value_and_grad(case, where=keep)(arrays))(arrays, keep)
    close(quick.jit(sharded)(moving, fixed, keep), expected)


# Two parameters, one on every device and one spread over devices, before a loss of each code path.
def linear(params, x):
    return x @ params["w"] + params["b"]


def weighted_cross_entropy(params, x, y):
    weight = jnp.linspace(0.5, 2.0, 5)
    return jaxloss.cross_entropy(linear(params, x), y, weight=weight, label_smoothing=0.1, reduction="sum_and_weight")


def ctc(params, x, y):
    scores = linear(params, x)[:, None] * jnp.cos(jnp.arange(4.0))[:, None]
    ends = jnp.where(y < 0, 0, 4), jnp.where(y < 0, 0, 2)
    labels = jnp.stack([y % 4 + 1, y % 3 + 1], 1)
    return jaxloss.ctc_loss_with_logits(scores, labels, *ends, batch_first=True, reduction="sum_and_weight")


def squared(params, x, y):
    keep = (y >= 0)[:, None]
    return jaxloss.mse_loss(linear(params, x), jnp.ones((len(y), 5)), where=keep, reduction="sum_and_weight")


STYLES = ["outside", "outside unchecked", "inside", "inside unchecked", "inside, by jax", "pmap"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("loss", [weighted_cross_entropy, ctc, squared], ids=lambda f: f.__name__)
def test_every_style_gives_the_gradient_of_the_whole_batch(loss, style):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 3)), rng.integers(0, 5, size=16)
    y[:2] = -100  # all of the first device
    y[5] = -100
    params = {"w": rng.normal(size=(3, 5)), "b": rng.normal(size=5)}

    def whole(params, x, y):
        total, weight = loss(params, x, y)
        return total / weight

    def on_each(params, x, y):
        return spmd.mean(loss(params, x, y), "data")

    expected = quick.jit(jax.value_and_grad(whole))(params, x, y)
    over = partial(jax.shard_map, mesh=mesh(data=8), in_specs=(P(), P("data"), P("data")))
    programs = {
        "outside": lambda: jax.value_and_grad(over(on_each, out_specs=P())),
        "outside unchecked": lambda: jax.value_and_grad(over(on_each, out_specs=P(), check_vma=False)),
        "inside": lambda: over(spmd.value_and_grad(on_each, "data"), out_specs=P()),
        "inside unchecked": lambda: over(spmd.value_and_grad(on_each, "data"), out_specs=P(), check_vma=False),
        "inside, by jax": lambda: over(jax.value_and_grad(on_each), out_specs=P()),
        "pmap": lambda: jax.vmap(spmd.value_and_grad(on_each, "data"), (None, 0, 0), axis_name="data"),
    }
    program = quick.jit(programs[style]())
    if style == "pmap":  # as jax.pmap does it; on one device
        x, y = x.reshape(8, 2, 3), y.reshape(8, 2)
        expected = jax.tree.map(lambda a: np.broadcast_to(a, (8, *np.shape(a))), expected)
    close(program(params, x, y), expected)


def test_the_mean_of_means_is_another_number():
    x, t = jnp.arange(8.0), jnp.zeros(8)
    keep = jnp.arange(8) > 4  # three entries on two devices of four entries, one of them empty
    loss = partial(jaxloss.l1_loss, reduction="sum_and_weight")

    def on_each(x, t, keep):
        return spmd.mean(loss(x, t, where=keep), "data"), jax.lax.pmean(jaxloss.l1_loss(x, t, where=keep), "data")

    right, wrong = jax.vmap(on_each, axis_name="data")(*(a.reshape(2, 4) for a in (x, t, keep)))
    assert right.tolist() == [6.0, 6.0]
    assert np.isnan(wrong).all()


def test_nothing_anywhere_is_nan_with_gradient_0():
    def on_each(x):
        return spmd.mean(jaxloss.l1_loss(x, 0 * x, where=jnp.zeros(2, bool), reduction="sum_and_weight"), "data")

    step = jax.shard_map(
        spmd.value_and_grad(on_each, "data", specs=P("data")),
        mesh=mesh(data=2),
        in_specs=P("data"),
        out_specs=(P(), P("data")),
    )
    value, grad = step(jnp.ones(4))
    assert np.isnan(value)
    assert (grad == 0).all()


@pytest.mark.parametrize("checked", [True, False])
def test_parameters_that_are_spread_themselves(checked):
    # Two axes: rows over "data", the columns of a matrix over "model", whose products are added up.
    rng = np.random.default_rng(0)
    x, t, w, b = rng.normal(size=(4, 6)), rng.normal(size=(4, 2)), rng.normal(size=(6, 2)), rng.normal(size=2)

    def whole(params, x, t):
        return jaxloss.mse_loss(x @ params["w"] + params["b"], t, where=t > 0)

    def on_each(params, x, t):
        y = jax.lax.psum(x @ params["w"], "model") + params["b"]
        return spmd.mean(jaxloss.mse_loss(y, t, where=t > 0, reduction="sum_and_weight"), "data")

    specs = {"w": P("model"), "b": P()}
    step = jax.shard_map(
        spmd.value_and_grad(on_each, ("data", "model") if not checked else "data", specs=specs),
        mesh=mesh(data=4, model=2),
        in_specs=(specs, P("data", "model"), P("data")),
        out_specs=(P(), specs),
        check_vma=checked,
    )
    params = {"w": w, "b": b}
    close(quick.jit(step)(params, x, t), quick.jit(jax.value_and_grad(whole))(params, x, t))


@of(case for case in CASES if case.loss in CONTRASTIVE)
@pytest.mark.parametrize("style", ["inside", "inside unchecked", "outside unchecked"])
def test_contrastive_losses_compare_with_all_devices(case, style):
    arrays, specs = batch(case)
    keep = np.array([True, True, False, True, True, True])  # one device with a row less
    moving = differentiable(arrays)
    fixed = {name: a for name, a in arrays.items() if name not in moving}
    options = {**case.options, "where": keep}

    def loss(moving, fixed, keep):
        return case.loss(**moving, **fixed, **{**options, "where": keep}, axis_name="data")

    over = partial(
        jax.shard_map, mesh=mesh(data=DEVICES), in_specs=(P("data"),) * 3, check_vma="unchecked" not in style
    )
    if style == "outside unchecked":
        program = jax.value_and_grad(over(loss, out_specs=P()))
    else:
        program = over(spmd.value_and_grad(loss, "data", specs=P("data")), out_specs=(P(), P("data")))
    expected = quick.jit(value_and_grad(case, where=keep))(arrays)
    close(quick.jit(program)(moving, fixed, keep), expected)
    assert set(specs.values()) == {P("data")}


def test_reductions_of_contrastive_losses_over_devices():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    for reduction in ("none", "sum", "sum_and_weight"):
        loss = partial(jaxloss.siglip_loss, reduction=reduction)
        program = jax.shard_map(
            partial(loss, axis_name="data"),
            mesh=mesh(data=3),
            in_specs=P("data"),
            out_specs=P("data") if reduction == "none" else P(),
        )
        close(quick.jit(program)(x, y), loss(x, y))


def test_siglip_holds_no_more_than_a_device_s_share():
    # A ring: no array of all devices' vectors, and no matrix of all pairs.
    devices = mesh(data=8)
    rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(devices, P("data")))
    loss = jax.shard_map(
        partial(jaxloss.siglip_loss, axis_name="data"), mesh=devices, in_specs=P("data"), out_specs=P()
    )
    program = quick.jit(loss).lower(rows, rows).compile()
    assert "all-gather" not in program.as_text()
    assert max(gathered(program)) == 8 * 16


# Classes over "model" and rows over "data", at once and unevenly: the first two devices have no row that counts.
TOKENS, CLASSES, FEATURES = 6, 12, 3


def language_model(soft):
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, size=TOKENS)
    y[:3] = y[4] = -100
    q = rng.uniform(0.1, 1, size=(TOKENS, CLASSES))
    arrays = {
        "x": rng.normal(size=(TOKENS, FEATURES)) * 3,
        "table": rng.normal(size=(CLASSES, FEATURES)),
        "bias": rng.normal(size=CLASSES),
        "weight": rng.uniform(0.5, 2, size=CLASSES),
        "smoothing": np.float64(0.1),
    }
    specs = {"x": P("data"), "table": P("model"), "bias": P("model"), "weight": P("model"), "smoothing": P()}
    return arrays, specs, (q / q.sum(1, keepdims=True) if soft else y), P("data", "model") if soft else P("data")


def from_logits(arrays, target, **options):
    logits = arrays["x"] @ arrays["table"].T + arrays["bias"]
    return jaxloss.cross_entropy(
        logits, target, weight=arrays["weight"], label_smoothing=arrays["smoothing"], **options
    )


def from_features(arrays, target, **options):
    return jaxloss.linear_cross_entropy(
        arrays["x"],
        arrays["table"],
        target,
        linear_bias=arrays["bias"],
        weight=arrays["weight"],
        label_smoothing=arrays["smoothing"],
        chunk_size=2,
        **options,
    )


LANGUAGE = {"z_loss": 0.02, "logit_softcap": 9.0}
classes_spread = pytest.mark.parametrize("loss", [from_logits, from_features], ids=lambda f: f.__name__)


@classes_spread
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("implementation", ["auto", "autodiff"])
@pytest.mark.parametrize("style", ["inside", "inside unchecked", "outside"])
def test_classes_and_rows_over_devices(loss, soft, implementation, style):
    arrays, specs, target, spread = language_model(soft)
    options = {**LANGUAGE, "implementation": implementation, "aux": True}

    def on_each(arrays, target):
        parts, found = loss(arrays, target, reduction="sum_and_weight", axis_name="model", **options)
        z_loss = spmd.mean(found.z_loss, "data")
        return spmd.mean(parts, "data"), found._replace(z_loss=z_loss)

    rows = P("data")
    outs = P(), RowStatistics(log_sum_exp=rows, z_loss=P(), correct=rows, entropy=rows)
    over = partial(
        jax.shard_map, mesh=mesh(data=2, model=4), in_specs=(specs, spread), check_vma="unchecked" not in style
    )
    if style == "outside":
        program = jax.value_and_grad(over(on_each, out_specs=outs), has_aux=True)
    else:
        inside = spmd.value_and_grad(on_each, ("data", "model"), specs=specs, has_aux=True)
        program = over(inside, out_specs=(outs, specs))
    whole = jax.value_and_grad(partial(loss, **options), has_aux=True)
    close(quick.jit(program)(arrays, target), quick.jit(whole)(arrays, target))


@classes_spread
def test_second_derivatives_with_classes_over_devices(loss):
    arrays, specs, target, spread = language_model(soft=False)
    over = partial(jax.shard_map, mesh=mesh(data=2, model=4), in_specs=(specs, spread), out_specs=P())

    def on_each(arrays, target):
        return spmd.mean(loss(arrays, target, reduction="sum_and_weight", axis_name="model", **LANGUAGE), "data")

    def curvature(of):
        gradient = jax.grad(lambda x: of({**arrays, "x": x}, target))
        return quick.jit(jax.grad(lambda x: jnp.sum(jnp.sin(gradient(x)))))(arrays["x"])

    close(curvature(over(on_each)), curvature(partial(loss, **LANGUAGE)))


def test_a_class_out_of_range_and_a_certain_one_over_devices():
    logits = np.zeros((3, CLASSES), np.float32)
    logits[0, 5] = logits[2, 11] = 40  # e^-40 of a rest, which 1 + e^-40 would round away
    target = np.array([5, CLASSES, 11])
    program = jax.shard_map(
        partial(jaxloss.cross_entropy, axis_name="model", reduction="none"),
        mesh=mesh(model=4),
        in_specs=(P(None, "model"), P()),
        out_specs=P(),
    )
    loss, pull = jax.vjp(lambda x: program(x, target), logits)
    np.testing.assert_allclose(loss, [11 * np.exp(-40), np.nan, 11 * np.exp(-40)], rtol=1e-5)
    (dx,) = pull(np.ones(3, np.float32))
    assert np.isnan(dx[1]).all()
    np.testing.assert_allclose(dx[0, 5], -11 * np.exp(-40), rtol=1e-5)


def test_rows_that_do_not_count_over_devices():
    # Ignored, masked and without a right answer, with NaN in the first two.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, CLASSES)), np.array([3, -100, 11, CLASSES, 0])
    keep = np.array([True, True, False, True, True])
    x[1:3] = np.nan

    def loss(x, y, keep, **options):
        return jaxloss.cross_entropy(x, y, where=keep, label_smoothing=0.1, reduction="none", aux=True, **options)

    program = jax.shard_map(
        partial(loss, axis_name="model"), mesh=mesh(model=4), in_specs=(P(None, "model"), P(), P()), out_specs=P()
    )
    results = [jax.vjp(lambda x, f=f: f(x, y, keep), x, has_aux=True) for f in (program, loss)]
    (got, pull, found), (expected, expected_pull, expected_found) = results
    close((got, found), (expected, expected_found))
    close(pull(np.ones(5)), expected_pull(np.ones(5)))
    assert np.isfinite(found.log_sum_exp).all()


def travelling(program):
    """How many numbers a compiled program adds up, or takes the maximum of, over devices."""
    shapes = re.findall(r"= (.*?) all-reduce\(", program.as_text())
    sizes = [size for shape in shapes for size in re.findall(r"\w+\[([\d,]*)\]", shape)]
    return sum(math.prod(int(n) for n in size.split(",") if n) for size in sizes)


def test_what_travels_does_not_grow_with_the_number_of_classes():
    def numbers(classes):
        loss = partial(jaxloss.cross_entropy, axis_name="model", label_smoothing=0.1, reduction="sum", **LANGUAGE)
        program = jax.shard_map(
            jax.value_and_grad(lambda x, y, w: loss(x, y, weight=w)),
            mesh=mesh(model=8),
            in_specs=(P(None, "model"), P(), P("model")),
            out_specs=(P(), P(None, "model")),
        )
        shapes = (TOKENS, classes), (TOKENS,), (classes,)
        arrays = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, ("float32", "int32", "float32"), strict=True)]
        compiled = jax.jit(program).lower(*arrays).compile()
        assert gathered(compiled) == []
        return travelling(compiled)

    assert numbers(64) == numbers(4096)
    assert 3 * TOKENS <= numbers(64) <= 5 * TOKENS + 2


@pytest.mark.parametrize("classes", [CLASSES, 1200])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
@pytest.mark.parametrize("split", [P("data"), P("data", "model")], ids=["rows", "both"])
def test_a_language_model_under_jit(split, kind, classes):
    rng = np.random.default_rng(0)
    x, table, y = rng.normal(size=(8, 4)), rng.normal(size=(classes, 4)), rng.integers(0, classes, size=8)

    def losses(x, table, y):
        logits = jaxloss.cross_entropy(x @ table.T, y, label_smoothing=0.1, weight=jnp.linspace(0.5, 2, classes))
        return logits + jaxloss.linear_cross_entropy(x, table, y, chunk_size=4, z_loss=0.1)

    devices = mesh(kind, data=2, model=4)
    step = jax.value_and_grad(losses, (0, 1))
    with jax.set_mesh(devices):
        layouts = P("data"), P(*split[1:]), P("data")
        arrays = [jax.device_put(a, NamedSharding(devices, s)) for a, s in zip((x, table, y), layouts, strict=True)]
        program = quick.jit(step).lower(*arrays).compile()
        got = program(*arrays)
    close(got, quick.jit(step)(x, table, y))
    assert max(gathered(program), default=0) <= classes  # the weights of the classes at most


def test_checked_counts_the_classes_of_all_devices():
    x, y = np.zeros((4, 16), np.float32), np.array([0, 5, 15, 9])
    program = jax.shard_map(
        lambda x, y: jaxloss.checked(jaxloss.cross_entropy)(x, y, axis_name="model"),
        mesh=mesh(model=8),
        in_specs=(P(None, "model"), P()),
        out_specs=P(),
    )
    error, _ = checkify.checkify(jax.jit(program))(x, y)
    assert error.get() is None
    error, _ = checkify.checkify(jax.jit(program))(x, np.array([0, 5, 16, 9]))
    assert "class index in [0, 16), got 16 at position (2,)" in error.get()


@pytest.mark.parametrize("loss", ["cross_entropy", "poly_cross_entropy", "softmax_focal_loss"])
def test_replicated_logits_with_targets_that_vary(loss):
    loss = getattr(jaxloss, loss)
    x, y = np.random.default_rng(0).normal(size=(2, 5)), np.arange(4)

    def on_each(x, y):
        return spmd.mean(loss(x, y, reduction="sum_and_weight"), "data")

    program = jax.shard_map(jax.value_and_grad(on_each), mesh=mesh(data=2), in_specs=(P(), P("data")), out_specs=P())
    whole = jax.value_and_grad(lambda x, y: loss(jnp.tile(x, (2, 1)), y))
    close(quick.jit(program)(x, y), quick.jit(whole)(x, y))


def test_replicated_logits_of_ctc_with_labels_that_vary():
    x = np.random.default_rng(0).normal(size=(6, 2, 5))
    labels, frames, sizes = np.array([[1, 2], [3, 3], [4, 1], [2, 1]]), np.array([6, 5, 6, 4]), np.array([2, 2, 1, 2])

    def on_each(x, *rest):
        return spmd.mean(jaxloss.ctc_loss_with_logits(x, *rest, reduction="sum_and_weight"), "data")

    specs = P(), *(P("data"),) * 3
    program = jax.shard_map(jax.value_and_grad(on_each), mesh=mesh(data=2), in_specs=specs, out_specs=P())
    whole = jax.value_and_grad(lambda x, *rest: jaxloss.ctc_loss_with_logits(jnp.tile(x, (1, 2, 1)), *rest))
    close(quick.jit(program)(x, labels, frames, sizes), quick.jit(whole)(x, labels, frames, sizes))


@pytest.mark.parametrize("width", [3, 64])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("loss", ["cosine_embedding_loss", "triplet_margin_loss", "pairwise_distance"])
def test_replicated_vectors_beside_others_that_vary(loss, which, width):
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=(2 if i == which else 4, width)) for i in range(2)]
    rest = {"cosine_embedding_loss": [np.array([1, -1, 1, -1])], "triplet_margin_loss": [rng.normal(size=(4, width))]}
    vectors += rest.get(loss, [])
    loss = getattr(jaxloss, loss)

    def pair(*args):
        if loss is not jaxloss.pairwise_distance:
            return loss(*args, reduction="sum_and_weight")
        distance = loss(*args)
        return jnp.sum(distance), jnp.asarray(distance.size, distance.dtype)

    def whole(*args):
        total, weight = pair(*(jnp.tile(a, (2, 1)) if i == which else a for i, a in enumerate(args)))
        return total / weight

    specs = tuple(P() if i == which else P("data") for i in range(len(vectors)))
    program = jax.shard_map(
        jax.value_and_grad(lambda *args: spmd.mean(pair(*args), "data"), (0, 1)),
        mesh=mesh(data=2),
        in_specs=specs,
        out_specs=(P(), specs[:2]),
    )
    close(quick.jit(program)(*vectors), quick.jit(jax.value_and_grad(whole, (0, 1)))(*vectors))


def test_chunks_inside_shard_map():
    rng = np.random.default_rng(0)
    x, t, scale = rng.normal(size=(14, 3)), rng.normal(size=(14, 3)), np.float64(1.5)
    in_chunks = jaxloss.chunked(lambda x, t, scale, reduction: jaxloss.mse_loss(scale * x, t, reduction=reduction), 2)

    def on_each(scale, x, t):
        return spmd.mean(in_chunks(x, t, scale=scale, reduction="sum_and_weight"), "data")

    program = jax.shard_map(
        jax.value_and_grad(on_each), mesh=mesh(data=2), in_specs=(P(), P("data"), P("data")), out_specs=P()
    )
    whole = jax.value_and_grad(lambda scale, x, t: jaxloss.mse_loss(scale * x, t))
    close(quick.jit(program)(scale, x, t), quick.jit(whole)(scale, x, t))


def test_two_processes_get_the_numbers_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = Path(__file__).parent / "two_processes.py"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    value, gradient = jax.value_and_grad(two_processes.loss)(*two_processes.data())
    expected = [value, *gradient["w"].ravel().tolist()]
    for process, (out, err) in zip(processes, results, strict=True):
        assert process.returncode == 0, err
        lines = [[float(word) for word in line.split()[1:]] for line in out.splitlines() if line.startswith("result")]
        np.testing.assert_allclose(lines, [expected, expected], rtol=1e-12, atol=1e-14)


@pytest.mark.without_x64
def test_the_examples_of_the_page_run():
    page = (Path(__file__).parent.parent / "docs" / "many_devices.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert names["devices"] == 8
    # With the weights the gradient of the sum, divided once.
    plain = jax.grad(lambda p: jaxloss.cross_entropy(names["logits"](p, names["x"]), names["y"]))(names["params"])
    np.testing.assert_allclose(names["exact"]["b"], plain["b"], atol=1e-6)


MANY_CLASSES = {
    "cross_entropy": jaxloss.cross_entropy,
    "probabilities": lambda x, y: jaxloss.cross_entropy(x, jax.nn.one_hot(y, x.shape[1])),
    "softmax_focal_loss": jaxloss.softmax_focal_loss,
    "logsumexp": lambda x, y: jnp.mean(jaxloss.logsumexp(x)),
    "log_softmax": lambda x, y: -jnp.mean(jaxloss.log_softmax(x)[:, 0]),
    "ctc_loss_with_logits": lambda x, y: jaxloss.ctc_loss_with_logits(
        x[:, None] * jnp.cos(jnp.arange(4.0))[:, None],
        jnp.stack([y % 4 + 1, y % 3 + 1], 1),
        jnp.full_like(y, 4),
        jnp.full_like(y, 2),
        batch_first=True,
    ),
}


@pytest.mark.without_x64
@pytest.mark.parametrize("classes", [1001, 2003])
@pytest.mark.parametrize("loss", MANY_CLASSES.values(), ids=MANY_CLASSES)
def test_sizes_and_dtypes_that_have_kernels_inside_shard_map(loss, classes):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(8, classes)), jnp.float32), jnp.asarray(rng.integers(0, classes, 8))

    def of_all(x, y):
        return jax.lax.pmean(loss(x, y), "data")

    over = jax.shard_map(of_all, mesh=mesh(data=4), in_specs=(P("data"), P("data")), out_specs=P())
    got = quick.jit(jax.value_and_grad(over))(x, y)
    close(got, quick.jit(jax.value_and_grad(loss))(x, y), rtol=1e-5, atol=1e-8)
    for_cuda = jax.jit(jax.value_and_grad(over)).trace(x, y).lower(lowering_platforms=("cuda",))
    assert "triton" in for_cuda.as_text()
