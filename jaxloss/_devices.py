"""Arrays spread over devices: how they are laid out, and what each device needs of the others.

Inside `jax.shard_map` an axis of the mesh has a name, and an array holds this device's part. Under `jax.jit` an array
is whole; with explicit axes its layout is part of its type, which a gather and `jax.vmap` have to be told.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ._types import Array

AxisName: TypeAlias = str | Sequence[str]
Tree: TypeAlias = Any


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


def by_chunk(x: Array, size: int) -> Array:
    """The rows of `x` as (size, chunks, ...). A chunk has rows from all over, for each device to have a part of it."""
    shape = (size, x.shape[0] // size, *x.shape[1:])
    sharding = explicit_sharding(x)
    if sharding is None:
        return jnp.reshape(x, shape)
    rows, *others = sharding.spec
    layout = NamedSharding(sharding.mesh, PartitionSpec(rows, None, *others))
    split: Array = lax.reshape(x, shape, out_sharding=layout)
    return split


def out_of_chunks(x: Array) -> Array:
    """Rows again, from (chunks, size, ...)."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    sharding = explicit_sharding(x)
    if sharding is None:
        return jnp.reshape(x.swapaxes(0, 1), shape)
    _, rows, *others = sharding.spec
    layout = NamedSharding(sharding.mesh, PartitionSpec(rows, *others))
    joined: Array = lax.reshape(x.swapaxes(0, 1), shape, out_sharding=layout)
    return joined


def everywhere(x: Array) -> NamedSharding | None:
    """The layout of what is added up over all rows of `x`, if layouts are part of types."""
    sharding = explicit_sharding(x)
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())


def varying(x: Array) -> frozenset[str]:
    """The mesh axes along which `x` differs between devices, as far as types say so."""
    kind: Any = jax.typeof(x)
    axes: frozenset[str] = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # JAX < 0.10, or later
    return axes


def varying_with(x: Tree, others: Tree) -> Tree:
    """`x` with types that differ between devices wherever those of `others` do.

    A `jax.custom_vjp` must return a gradient of its argument's type, and a loop carry what it began with.
    """
    axes = frozenset[str]().union(*map(varying, jax.tree.leaves(others)))

    def cast(a: Array) -> Array:
        missing = tuple(sorted(axes - varying(a)))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(cast, x)


def spread_like(x: Array, *others: Array) -> Array:
    """`x` on the devices of `others` too, broadcast against them: what a loop carries has to start as it goes on."""
    for y in others:
        x = jnp.where(y == y, x, x)  # XLA drops it, for integers
    return x


def numbers(count: int, axis_name: AxisName | None) -> Array:
    """Numbers of this device's `count` rows among those of all devices."""
    first = 0 if axis_name is None else count * lax.axis_index(axis_name)
    return first + jnp.arange(count)
