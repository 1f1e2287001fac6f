"""What the arithmetic needs to know of a run: models and where they live, shapes."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh

from atod_jax.models import ModelConfig, build, lora
from atod_jax.models.axes import AXES
from atod_jax.sharding import RULES, logical_axes, param_shardings
from atod_jax.types import BATCH_AXES


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of a model on a mesh."""

    name: str
    shape: tuple[int, ...]
    logical: tuple[str | None, ...]
    mesh_axes: tuple[str | None, ...]
    local_shape: tuple[int, ...]  # on one device

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def local_size(self) -> int:
        return math.prod(self.local_shape)


@dataclasses.dataclass(frozen=True)
class Placed:
    """A model on its mesh. Hashable, so what follows from it can be kept."""

    model: ModelConfig
    mesh: tuple[tuple[str, int], ...]  # (axis, devices), outermost first
    rules: tuple[tuple[str, str | None], ...] = tuple(RULES.items())  # logical axis -> mesh axis
    storage: str = "float32"  # of its weights: float32 | bfloat16 | int8 (matrices only)
    adapters: int = 0  # rank of those that train; 0 = all weights do

    def axis(self, name: str) -> int:
        """Devices along a mesh axis."""
        return dict(self.mesh)[name]

    @property
    def devices(self) -> int:
        return math.prod(size for _, size in self.mesh)

    @property
    def shards(self) -> int:
        """Into how many pieces rows are split."""
        return math.prod(self.axis(name) for name in BATCH_AXES)

    def split(self, logical: str) -> int:
        """Into how many pieces a width of the work is split; an axis that splits rows splits no
        widths: weights stored along it are gathered for use."""
        carried_by = dict(self.rules)[logical]
        return self.axis(carried_by) if carried_by and carried_by not in BATCH_AXES else 1

    def stored_pieces(self, logical: str) -> int:
        """Into how many pieces a width is stored that the work does not split."""
        return math.prod(self.axis(a) for a in BATCH_AXES if a == dict(self.rules)[logical])

    def pieces(self, p: Parameter) -> int:
        """Into how many pieces a parameter is stored that are gathered for use."""
        return math.prod(self.axis(name) for name in BATCH_AXES if name in p.mesh_axes)

    @property
    def item_bytes(self) -> int:
        """Bytes of a number in the compute type."""
        return np.dtype(jax.numpy.dtype(self.model.dtype)).itemsize

    def stored_bytes(self, p: Parameter) -> int:
        """Bytes of a number of a parameter as it is kept."""
        matrix = p.name.endswith("/kernel") and "/router/" not in p.name
        kept = "bfloat16" if self.storage == "int8" and not matrix else self.storage
        return np.dtype(jax.numpy.dtype(kept)).itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One iteration at its largest: every episode and every action as long as they may be."""

    student: Placed  # as it is trained
    sampling: Placed  # the same weights where they sample, on the same devices
    teacher: Placed | None
    reserved: bool = False  # the teacher has devices of its own
    scored_by: str = "teacher"  # who scores batches as the teacher: teacher (if any) | student | ""
    exact: bool = False  # its final states are kept for an exact KL in the loss
    episodes: int  # played side by side
    eval_slots: int
    turns: int  # per episode
    prompt: int  # columns
    response: int  # columns
    micro_rows: int
    minibatch_rows: int
    platform: str  # cpu | gpu | tpu
    sampled: int = 0  # prompts at a time; 0 = all
    plays: bool = True  # the student samples; False where an expert plays

    @property
    def scorer(self) -> Placed | None:
        """The model whose statistics count as the teacher's."""
        return {"teacher": self.teacher, "student": self.student, "": None}[self.scored_by]

    @property
    def copies(self) -> bool:
        """Whether the weights exist a second time while the student plays."""
        return self.sampling.mesh != self.student.mesh

    @property
    def minibatches(self) -> int:
        """Optimiser steps of an iteration."""
        return math.ceil(self.episodes * self.turns / self.minibatch_rows)

    @property
    def columns(self) -> int:
        """What a model reads of a row: the last action token predicts nothing."""
        return self.prompt + self.response - 1


@functools.cache
def parameters(placed: Placed) -> tuple[Parameter, ...]:
    """Every array of a model and its piece on one device of its mesh.

    Raises:
      ValueError: a dimension does not divide over its mesh axis.
    """
    return _on_mesh(placed, jax.eval_shape(build(placed.model).init, jax.random.key(0)))


@functools.cache
def trained(placed: Placed) -> tuple[Parameter, ...]:
    """Those that learn: adapters, which are no part of `parameters`, or all."""
    if not placed.adapters:
        return parameters(placed)
    base = jax.eval_shape(build(placed.model).init, jax.random.key(0))
    draw = functools.partial(lora.init_adapters, rank=placed.adapters)
    return _on_mesh(placed, jax.eval_shape(draw, base, jax.random.key(0)))


def added(placed: Placed) -> tuple[Parameter, ...]:
    """What there is beside the parameters of the architecture."""
    return trained(placed) if placed.adapters else ()


def _on_mesh(placed: Placed, abstract: Any) -> tuple[Parameter, ...]:
    names, sizes = zip(*placed.mesh, strict=True)
    places = param_shardings(abstract, AXES, dict(placed.rules), mesh=AbstractMesh(sizes, names))
    flat = jax.tree_util.tree_leaves_with_path(abstract)
    found = []
    for (path, leaf), place in zip(flat, jax.tree.leaves(places), strict=True):
        name = "/".join(str(key.key) for key in path)
        local = place.shard_shape(leaf.shape)
        axes = tuple(place.spec)
        found.append(Parameter(name, leaf.shape, logical_axes(name, AXES), axes, local))
    return tuple(found)


def count(config: ModelConfig) -> int:
    """All parameters."""
    abstract = jax.eval_shape(build(config).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))
