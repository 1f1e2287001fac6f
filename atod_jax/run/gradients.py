"""How noisy the direction is that a token signal gives: gradients of groups of episodes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from atod_jax.config.sections import Run
from atod_jax.device.lines import Room
from atod_jax.device.scoring import make_score
from atod_jax.run.batch import Packed
from atod_jax.run.models import Model
from atod_jax.run.parts import head_config
from atod_jax.types import Rows

FOLDS = 8  # of groups, each left out once to see how far the rest move


class Directions:
    """Sums over groups of the policy gradients of several signals; no group's own is kept."""

    def __init__(self) -> None:
        self._totals: list[Any] = [0.0] * FOLDS  # each [S, P], of the gradients of a fold
        self._products: list[Any] = [0.0] * FOLDS  # each [S, S], of a group's inner products
        self._groups = 0

    def add(self, gradients: Float[np.ndarray, "S P"]) -> None:
        """Adds a group."""
        fold = self._groups % FOLDS
        self._totals[fold] = self._totals[fold] + gradients
        self._products[fold] = self._products[fold] + gradients @ gradients.T
        self._groups += 1

    def inner(self, without: int = -1) -> Float[np.ndarray, "S S"]:
        """Inner products of the true mean gradients, without what the groups' noise adds to them
        and without a fold's groups; on the diagonal squared lengths, which may come out negative
        where noise is all there is."""
        kept = [fold for fold in range(FOLDS) if fold != without]
        total: Any = sum(self._totals[fold] for fold in kept)
        n = sum(len(range(fold, self._groups, FOLDS)) for fold in kept)
        return (total @ total.T - sum(self._products[fold] for fold in kept)) / (n * (n - 1))

    def noise2(self) -> Float[np.ndarray, "S"]:
        """Trace of the covariance of a group's gradient."""
        return np.diag(sum(self._products)) / self._groups - np.diag(self.inner())

    def noise_scale(self) -> Float[np.ndarray, "S"]:
        """Groups at which noise and direction of a step are equally long (McCandlish et al. 2018,
        the simple noise scale); infinite where noise is all there is."""
        length2 = np.diag(self.inner())
        known = length2 > 0
        return np.where(known, self.noise2() / np.where(known, length2, 1.0), np.inf)

    def cosines(self) -> tuple[Float[np.ndarray, "S S"], Float[np.ndarray, "S S"]]:
        """Between true mean gradients, and the standard error of each (jackknife over FOLDS folds
        of groups); nan where a direction is lost in noise, with all groups or without a fold. An
        estimate may lie beyond -1 and 1: cut there, its error would come out as none.

        Raises:
          ValueError: fewer than three groups.
        """
        folds = min(FOLDS, self._groups)
        if folds < 3:
            raise ValueError(f"{self._groups} groups: cosines need at least 3")
        each = [_cosines(self.inner(without)) for without in range(folds)]
        return _cosines(self.inner()), np.std(each, axis=0) * np.sqrt(folds - 1)


def _cosines(inner: Float[np.ndarray, "S S"]) -> Float[np.ndarray, "S S"]:
    lengths = np.sqrt(np.where(np.diag(inner) > 0, np.diag(inner), np.nan))
    return inner / np.outer(lengths, lengths)


class GroupGradient:
    """A callable (packed, streams) -> f64[S, P]: for every stream A of [N, R], the gradient of
    sum_t A_t log p(a_t) over the batch, of all the student's weights in one line."""

    def __init__(self, cfg: Run, student: Model):
        score = make_score(student.lm, head_config(cfg, student.tokens, student.layout.mesh))
        self._params = student.params

        def objective(params: Any, rows: Rows, stream: Array, room: Room) -> Array:
            return jnp.sum(
                jnp.where(rows.action_mask, stream, 0) * score(params, rows, room=room).logp
            )

        @functools.partial(jax.jit, static_argnames="room")
        def gradient(params: Any, rows: Rows, stream: Array, room: Room) -> Array:
            return ravel_pytree(jax.grad(objective)(params, rows, stream, room))[0]

        self._gradient = gradient

    def __call__(self, packed: Packed, streams: list[Array]) -> Float[np.ndarray, "S P"]:
        # One after the other: all at once needs the memory of all.
        room, both = packed.room(packed.mesh), (packed.batch.rows, streams)
        found = [
            [np.asarray(self._gradient(self._params, rows, x, room), np.float64) for x in cut]
            for rows, cut in packed.pieces(both)
        ]
        return np.sum(found, axis=0)
