"""Playing in the terminal: the prompts of a model, typed answers, baseline players."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from runs import typed

from atod_jax import config, evaluate, play
from atod_jax.envs import alfworld, searchqa
from atod_jax.envs.base import Episode, Observation, Projection, StepResult
from atod_jax.records import SHORTENED, StopReason
from atod_jax.run import cli, person
from configs import household

REPO = Path(__file__).resolve().parents[1]


def small_config(**changes):
    c = household.games(config.base())
    return typed(c, **changes)


def typing(monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def solution(number):
    cfg = alfworld.Config()
    task = alfworld.tasks(cfg, "valid_unseen")[number]
    return task, alfworld.demonstration(cfg, task, 20)


@pytest.mark.parametrize("template", ["paper", "compact"])
@pytest.mark.parametrize("typed_as", ["commands", "responses"])
def test_a_person_wins_by_typing(monkeypatch, capsys, template, typed_as):
    task, commands = solution(3)
    respond = alfworld.TEMPLATES[template].respond
    lines = [respond(c, "so be it").replace("\n", " ") for c in commands]
    typing(monkeypatch, *(commands if typed_as == "commands" else lines))
    (outcome,) = play.play(small_config(**{"env.template": template}), "human", first=3)
    assert (outcome.task.id, outcome.won) == (task.id, True)
    assert outcome.turns == outcome.valid == len(commands)
    shown = capsys.readouterr().out
    assert f"command: {commands[0]}\n" in shown
    assert f"reward 10\nwon in {len(commands)} turns\n" in shown
    assert "| **all tasks** | 1 | 100.0 [" in shown


@pytest.mark.parametrize("template", ["paper", "compact"])
def test_the_prompts_are_those_of_a_model(monkeypatch, capsys, template):
    task, commands = solution(0)
    typing(monkeypatch, *(line for command in commands for line in ("", command)))
    play.play(small_config(**{"env.template": template}), "human")
    shown = capsys.readouterr().out
    env, past = alfworld.make(alfworld.Config()), ()
    current = env.reset(task)
    for command in commands:
        prompt = alfworld.TEMPLATES[template].prompt(Episode(past, current), 2)
        assert f"\n{prompt}\n" in shown
        past = (*past, (current.text, command))
        current = env.step(command).observation


def test_numbers_choose_and_nothing_is_shown_twice(monkeypatch, capsys):
    task, commands = solution(3)
    env = alfworld.make(alfworld.Config())
    offers, shown, numbers = env.reset(task).commands, [], []
    for command in commands:
        numbers.append(offers.index(command) + 1)
        observation = env.step(command).observation
        offers, shown = observation.commands, [*shown, observation.text]
    typing(monkeypatch, "0", "999", *numbers)  # numbers that are not there cost no turn
    (outcome,) = play.play(small_config(), "human", first=3)
    assert (outcome.won, outcome.turns) == (True, len(commands))
    said = capsys.readouterr().out
    assert all(said.count(text) == shown.count(text) for text in set(shown))
    assert f"[{numbers[0]}] {commands[0]}" in said


def test_what_is_no_number_of_a_command_is_taken_as_it_is():
    commands = ["a", "b", "7"]
    typed = ["2", "7", "0", "4", "b", "two", "9" * 5000]
    assert [person.chosen(t, commands) for t in typed] == [
        "b",
        "7",
        "0",
        "4",
        "b",
        "two",
        typed[-1],
    ]
    shop = Observation("", ("search[<your query>]", "click[buy now]"))
    assert person.offered(Episode((), shop)) == ["click[buy now]"]


def test_a_lost_question_tells_its_answer_and_ctrl_c_is_polite(monkeypatch, capsys):
    cfg = typed(config.load("searchqa:smoke"))
    split = cfg.eval.split
    question = searchqa.tasks(searchqa.Config(), split)[0].payload
    lines = iter(["<search>Karin</search>", "answer a wrong one"])

    def ask(prompt):
        for line in lines:
            return line
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", ask)
    (outcome,) = play.play(cfg, "human", games=2)
    said = capsys.readouterr().out
    assert (outcome.won, outcome.turns, outcome.valid) == (False, 2, 2)
    assert f"right would have been: {' or '.join(question.answers)}\n" in said
    assert "\nstopped: this game is not counted\n" in said


def test_a_bad_response_is_said_to_be_one_and_costs_a_turn(monkeypatch, capsys):
    typing(monkeypatch, "<action>look", "look")
    cfg = small_config(**{"env.template": "paper", "env.max_turns": 2})
    (outcome,) = play.play(cfg, "human")
    assert (outcome.won, outcome.turns, outcome.valid) == (False, 2, 1)
    shown = capsys.readouterr().out
    assert "command: <action>look  (not a valid response): no action tags\n" in shown
    assert "not won in 2 turns" in shown


def test_leaving_early_counts_the_finished_games_only(monkeypatch, capsys):
    _, commands = solution(0)
    typing(monkeypatch, *commands, "look")
    outcomes = play.play(small_config(), "human", games=3)
    assert [o.won for o in outcomes] == [True]
    shown = capsys.readouterr().out
    assert "=== game 2 of 3: " in shown
    assert "this game is not counted" in shown


def test_the_scripted_players_calibrate_the_games(capsys):
    expert = play.play(small_config(), "expert", games=24)
    assert all(o.won and o.turns <= 20 for o in expert)
    random = play.play(small_config(), "random", games=24)
    assert random == play.play(small_config(), "random", games=24)
    assert sum(o.won for o in random) < len(random) == 24
    shown = capsys.readouterr().out
    assert "valid_unseen: 24 tasks from number 0" in shown
    assert "| pick_two_obj_and_place | 4 | 100.0 [" in shown
    assert "| valid responses (%) |  | 100.0 |" in shown


def test_games_beyond_the_split_are_refused_and_its_end_ends_the_session():
    assert len(play.play(small_config(), "expert", games=5, first=2046)) == 2
    with pytest.raises(ValueError, match="--first=2048: valid_unseen has the games 0 to 2047"):
        play.play(small_config(), "expert", first=2048)


def test_an_unknown_template_is_named():
    with pytest.raises(ValueError, match=r"env\.template='long': the environment has paper, com"):
        play.play(small_config(**{"env.template": "long"}), "expert")


def test_a_model_is_shown_and_plays_as_in_an_evaluation(capsys):
    changes = {"student.path": "household/student-thoughts", "env.max_turns": 3}
    changes |= {"eval.temperatures": (1.0,), "eval.final_tasks": 3, "sampling.max_new_tokens": 12}
    cfg = small_config(**changes)
    (evaluated,) = evaluate.evaluate(cfg, "", "").values()
    capsys.readouterr()
    outcomes = play.play(cfg, "model", games=2, first=1)
    assert [o.turns for o in outcomes] == evaluated.turns[0, 1:].tolist()
    assert [o.won for o in outcomes] == evaluated.success[0, 1:].tolist()
    played = play.play(cfg, "model", games=3)
    assert play.summarize(played).problems == evaluated.problems
    assert play.summarize(played).stops == evaluated.stops
    assert evaluated.problems["cut by the token limit"] > 0
    shown = capsys.readouterr().out
    assert f"--- turn 1\n\n{prompt_of(cfg, 1)}\n" in shown
    assert "\nanswer: " in shown
    assert "(cut by the token limit)" in shown
    assert "of the responses of the model were cut by the token limit; raise sampling.max" in shown


def test_a_prompt_that_does_not_fit_ends_the_game(capsys):
    changes = {"student.path": "household/student", "sampling.prompt_buckets": (16,)}
    (outcome,) = play.play(small_config(**changes), "model")
    assert (outcome.turns, outcome.stop) == (0, StopReason.prompt_too_long)
    assert (
        "100.0 % of the episodes of the model stopped because the prompt" in capsys.readouterr().out
    )


def test_a_prompt_that_loses_its_beginning_is_told_of(capsys, monkeypatch):
    """As Search-QA's `paper` prompts do, whose passages may be long."""
    cutting = alfworld.TEMPLATES["compact"]._replace(cut_left=True)
    monkeypatch.setitem(alfworld.TEMPLATES, "compact", cutting)
    changes = {"student.path": "household/student", "sampling.prompt_buckets": (16,)}
    cfg = small_config(**changes, **{"env.max_turns": 2})
    (outcome,) = play.play(cfg, "model")
    assert (outcome.turns, outcome.problems.count(SHORTENED)) == (2, 2)
    shown = capsys.readouterr().out
    assert f"{SHORTENED})" in shown
    assert "100.0 % of the prompts of the model were too long" in shown


def prompt_of(cfg, number):
    task, _ = solution(number)
    shown = alfworld.make(alfworld.Config()).reset(task)
    return alfworld.TEMPLATES[cfg.env.template].prompt(Episode((), shown), cfg.env.history)


# -------------------------------------------------------------------------------- the command line


def test_the_config_of_an_environment_is_found():
    def of(*arguments):
        return cli.parse(play.PROGRAM, arguments)[1]

    assert of("--config=configs/household.py", "--env=webshop").env.template == "compact"
    shipped = config.resolve(config.load("alfworld"))
    for arguments in (["--env", "alfworld"], ["--env=alfworld"], []):
        assert of(*arguments) == shipped
    assert of("--config.seed=1").seed == 1
    with pytest.raises(ValueError, match=r"env\.name='chess': there is none.*choose from alfworld"):
        of("--env=chess")


def run(*arguments, typed=""):
    command = [sys.executable, "-m", "atod_jax.play", *arguments]
    return subprocess.run(
        command, cwd=REPO, input=typed, capture_output=True, text=True, timeout=90
    )


def test_the_program_reads_what_is_piped_into_it():
    _, commands = solution(0)
    done = run(
        "--env", "alfworld", "--games=1", "--config.eval.split=valid_unseen",
        typed="\n".join(commands),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "reward 10\nwon in " in done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--player=nobody", "argument --player: invalid choice: 'nobody'"),
        (
            "--config.env.alfworld.engine=unity",
            "env.alfworld.engine='unity': choose from",
        ),
        ("--config.eval.split=test", "split 'test' is unknown; use one of train, valid_seen"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(argument, message):
    done = run("--env=alfworld", argument)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_terminal_obeys_nobody(capsys):
    """Neither an environment nor a model moves the cursor, and a page of it is enough."""
    evil = "\x1b[2J\x9b1m" + "x" * 200_000
    result = StepResult(Observation(evil), 0.0, False, False)
    play._tell(Projection(evil, False, "odd"), result, last=True)
    said = capsys.readouterr().out
    assert "\\x1b[2J" in said
    assert not {"\x1b", "\x9b"} & set(said)
    assert len(said) < 50_000
