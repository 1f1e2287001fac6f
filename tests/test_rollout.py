"""The environment loop with a scripted policy: no model, no device."""

import dataclasses

import numpy as np
import pytest

from atod_jax.envs.base import Observation, Projection, StepResult
from atod_jax.envs.pool import EnvPool
from atod_jax.rollout import collect
from atod_jax.types import StopReason, Task


class Countdown:
    """Won after `payload` times "go"; shows how often it was played."""

    def reset(self, task):
        self.left, self.played = task.payload, 0
        return self._observe()

    def step(self, command):
        self.played += 1
        self.left -= command == "go"
        won = self.left == 0
        return StepResult(self._observe(), reward=10.0 * won, done=won, won=won)

    def close(self):
        self.left = None

    def _observe(self):
        return Observation(f"left {self.left} played {self.played}", ("go", "wait"))


class Letters:
    """A renderer whose ids are characters."""

    def prompts(self, episodes):
        texts = ["|".join([*(o for o, _ in e.past), e.current.text]) for e in episodes]
        return [np.asarray([ord(c) for c in text], np.int32) for text in texts]

    def response(self, ids):
        return "".join(map(chr, ids))

    def project(self, response, commands):
        return Projection(command=response.strip(), valid=response.strip() in commands)


@dataclasses.dataclass
class Sampled:
    tokens: np.ndarray
    logp: np.ndarray


def say(text):
    ids = np.asarray([ord(c) for c in text], np.int32)
    return Sampled(tokens=ids, logp=-0.5 * np.ones(len(ids), np.float32))


def tasks(*needed):
    return [Task(id=str(i), kind="k", payload=n) for i, n in enumerate(needed)]


def play(act, task_list, **options):
    options = {"group_size": 2, "max_turns": 4} | options
    return collect(act, Letters(), EnvPool(Countdown), task_list, **options)


def test_episodes_end_when_won_or_at_the_turn_limit():
    result = play(lambda prompts, slots, turn: [say("go") for _ in prompts], tasks(1, 3, 9))
    assert [t.group for t in result] == [0, 0, 1, 1, 2, 2]
    assert [len(t.turns) for t in result] == [1, 1, 3, 3, 4, 4]
    assert [t.success for t in result] == [True] * 4 + [False] * 2
    assert [t.stop for t in result] == [StopReason.done] * 4 + [StopReason.max_turns] * 2
    assert [t.total_reward for t in result] == [10.0] * 4 + [0.0] * 2


def test_only_live_slots_are_asked_and_records_hold_the_sampled_ids():
    asked = []

    def act(prompts, slots, turn):
        asked.append((turn, list(slots)))
        return [say("go" if slot % 2 else " wait ") for slot in slots]

    result = play(act, tasks(1, 2))
    assert asked == [(0, [0, 1, 2, 3]), (1, [0, 2, 3]), (2, [0, 2]), (3, [0, 2])]
    turn = result[0].turns[1]
    assert "".join(map(chr, turn.action)) == " wait "
    assert turn.command == "wait"
    assert "".join(map(chr, turn.prompt)) == "left 1 played 0|left 1 played 1"
    assert turn.observation == "left 1 played 1"


def test_commands_outside_the_list_are_recorded_as_invalid():
    (one, two) = play(lambda p, s, t: [say("fly"), say("go")], tasks(1), max_turns=1)
    assert [one.turns[0].valid, two.turns[0].valid] == [False, True]


def test_a_rollout_can_be_abandoned_between_turns():
    class Stop(Exception):
        pass

    calls = iter([None, Stop()])

    def between():
        if (signal := next(calls)) is not None:
            raise signal

    with pytest.raises(Stop):
        play(lambda p, s, t: [say("wait") for _ in p], tasks(3), between_turns=between)


def test_the_pool_can_be_used_again_and_closed_twice():
    pool = EnvPool(Countdown)
    assert len(pool.reset(tasks(2, 2))) == 2
    assert pool.reset(tasks(5))[0].text == "left 5 played 0"
    pool.close()
    pool.close()
