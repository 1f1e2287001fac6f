"""One pass over a batch: an optimiser step per minibatch."""

from atod_jax.config.sections import Run
from atod_jax.core.fused import TeacherHead
from atod_jax.device.learner import Metrics, minibatches
from atod_jax.run.batch import Packed
from atod_jax.run.compiling import together
from atod_jax.run.models import Model
from atod_jax.run.parts import make_update
from atod_jax.types import Signal, TrainState


class Learner:
    """Executes a signal on its batch."""

    def __init__(self, cfg: Run, student: Model):
        self._update, self._aggregation = make_update(cfg, student), cfg.loss.aggregation
        self._compiled = False

    def __call__(
        self, state: TrainState, packed: Packed, *, signal: Signal, head: TeacherHead | None
    ) -> tuple[TrainState, list[Metrics]]:
        """The next state, and the metrics of everything it took.

        Args:
          state: donated.
          packed: the batch.
          signal: what to learn of it.
          head: a teacher's, for an exact KL.
        """
        cut = minibatches(
            packed.batch,
            signal,
            minibatch=packed.minibatch,
            aggregation=self._aggregation,
            teacher=head,
        )
        room = packed.room(packed.mesh)
        if not self._compiled:
            together(self._update.lower(state, cut[0][0], room))
            self._compiled = True
        means: list[Metrics] = []
        for pieces in cut:
            state, metrics = self._update(state, pieces, room=room)
            means += metrics
        return state, means
