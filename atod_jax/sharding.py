"""Devices as named meshes, and the two small tables that put arrays on them.

A model names the logical axes of its parameters (pattern -> axes); the rules say which mesh axes
carry a logical axis. Everything else follows by propagation in `jax.jit`. Arrays change from one
mesh to another in `put` and `reshard` only.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from atod_jax.options.field import at_least, one_of, option
from atod_jax.types import BATCH_AXES, EXPERT_AXIS, TENSOR_AXIS

MESH_AXES = (*BATCH_AXES, TENSOR_AXIS, EXPERT_AXIS)


_SIZE = at_least(-1, "0 or -1 as the option says")
_AXIS = one_of("", *MESH_AXES)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices per mesh axis; how a run is spread over devices never changes its numbers."""

    data: int = option(-1, "copies of the weights; -1 (one axis) = all left", _SIZE, pins=False)
    fsdp: int = option(1, "weights and rows are split", _SIZE, pins=False)
    tensor: int = option(1, "heads, MLP and vocabulary are split", _SIZE, pins=False)
    expert: int = option(1, "the experts of a mixture are split", _SIZE, pins=False)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axis that splits each logical axis of the parameters; "" = none does."""

    vocab: str = option("tensor", "rows of the embedding and the head", _AXIS, pins=False)
    embed: str = option("fsdp", "width of the model", _AXIS, pins=False)
    heads: str = option("tensor", "query heads", _AXIS, pins=False)
    kv_heads: str = option("tensor", "key and value heads", _AXIS, pins=False)
    mlp: str = option("tensor", "width of the MLP", _AXIS, pins=False)
    expert: str = option("expert", "experts of a mixture", _AXIS, pins=False)
    layers: str = option("", "layers of the stack", _AXIS, pins=False)

    def table(self) -> Mapping[str, str | None]:
        """Logical axis -> mesh axis, None where it is replicated."""
        return {axis: mesh_axis or None for axis, mesh_axis in vars(self).items()}


RULES = Rules().table()

AxesTable = Sequence[tuple[str, tuple[str | None, ...]]]


class Layout(NamedTuple):
    """Where a model lives: a mesh of its devices, and its own rules."""

    mesh: Mesh
    rules: Mapping[str, str | None] = RULES


def make_mesh(shape: Mapping[str, int], devices: np.ndarray | None = None) -> Mesh:
    """A mesh over all devices of all processes, or over some of them.

    Args:
      shape: sizes of the axes data, fsdp, tensor, expert; those not named have size 1.
      devices: their order is kept; None: all devices, in the order that suits their wiring.

    Raises:
      ValueError: an unknown axis, a size below 1, or a product other than the device count.
    """
    unknown = sorted(set(shape) - set(MESH_AXES))
    if unknown:
        raise ValueError(f"mesh axes {unknown} are unknown; choose from {MESH_AXES}")
    sizes = tuple(shape.get(axis, 1) for axis in MESH_AXES)
    available = jax.device_count() if devices is None else devices.size
    if min(sizes) < 1 or math.prod(sizes) != available:
        raise ValueError(
            f"mesh {_named(sizes)} needs {math.prod(sizes)} devices, there are "
            f"{available}; make the product of its sizes equal that"
        )
    # Auto: under the default (Explicit) an embedding lookup has to name its output sharding.
    types = (AxisType.Auto,) * len(MESH_AXES)
    if devices is None and slices_of(jax.devices()) == 1:
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types)
    if devices is None:
        devices = across_slices(sizes, jax.devices())
    return Mesh(devices.reshape(sizes), MESH_AXES, axis_types=types)


def _named(sizes: Sequence[int]) -> dict[str, int]:
    return dict(zip(MESH_AXES, sizes, strict=True))


def slices_of(devices: Sequence[jax.Device]) -> int:
    """How many TPU slices these are; they talk to each other over the slower network."""
    return len({d.slice_index for d in devices if d.platform == "tpu"}) or 1


def across_slices(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of several slices as an array of these sizes, split over the data axis, or else
    the fsdp axis, so that all other communication stays inside a slice.

    Raises:
      ValueError: neither is a multiple of the number of slices.
    """
    slices = slices_of(devices)
    for place in range(len(BATCH_AXES)):
        if sizes[place] % slices == 0:
            outer = [slices if i == place else 1 for i in range(len(sizes))]
            inner = [size // parts for size, parts in zip(sizes, outer, strict=True)]
            return mesh_utils.create_hybrid_device_mesh(inner, outer, devices)
    raise ValueError(
        f"mesh {_named(sizes)} does not divide over {slices} slices; make mesh.data "
        f"or mesh.fsdp a multiple of {slices}"
    )


def param_shardings(
    abstract_params: Any,
    axes: AxesTable,
    rules: Mapping[str, str | None],
    *,
    mesh: Mesh | AbstractMesh,
) -> Any:
    """A NamedSharding per parameter.

    Args:
      abstract_params: nested dicts and tuples of arrays or ShapeDtypeStructs.
      axes: (pattern, logical axes) pairs; a pattern matches a whole name ("last/mlp/up/kernel").
      rules: logical axis -> mesh axis or None.
      mesh: the device mesh.

    Raises:
      ValueError: a parameter matches no pattern or several, has another rank than its axes, or a
        dimension is not divisible by its mesh axis; a logical axis without a rule, or with one
        that names no mesh axis; two axes of a parameter on one mesh axis.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(name, leaf.shape, logical_axes(name, axes), rules, mesh))

    return jax.tree_util.tree_map_with_path(one, abstract_params)


def logical_axes(name: str, axes: AxesTable) -> tuple[str | None, ...]:
    """The logical axes of a parameter by its name.

    Raises:
      ValueError: the name matches no pattern, or several.
    """
    found = [(pattern, names) for pattern, names in axes if re.fullmatch(pattern, name)]
    if len(found) != 1:
        patterns = [pattern for pattern, _ in found]
        raise ValueError(f"parameter {name} must match one axes pattern, matches {patterns}")
    return found[0][1]


def _spec(
    name: str,
    shape: tuple[int, ...],
    logical: tuple[str | None, ...],
    rules: Mapping[str, str | None],
    mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
    if len(logical) != len(shape):
        raise ValueError(f"parameter {name} has shape {shape} but logical axes {logical}")
    unruled = sorted({axis for axis in logical if axis is not None} - set(rules))
    if unruled:
        raise ValueError(f"parameter {name}: no sharding rule for the logical axes {unruled}")
    physical = [None if axis is None else rules[axis] for axis in logical]
    used = [mesh_axis for mesh_axis in physical if mesh_axis is not None]
    for axis, mesh_axis in zip(logical, physical, strict=True):
        if mesh_axis is not None and mesh_axis not in mesh.shape:
            raise ValueError(f"rule {axis} -> {mesh_axis}: no such axis in {dict(mesh.shape)}")
    if len(set(used)) != len(used):
        raise ValueError(f"parameter {name} {logical} -> {physical} uses a mesh axis twice")
    for size, axis, mesh_axis in zip(shape, logical, physical, strict=True):
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            raise ValueError(
                f"parameter {name} {shape}: its axis {axis!r} of size {size} is not divisible by "
                f"the {mesh.shape[mesh_axis]} devices of mesh axis {mesh_axis!r}; change the mesh"
            )
    return PartitionSpec(*physical)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the leading axis) split over data and fsdp; all other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def split_rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """Under `jax.set_mesh`, keeps the rows of an intermediate array split over data and fsdp.

    Left to itself, XLA splits activations by width, as the embedding table is split, and every
    device of the fsdp axis computes the attention of every row; with this it gathers weights.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, BATCH_AXES))


def local_shards(mesh: Mesh) -> int:
    """Into how many pieces this process's rows are split."""
    return math.prod(mesh.local_mesh.shape[axis] for axis in BATCH_AXES)


def to_global(host_tree: Any, mesh: Mesh) -> Any:
    """This process's rows of each array -> the global array, split over data and fsdp.

    Scalars are replicated and must be equal in all processes.

    Raises:
      ValueError: a leading axis is not divisible by this process's share of the batch axes.
    """
    split, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    shards = local_shards(mesh)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        if x.ndim and x.shape[0] % shards:
            raise ValueError(
                f"{x.shape[0]} rows are not divisible by the {shards} local data shards; "
                f"pad them to {-(-x.shape[0] // shards) * shards}"
            )
        return jax.make_array_from_process_local_data(split if x.ndim else whole, x)

    return jax.tree.map(one, host_tree)


def place(host_tree: Any, mesh: Mesh) -> Any:
    """Whole arrays, equal in all processes -> global arrays, rows split over data and fsdp."""
    split = batch_sharding(mesh)

    return jax.tree.map(lambda x: _from_whole(np.asarray(x), split), host_tree)


def _from_whole(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def reshard(tree: Any, shardings: Any) -> Any:
    """Arrays in another layout over the same devices in the same order, by one program."""
    return jax.jit(_same, out_shardings=shardings)(tree)


def _same(tree: Any) -> Any:
    return tree


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays on any devices -> the same arrays with this sharding, of other devices perhaps."""

    def one(x: jax.Array) -> jax.Array:
        if jax.process_count() == 1 or x.sharding.device_set == sharding.device_set:
            return jax.device_put(x, sharding)
        # every process has devices of both meshes, so all have the whole
        return _from_whole(to_host(x), sharding)

    return jax.tree.map(one, tree)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array, in every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return jax.device_get(x)
    assert isinstance(x.sharding, NamedSharding)
    assert isinstance(x.sharding.mesh, Mesh)
    with jax.set_mesh(x.sharding.mesh):  # of other devices, perhaps, than those in use now
        return multihost_utils.process_allgather(x, tiled=True)


def replicate(x: Any, mesh: Mesh) -> jax.Array:
    """A host array, equal in all processes, whole on every device."""
    return jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec()), np.asarray(x)
    )


def to_local(x: jax.Array) -> np.ndarray:
    """The rows this process owns: the inverse of `to_global` for one array."""
    if x.is_fully_addressable:
        return jax.device_get(x)
    pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([jax.device_get(pieces[start]) for start in sorted(pieces)])
