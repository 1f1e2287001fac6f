"""Speed of the native household engine; run this file with `pytest -m bench -s`."""

import random
import time

import pytest

from atod_jax.envs.alfworld.engine import Engine
from atod_jax.envs.alfworld.games import read_games

pytestmark = pytest.mark.bench


def test_steps_per_second_of_random_play(data_dir):
    games = read_games(data_dir / "alfworld" / "games.jsonl.xz", planned_only=True)[::16]
    rng, steps, commands_seen = random.Random(0), 0, 0
    started = time.process_time()  # one thread; other load on the machine does not count
    for game in games:
        engine = Engine(game)
        _, commands = engine.reset()
        for _ in range(50):
            _, commands, _ = engine.step(rng.choice(commands))
            commands_seen += len(commands)
            steps += 1
    seconds = time.process_time() - started
    print(f"\n{len(games)} games, {commands_seen / steps:.1f} commands per state")
    print(f"{steps / seconds:,.0f} steps/s on one core, new engines included")
    assert steps == 50 * len(games)
