"""One of two processes that share a batch: `python two_processes.py ADDRESS NUMBER`. Started by test_devices."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import spmd

ROWS = 8


def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, 3)), rng.integers(0, 4, size=ROWS)
    y[: ROWS // 2 + 1] = -100  # nothing counts in the first process, and one row less in the second
    return {"w": rng.normal(size=(3, 4))}, x, y


def loss(params, x, y, **options):
    return jaxloss.cross_entropy(x @ params["w"], y, weight=jnp.linspace(0.5, 2.0, 4), **options)


def main(address, number):
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    assert jax.process_count() == 2
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    params, x, y = data()
    half = slice(number * ROWS // 2, (number + 1) * ROWS // 2)  # each process reads its own rows only
    rows = NamedSharding(mesh, P("data"))
    x, y = (jax.make_array_from_process_local_data(rows, a[half]) for a in (x, y))

    def on_each(params, x, y):
        return spmd.mean(loss(params, x, y, reduction="sum_and_weight"), "data")

    whole = jax.jit(jax.value_and_grad(loss))
    parts = jax.jit(
        jax.shard_map(
            spmd.value_and_grad(on_each, "data"), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()
        )
    )
    for step in (whole, parts):
        value, gradient = step(params, x, y)
        print("result", float(value), *np.asarray(gradient["w"].addressable_data(0)).ravel().tolist())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
