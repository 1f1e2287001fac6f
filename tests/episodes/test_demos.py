"""Supervised turns: labels, disturbance and reproducibility."""

import re

import numpy as np
import pytest

from atod_jax.envs import alfworld
from atod_jax.envs.alfworld import expert as scripted
from atod_jax.envs.base import Expert
from atod_jax.envs.pool import EnvPool
from atod_jax.episodes.demos import DemoConfig, collect_demos, turned
from atod_jax.episodes.render import Renderer
from atod_jax.run.models import ASSETS, load_tokens

SETTINGS = alfworld.Config()
EXPERT = Expert(scripted.act, scripted.thought, scripted.disturb)
RENDERER = Renderer(
    load_tokens(ASSETS / "household" / "tokenizer"),
    alfworld.TEMPLATES["compact"],
    history=2,
)


def collect(noise=(0.0, 0.0), label="expert", thoughts=False, seed=0, expert=EXPERT, turned=0.0):
    tasks = alfworld.tasks(SETTINGS, "train")[:12]
    return collect_demos(
        expert,
        RENDERER,
        EnvPool(lambda: alfworld.make(SETTINGS)),
        tasks=tasks,
        max_turns=20,
        cfg=DemoConfig(noise=noise, label=label, absent=0.3, thoughts=thoughts, turned=turned),
        rng=np.random.default_rng(seed),
    )


def test_the_undisturbed_expert_wins_and_its_labels_are_what_it_played():
    trajectories = collect()
    assert all(t.success for t in trajectories)
    assert all(turn.response == turn.command for t in trajectories for turn in t.turns)


def test_labels_on_disturbed_play_are_the_experts_or_the_players():
    by_expert, by_player = collect((0.7, 0.7)), collect((0.7, 0.7), label="executed")
    differing = [u.response != u.command for t in by_expert for u in t.turns]
    assert 0.3 < np.mean(differing) < 0.7
    assert all(u.response == u.command for t in by_player for u in t.turns)
    played = [[u.command for u in t.turns] for t in by_expert]
    assert played == [[u.command for u in t.turns] for t in by_player]


def test_thoughts_come_before_the_command():
    turn = collect(thoughts=True)[0].turns[0]
    assert turn.response.startswith("<think>")
    projection = RENDERER.project(turn.response, [turn.command])
    assert (projection.command, projection.valid) == (turn.command, True)
    assert len(turn.action) > 8


def test_a_turned_thought_says_the_same_in_another_order():
    turns = [turn for t in collect((0.7, 0.7), "executed", thoughts=True) for turn in t.turns]
    for turn in turns:
        thought = turn.response.removeprefix("<think>").partition("</think>")[0]
        other = RENDERER.target(turn.command, turned(thought))
        assert list(turn.action) != list(other)
        # piece by piece the same: no word is spelled in letters because it stands elsewhere
        assert sorted(turn.action) == sorted(other)


def test_a_share_of_the_thoughts_is_turned():
    def share(turned):
        turns = [u for t in collect(thoughts=True, turned=turned) for u in t.turns]
        return np.mean([re.match("<think>[^.]*, so ", u.response) is not None for u in turns])

    assert (share(0), share(1)) == (0, 1)
    assert 0.15 < share(0.25) < 0.35


@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.2, 0.6)])
def test_demonstrations_are_a_function_of_the_generator_seed(noise):
    def commands(seed):
        return [[u.command for u in t.turns] for t in collect(noise, seed=seed)]

    assert commands(1) == commands(1)
    assert (commands(1) == commands(2)) == (noise == (0.0, 0.0))


def test_noise_needs_an_expert_that_can_be_disturbed():
    with pytest.raises(ValueError, match=r"demos\.noise=.* no `disturb`; set demos\.noise=0,0"):
        collect((0.0, 0.5), expert=Expert(scripted.act))
    assert all(t.success for t in collect(expert=Expert(scripted.act)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": (0.0, 1.5)}, r"noise=.* must lie in \[0, 1\]"),
        ({"noise": (0.5, 0.1)}, "the lower one first"),
        ({"noise": (0.5,)}, "two numbers"),
        ({"turned": 0.5}, "turned=0.5: there is no thought to turn"),
        ({"label": "player"}, "choose from expert, executed"),
        ({"absent": -0.1}, r"absent=-0\.1: must lie in \[0, 1\]"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        DemoConfig(**change)
    assert DemoConfig() == DemoConfig((0.0, 0.0), "expert", 0.3, False)
