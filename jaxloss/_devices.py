"""Arrays spread over devices: how they are laid out, and what each device needs of the others.

Inside `jax.shard_map` an axis of the mesh has a name, and an array holds this device's part. Under `jax.jit` an array
is whole; with explicit axes its layout is part of its type, which a gather and `jax.vmap` have to be told.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ._types import Array

AxisName: TypeAlias = str | Sequence[str]


def explicit_sharding(x: Array) -> NamedSharding | None:
    """The layout of `x` if it is part of its type."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def broadcast_like(x: Array, like: Array) -> Array:
    """`x` broadcast to the shape of `like`, each device its own part: its gradient adds up where it is."""
    sharding = explicit_sharding(like)
    if sharding is None or x.shape == like.shape or any(jax.typeof(x).sharding.spec):
        return jnp.broadcast_to(x, like.shape)
    return jnp.broadcast_to(x, like.shape, out_sharding=sharding)


def everyone(x: Array, axis_name: AxisName | None) -> Array:
    """The rows of all devices, on each."""
    if axis_name is not None:
        gathered: Array = lax.all_gather(x, axis_name, tiled=True)
        return gathered
    sharding = explicit_sharding(x)
    if sharding is None:
        return x
    whole: Array = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))
    return whole


def laid_out_like(x: Array, y: Array) -> Array:
    """`x` with its rows where those of `y` are."""
    sharding = explicit_sharding(y)
    if sharding is None:
        return x
    rows: Array = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1])))
    return rows


def spread_like(x: Array, *others: Array) -> Array:
    """`x` on the devices of `others` too, broadcast against them: what a loop carries has to start as it goes on."""
    for y in others:
        x = jnp.where(y == y, x, x)  # XLA drops it, for integers
    return x


def numbers(count: int, axis_name: AxisName | None) -> Array:
    """Numbers of this device's `count` rows among those of all devices."""
    first = 0 if axis_name is None else count * lax.axis_index(axis_name)
    return first + jnp.arange(count)
