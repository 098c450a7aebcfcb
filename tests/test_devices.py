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
from cases import CASES, differentiable
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import _lattice, spmd

ROWS, DEVICES = 6, 3
CONTRASTIVE = {
    *(jaxloss.info_nce_loss, jaxloss.clip_loss, jaxloss.siglip_loss),
    *(jaxloss.nt_xent_loss, jaxloss.supervised_contrastive_loss, jaxloss.circle_loss),
}


def one_of_each(cases):
    """For every loss the row of the table with most options and arrays."""
    rows: dict = {}
    for case in cases:
        if case.loss not in rows or len(case.options) + len(case.data()) > rows[case.loss][0]:
            rows[case.loss] = len(case.options) + len(case.data()), case
    return [case for _, case in rows.values()]


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
    return arrays, {name: P("data") if a.shape[:1] == (ROWS,) else P() for name, a in arrays.items()}


def value_and_grad(case, **options):
    """Of a case's arrays, in one dictionary, for those that are differentiable."""

    def of_all(arrays):
        moving = differentiable(arrays)
        fixed = {name: a for name, a in arrays.items() if name not in moving}
        return jax.value_and_grad(lambda moving: case.loss(**moving, **fixed, **case.options, **options))(moving)

    return of_all


def close(got, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), got, expected)


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
        assert max(gathered(program), default=0) < arrays[case.first].size


def test_the_lattice_moves_nothing_between_devices():
    # A CPU takes the form with long rows, which does; an accelerator this one.
    devices = mesh(data=DEVICES)
    shapes = {"log_blank": (4, ROWS), "log_labels": (4, 2, ROWS), "skip": (2, ROWS), "sizes": (ROWS,)}
    dtypes = {"skip": bool, "sizes": jnp.int32}
    arrays = [
        jax.ShapeDtypeStruct(
            shape, dtypes.get(name, jnp.float32), sharding=NamedSharding(devices, P(*[None] * (len(shape) - 1), "data"))
        )
        for name, shape in shapes.items()
    ]

    def losses(*arrays):
        ways = _lattice.both_ways(*arrays)
        return _lattice.posterior(ways, arrays[1]), ways.mass

    assert gathered(quick.jit(losses).lower(*arrays).compile()) == []
    assert gathered(quick.jit(partial(_lattice.both_ways, long_rows=True)).lower(*arrays).compile()) != []


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
