"""What the arithmetic needs to know of a run: models, mesh, and the shapes of one iteration."""

import dataclasses
import functools
import math

import jax
import numpy as np
from jax.sharding import AbstractMesh

from atod_jax.core.fused import Tiling
from atod_jax.models import ModelConfig, build
from atod_jax.models.axes import AXES
from atod_jax.sharding import BATCH_AXES, RULES, logical_axes, param_shardings


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One iteration at its largest: every episode and every action as long as they may be."""

    student: ModelConfig
    teacher: ModelConfig | None
    mesh: tuple[tuple[str, int], ...]  # (axis, devices), outermost first
    episodes: int  # played side by side
    eval_slots: int
    turns: int  # per episode
    prompt: int  # columns
    response: int  # columns
    micro_rows: int
    minibatch_rows: int
    tiling: Tiling  # of the head
    platform: str  # cpu | gpu | tpu
    teacher_int8: bool = False  # its matrices are stored as integers
    sampled: int = 0  # prompts at a time; 0 = all
    plays: bool = True  # the student samples; False where an expert plays

    def axis(self, name: str) -> int:
        """Devices along a mesh axis."""
        return dict(self.mesh)[name]

    @property
    def shards(self) -> int:
        """Into how many pieces rows are split."""
        return math.prod(self.axis(name) for name in BATCH_AXES)

    @property
    def minibatches(self) -> int:
        """Optimiser steps of an iteration."""
        return math.ceil(self.episodes * self.turns / self.minibatch_rows)

    @property
    def columns(self) -> int:
        """What a model reads of a row: the last action token predicts nothing."""
        return self.prompt + self.response - 1


@functools.cache
def parameters(config: ModelConfig, mesh: tuple[tuple[str, int], ...]) -> tuple[Parameter, ...]:
    """Every array of a model and its piece on one device of the mesh.

    Raises:
      ValueError: a dimension does not divide over its mesh axis.
    """
    names, sizes = zip(*mesh)
    abstract = jax.eval_shape(build(config).init, jax.random.key(0))
    places = param_shardings(abstract, AXES, RULES, AbstractMesh(sizes, names))
    flat = jax.tree_util.tree_leaves_with_path(abstract)
    found = []
    for (path, leaf), place in zip(flat, jax.tree.leaves(places)):
        name = "/".join(str(key.key) for key in path)
        local = place.shard_shape(leaf.shape)
        axes = tuple(place.spec)
        found.append(Parameter(name, leaf.shape, logical_axes(name, AXES), axes, local))
    return tuple(found)


def count(config: ModelConfig) -> int:
    """All parameters."""
    abstract = jax.eval_shape(build(config).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))


def item_bytes(config: ModelConfig) -> int:
    """Bytes of a number in the compute type."""
    return np.dtype(jax.numpy.dtype(config.dtype)).itemsize
