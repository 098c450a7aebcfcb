"""Arrays spread over devices: how they are laid out, and what each device needs of the others.

Inside `jax.shard_map` an axis of the mesh has a name, and an array holds this device's part. Under `jax.jit` an array
is whole; with explicit axes its layout is part of its type, which a gather and `jax.vmap` have to be told.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ._types import Array, Tree

AxisName: TypeAlias = str | Sequence[str]
MeshAxes: TypeAlias = tuple[str, ...] | None


def mesh_axes(axis_name: AxisName | None) -> MeshAxes:
    """The names as what can be static."""
    return None if axis_name is None else names_of(axis_name)


def names_of(axes: AxisName | None) -> tuple[str, ...]:
    """One name, several or none, as an argument or an entry of a PartitionSpec has them, as a tuple."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def alone() -> bool:
    """Whether the arrays seen here are surely on one device: rows of those on several must not be looped over."""
    return jax.device_count() == 1 or bool(jax.sharding.get_abstract_mesh().are_all_axes_manual)


def explicit_sharding(x: Array) -> NamedSharding | None:
    """The layout of `x` if it is part of its type."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def is_split(x: Array, axis: int) -> bool:
    """Whether the type of `x` says that `axis` is spread over devices, whose entries no gather may name."""
    sharding = explicit_sharding(x)
    return sharding is not None and axis < len(sharding.spec) and sharding.spec[axis] is not None


def devices_of_rows(x: Array) -> int:
    """Over how many devices the type of `x` says that its first axis is spread."""
    sharding = explicit_sharding(x)
    if sharding is None or not x.ndim:
        return 1
    return math.prod(sharding.mesh.shape[name] for name in names_of(sharding.spec[0]))


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
    layout = everywhere(x)
    if layout is None:
        return x
    whole: Array = jax.sharding.reshard(x, layout)
    return whole


def everywhere(x: Array) -> NamedSharding | None:
    """The layout of what every device has whole, for `x` or what is added up from it, if layouts are part of types."""
    sharding = explicit_sharding(x)
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())


def laid_out_like(x: Array, y: Array) -> Array:
    """`x` with its rows where those of `y` are."""
    sharding = explicit_sharding(y)
    if sharding is None:
        return x
    rows: Array = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1])))
    return rows


def chunk_axis() -> int:
    """The axis that counts chunks of rows. On several devices a chunk has rows from all over, each device a part."""
    return 0 if alone() else 1


def by_chunk(x: Array, size: int) -> Array:
    """The rows of `x` as (chunks, size, ...), or the other way around: `chunk_axis`."""
    shape = [size, *x.shape[1:]]
    shape.insert(chunk_axis(), x.shape[0] // size)
    sharding = explicit_sharding(x)
    if sharding is None:
        return jnp.reshape(x, shape)
    spec = list(sharding.spec)
    spec.insert(chunk_axis(), None)
    split: Array = lax.reshape(x, shape, out_sharding=NamedSharding(sharding.mesh, PartitionSpec(*spec)))
    return split


def out_of_chunks(x: Array) -> Array:
    """Rows again, from (chunks, size, ...)."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    x = x.swapaxes(0, chunk_axis())
    sharding = explicit_sharding(x)
    if sharding is None:
        return jnp.reshape(x, shape)
    spec = list(sharding.spec)
    del spec[chunk_axis()]
    joined: Array = lax.reshape(x, shape, out_sharding=NamedSharding(sharding.mesh, PartitionSpec(*spec)))
    return joined


def spread_like(x: Array, *others: Array) -> Array:
    """`x` on the devices of `others` too, broadcast against them: what a loop carries has to start as it goes on."""
    for y in others:
        x = jnp.where(y == y, x, x)  # XLA drops it, for integers
    return x


def numbers(count: int, axis_name: AxisName | None) -> Array:
    """Numbers of this device's `count` rows among those of all devices."""
    first = 0 if axis_name is None else count * lax.axis_index(axis_name)
    return first + jnp.arange(count)


def varying_axes(x: Array) -> frozenset[str]:
    """The mesh axes along which the type of `x` lets it differ: none outside a `jax.shard_map` that checks it."""
    kind: Any = jax.typeof(x)
    axes: frozenset[str] = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # JAX < 0.10, or later
    return axes


def vary_alike(tree: Tree, axis_name: AxisName | None = None) -> Tree:
    """Arrays that may all differ along the same axes, as the rules of a custom derivative and of a loop want them.

    All but masks: they have no cotangent, and what is the same on all devices stays so behind them.
    """
    axes = frozenset().union(*(varying_axes(x) for x in jax.tree.leaves(tree)))
    if axis_name is not None:
        axes |= varying_axes(lax.axis_index(axis_name))

    return jax.tree.map(lambda x: x if x.dtype == bool else _vary(x, axes), tree)


def vary_as(tree: Tree, *others: Array | None) -> Tree:
    """Arrays, masks too, that may differ along all axes along which some of the `others` may."""
    axes = frozenset().union(*(varying_axes(x) for x in others if x is not None))
    return jax.tree.map(lambda x: _vary(x, axes), tree)


def _vary(x: Array, axes: frozenset[str]) -> Array:
    missing = tuple(sorted(axes - varying_axes(x)))
    varying: Array = lax.pcast(x, missing, to="varying") if missing else x
    return varying


class Classes(NamedTuple):
    """The axis of an array that holds the classes, and inside `jax.shard_map` the mesh axes they are spread over."""

    axis: int
    axis_name: MeshAxes = None

    def total(self, a: Array) -> Array:
        """The sum over all classes, on an axis of size 1."""
        return self.of_parts(jnp.sum(a, self.axis, keepdims=True))

    def of_parts(self, part: Array) -> Array:
        """The sum of what each device has, the same on all."""
        if self.axis_name is None:
            return part
        whole: Array = lax.psum(part, self.axis_name)
        return whole

    def to_parts(self, g: Array) -> Array:
        """What a cotangent of `of_parts` is for each device's part: its transpose, whatever that is in JAX's styles."""
        if self.axis_name is None:
            return g
        of_part: Array
        (of_part,) = jax.linear_transpose(self.of_parts, vary_alike(jnp.zeros_like(g), self.axis_name))(g)
        return of_part

    def largest_of_parts(self, part: Array) -> Array:
        """The maximum of what each device has, which is a constant to differentiation."""
        if self.axis_name is None:
            return part
        whole: Array = lax.pmax(part, self.axis_name)
        return whole

    def rank(self) -> Array | int:
        """Which of the parts this device has."""
        return 0 if self.axis_name is None else lax.axis_index(self.axis_name)

    def count(self, here: int) -> int:
        """The number of all classes, of which `here` are on each device."""
        return here if self.axis_name is None else here * lax.axis_size(self.axis_name)

    def own(self, index: Array, here: int) -> Array:
        """Numbers of classes among all as numbers among those on this device, or `here` if it is another's.

        -1, which stands for no right answer, remains so for the first device.
        """
        if self.axis_name is None:
            return index
        first = self.rank() * here
        mine = (index >= first) & (index < first + here)
        return jnp.where(mine, index - first, jnp.where((index < 0) & (first == 0), -1, here))

    def only_first(self, a: Array) -> Array:
        """What is not of a class, once: on the first device."""
        return a if self.axis_name is None else jnp.where(self.rank() == 0, a, 0)
