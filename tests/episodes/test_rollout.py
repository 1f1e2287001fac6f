"""The environment loop with a scripted policy: no model, no device."""

import numpy as np
import pytest

from atod_jax.envs.base import Observation, Projection, StepResult
from atod_jax.envs.pool import BrokenEnvironment, EnvPool
from atod_jax.episodes.rollout import Slot, collect, whole_groups
from atod_jax.records import Action, RolloutPlan, StopReason, Task


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

    longest = 10_000

    def prompts(self, episodes, contexts=()):
        texts = ["|".join([*(o for o, _ in e.past), e.current.text]) for e in episodes]
        texts = [f"{c}>{t}" for c, t in zip(contexts, texts)] if contexts else texts
        return [np.asarray([ord(c) for c in text], np.int32) for text in texts]

    def fits(self, prompt):
        return len(prompt) <= self.longest

    def response(self, ids):
        return "".join(map(chr, ids))

    def project(self, response, commands):
        return Projection(command=response.strip(), valid=response.strip() in commands)


class Says:
    """A sampler that says what `words(row, turn, prompt)` says, to `at_once` prompts at a time."""

    def __init__(self, words, at_once=100):
        self.words, self.slots = words, at_once
        self.waiting, self.log = [], []

    def submit(self, requests):
        self.waiting += requests

    def advance(self, expected):
        now, self.waiting = self.waiting[: self.slots], self.waiting[self.slots :]
        self.log.append((expected, [(r.row, r.turn, text_of(r.prompt)) for r in now]))
        said = [(r.row, say(self.words(r.row, r.turn))) for r in now]
        return said if expected else None


def say(text):
    ids = np.asarray([ord(c) for c in text], np.int32)
    return Action(tokens=ids, logp=-0.5 * np.ones(len(ids), np.float32))


def text_of(ids):
    return "".join(map(chr, ids))


def tasks(*needed):
    return [Task(id=str(i), kind="k", payload=n) for i, n in enumerate(needed)]


def play(words, task_list, **options):
    """Plays; `words` is a sampler or a function of (row, turn)."""
    options = {"group_size": 2, "plan": RolloutPlan(max_turns=4)} | options
    renderer, pool = options.pop("renderer", Letters()), options.pop("pool", EnvPool(Countdown))
    sampler = words if isinstance(words, Says) else Says(words)
    return collect(sampler, renderer, pool, tasks=task_list, **options)


def test_episodes_end_when_won_or_at_the_turn_limit():
    result = play(go, tasks(1, 3, 9))
    assert [t.group for t in result] == [0, 0, 1, 1, 2, 2]
    assert [len(t.turns) for t in result] == [1, 1, 3, 3, 4, 4]
    assert [t.success for t in result] == [True] * 4 + [False] * 2
    assert [t.stop for t in result] == [StopReason.done] * 4 + [StopReason.max_turns] * 2
    assert [t.total_reward for t in result] == [10.0] * 4 + [0.0] * 2


def go(row, turn):
    return "go"


def wait(row, turn):
    return "wait"


def test_only_live_episodes_are_asked_and_records_hold_the_sampled_ids():
    sampler = Says(lambda row, turn: "go" if row % 2 else " wait ")
    result = play(sampler, tasks(1, 2))
    asked = [(n, [(row, turn) for row, turn, _ in some]) for n, some in sampler.log]
    assert asked == [
        (4, [(0, 0), (1, 0), (2, 0), (3, 0)]),
        (3, [(0, 1), (2, 1), (3, 1)]),
        (2, [(0, 2), (2, 2)]),
        (2, [(0, 3), (2, 3)]),
        (0, []),
    ]
    turn = result[0].turns[1]
    assert text_of(turn.action) == " wait "
    assert turn.command == "wait"
    assert text_of(turn.prompt) == "left 1 played 0|left 1 played 1"
    assert turn.observation == "left 1 played 1"


def test_commands_outside_the_list_are_recorded_as_invalid():
    (one, two) = play(
        lambda row, turn: "go" if row else "fly", tasks(1), plan=RolloutPlan(max_turns=1)
    )
    assert [one.turns[0].valid, two.turns[0].valid] == [False, True]


def test_a_rollout_can_be_abandoned():
    class Stop(Exception):
        pass

    calls = iter([None, Stop()])

    def between():
        if (signal := next(calls)) is not None:
            raise signal

    with pytest.raises(Stop):
        play(wait, tasks(3), between_turns=between)


def test_a_replayed_prefix_is_history_and_counts_towards_the_horizon():
    """Three of four demonstrated turns; the student finds one left and has two turns to go."""
    plan = RolloutPlan(max_turns=5, prefix_by="expert", prefix=lambda length: length - 1)
    sampler = Says(wait)
    (one, _) = play(sampler, tasks(4), plan=plan, demonstrations=[("go", "go", "go", "go")])
    assert [t.replayed for t in one.turns] == [True] * 3 + [False] * 2
    assert [t.command for t in one.turns] == ["go"] * 3 + ["wait"] * 2
    assert [len(t.action) for t in one.turns] == [0, 0, 0, 4, 4]
    assert one.turns[2].observation == "left 2 played 2"
    assert one.stop is StopReason.max_turns
    history = "left 4 played 0|left 3 played 1|left 2 played 2|left 1 played 3"
    assert sampler.log[0][1] == [(0, 0, history), (1, 0, history)]
    assert [row_turn[:2] for row_turn in sampler.log[1][1]] == [(0, 1), (1, 1)]


def test_the_reward_of_a_replayed_win_is_kept_and_ends_the_episode():
    plan = RolloutPlan(max_turns=5, prefix_by="expert", prefix=lambda length: length)
    (one, _) = play(go, tasks(2), plan=plan, demonstrations=[("go", "go", "go")])
    assert one.success
    assert one.total_reward == 10.0
    assert len(one.turns) == 2


def test_without_a_demonstration_the_student_begins_at_the_start():
    plan = RolloutPlan(max_turns=4, prefix_by="expert", prefix=lambda length: max(length - 1, 0))
    plain = play(go, tasks(1, 3))
    shown = play(go, tasks(1, 3), plan=plan, demonstrations=[(), ()])
    assert [[t.command for t in e.turns] for e in shown] == [
        [t.command for t in e.turns] for e in plain
    ]
    assert not any(t.replayed for e in shown for t in e.turns)


def test_a_context_reaches_the_teacher_and_nobody_else():
    alone, beside = Says(go), Says(go)
    plain = play(alone, tasks(1, 2))
    told = play(beside, tasks(1, 2), contexts=["A", "B"])
    assert alone.log == beside.log
    for episode, other in zip(told, plain):
        for turn, same in zip(episode.turns, other.turns, strict=True):
            assert same.teacher_prompt is None
            assert text_of(turn.prompt) == text_of(same.prompt)
            context = "AB"[episode.group]
            assert text_of(turn.teacher_prompt) == f"{context}>{text_of(turn.prompt)}"


def test_the_pool_can_be_used_again_and_closed_twice():
    pool = EnvPool(Countdown)
    assert len(pool.reset(tasks(2, 2))) == 2
    assert pool.reset(tasks(5))[0].text == "left 5 played 0"
    pool.close()
    pool.close()


class Moody(Countdown):
    """Breaks down whenever it is told to "go" with the payload 7."""

    def step(self, command):
        if self.left == 7:
            raise OSError("out of order")
        return super().step(command)


def test_a_group_with_an_episode_that_cannot_be_played_goes_as_a_whole(capsys):
    pool = EnvPool(Moody)
    result = play(go, tasks(1, 8, 2), pool=pool)
    assert [t.stop for t in result[2:4]] == [StopReason.env_error] * 2
    assert [len(t.turns) for t in result] == [1, 1, 1, 1, 2, 2]
    kept = whole_groups(result)
    assert [t.group for t in kept] == [0, 0, 2, 2]
    assert pool.take_counts()["given_up"] == 2
    assert "gave up task 1" in capsys.readouterr().err


def test_one_broken_episode_takes_its_healthy_sisters_along():
    result = play(lambda row, turn: "go" if row else "wait", tasks(8, 1, 1), pool=EnvPool(Moody))
    assert [t.stop is StopReason.env_error for t in result] == [False, True] + [False] * 4
    assert [t.group for t in whole_groups(result)] == [1, 1, 2, 2]


def test_an_environment_that_mostly_fails_stops_the_run():
    with pytest.raises(BrokenEnvironment, match="failed in 2 of 3 groups"):
        whole_groups(play(go, tasks(7, 7, 1), pool=EnvPool(Moody)))


def test_a_prompt_that_no_longer_fits_ends_its_episode():
    letters = Letters()
    letters.longest = 40
    result = play(lambda row, turn: "go" if row else "wait", tasks(4), renderer=letters)
    assert [t.stop for t in result] == [StopReason.prompt_too_long] * 2
    assert [len(t.turns) for t in result] == [2, 2]
    assert not any(t.success for t in result)
    letters.longest = 3
    with pytest.raises(ValueError, match=r"longer than 3 tokens; .* sampling\.prompt_buckets"):
        play(go, tasks(4), renderer=letters)


class Slow(EnvPool):
    """Answers in parts and in an odd order, as workers do."""

    def __init__(self, make):
        super().__init__(make)
        self.held, self.waits, self.most = [], [], 0

    @property
    def under_way(self):
        return len(self.held) + super().under_way

    def poll(self, *, wait=False):
        self.held += super().poll()
        self.most = max(self.most, len(self._episodes))
        self.waits.append(wait)
        some = self.held[-2:] if wait or len(self.waits) % 2 else []
        self.held = self.held[: len(self.held) - len(some)]
        return some


def seen(trajectories):
    return [
        (t.group, t.stop, t.success, [(u.command, u.observation) for u in t.turns])
        for t in trajectories
    ]


@pytest.mark.parametrize("slots", [100, 3, 1])
@pytest.mark.parametrize("at_once", [0, 2])
def test_who_answers_when_changes_nothing(slots, at_once):
    def words(row, turn):
        return "go" if (row + turn) % 3 else "wait"

    quick = play(words, tasks(2, 3, 1, 4))
    pool, sampler = Slow(Countdown), Says(words, slots)
    slow = play(sampler, tasks(2, 3, 1, 4), pool=pool, at_once=at_once)
    assert seen(slow) == seen(quick)
    assert pool.most == (at_once or 8)
    assert max(expected for expected, _ in sampler.log) == (at_once or 8)


def test_the_sampler_starts_with_half_of_its_slots():
    pool, sampler = Slow(Countdown), Says(go)
    play(sampler, tasks(9, 9, 9, 9), pool=pool)
    assert all(2 * len(asked) >= expected for expected, asked in sampler.log)


def test_half_a_surrogate_pair_goes_no_further():
    """Nothing could record it."""
    task = Task("t", "k", None)
    assert Slot.open(0, task, group=0, first=Observation("a\ud83d")).episode.opening == "a\ufffd"
