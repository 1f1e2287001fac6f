"""A model that plays one game at a time, for people who watch."""

from typing import NamedTuple

import jax

from atod_jax.config.sections import Run
from atod_jax.envs.base import Episode
from atod_jax.records import CUT, SHORTENED, Action, Request
from atod_jax.run import parts
from atod_jax.run.layouts import layouts_of
from atod_jax.run.models import load_policy, to_sampling
from atod_jax.streams import Stream, key


class Said(NamedTuple):
    """A response, and what the token limits took from it or from its prompt."""

    response: str
    problems: tuple[str, ...] = ()  # CUT, SHORTENED


class ModelPlayer:
    """Answers as the first pass of an evaluation would, at the first of its temperatures.

    Args:
      cfg: of the run.
      checkpoint: see `models.load_policy`.
      first: number of the first game within the split; the others follow.
    """

    def __init__(self, cfg: Run, checkpoint: str, *, first: int):
        layouts = layouts_of(cfg)
        self._mesh, self._row = layouts.sampling.mesh, first - 1
        with jax.set_mesh(layouts.student.mesh):
            model = load_policy(cfg, checkpoint, layouts)
            weights = to_sampling(model, model.params)
        self._renderer = parts.renderer(cfg, model.tokens)
        policy = parts.policy(cfg.sampling, model, temperature=cfg.eval.temperatures[0], episodes=1)
        with jax.set_mesh(self._mesh):
            self._sampler = policy.sampler(weights, key(cfg.seed, Stream.evaluation))

    def __call__(self, episode: Episode) -> Said | None:
        """What it answers; None where the prompt does not fit.

        An episode without a past begins the next game.
        """
        self._row += not episode.past
        (prompt,) = self._renderer.prompts([episode])
        if not self._renderer.fits(prompt):
            return None
        action = self._act(Request(self._row, len(episode.past), prompt))
        problems = (CUT,) * action.cut + (SHORTENED,) * self._renderer.shortened(prompt)
        return Said(self._renderer.response(action.tokens), problems)

    def _act(self, request: Request) -> Action:
        with jax.set_mesh(self._mesh):
            self._sampler.submit([request])
            while not (ended := self._sampler.advance(1)):
                assert ended is not None
        ((_, action),) = ended
        return action
