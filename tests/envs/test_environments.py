"""What every environment promises, whichever it is."""

import dataclasses
import functools
import math
import pickle

import pytest

from atod_jax.envs import alfworld, searchqa, webshop
from atod_jax.envs.base import Episode
from atod_jax.options import plugins, tree

SHIPPED = {module.__name__: module.ENVIRONMENT for module in (alfworld, webshop, searchqa)}


@pytest.fixture(params=SHIPPED.values(), ids=SHIPPED)
def environment(request):
    return request.param


def test_all_of_them_are_found_by_name():
    names = {name.rpartition(".")[2]: environment for name, environment in SHIPPED.items()}
    assert plugins.shipped(plugins.ENVIRONMENTS) == names


def test_every_option_says_what_it_means(environment):
    for leaf in tree.leaves(environment.Config()):
        assert leaf.about.meaning, leaf.path


def test_only_where_things_are_may_change_when_a_run_goes_on(environment):
    free = [leaf.path for leaf in tree.leaves(environment.Config()) if not leaf.about.pins]
    assert free == (["retriever"] if environment is searchqa.ENVIRONMENT else [])


def test_a_config_is_frozen_and_checked(environment):
    cfg = environment.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.seed = 1
    with pytest.raises(ValueError, match="seed=-1: must be a seed"):
        dataclasses.replace(cfg, seed=-1)
    with pytest.raises(ValueError, match="win_reward=inf: must be a finite number"):
        dataclasses.replace(cfg, win_reward=math.inf)


def test_a_demonstration_wins_and_the_expert_plays_from_what_is_shown(environment):
    cfg = environment.Config()
    task = environment.tasks(cfg, environment.splits[-1])[0]
    commands = environment.demonstration(cfg, task, 20)
    assert 0 < len(commands) <= 20
    env = environment.make(cfg, 20)
    shown, past = env.reset(task), ()
    for command in commands:
        episode = Episode(past, shown)
        assert environment.expert.act(episode) == command
        assert environment.expert.thought(episode, command)
        for template in environment.templates.values():
            response = template.respond(command, "so")
            assert template.project(response, shown.commands).command == command
        result, past = env.step(command), (*past, (shown.text, command))
        shown = result.observation
    assert (result.done, result.won, result.reward) == (True, True, cfg.win_reward)
    assert environment.demonstration(cfg, task, len(commands) - 1) == ()


def test_a_player_travels_to_a_worker_process(environment):
    make = functools.partial(environment.make, environment.Config(), 5)
    assert type(pickle.loads(pickle.dumps(make))()) is type(make())
