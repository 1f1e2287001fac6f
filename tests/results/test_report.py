"""The report: its numbers follow from the results, and the picture shows what is claimed."""

import dataclasses
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from atod_jax.records import CUT, SHORTENED
from atod_jax.results.intervals import EvalResult, wilson
from atod_jax.results.metrics import Writer, read_records
from atod_jax.results.provenance import config_digest, git_commit, package_versions, took
from atod_jax.results.report import curve_of, evaluation_table, warnings_of, write_report

TASKS = 40


def make_result(solved: int, temperature: float, *, tasks: int = TASKS) -> EvalResult:
    """The first `solved` tasks succeed; the first half of the tasks is of kind heat."""
    return EvalResult(
        temperature=temperature,
        task_ids=tuple(f"task-{i}" for i in range(tasks)),
        kinds=tuple("heat" if i < tasks // 2 else "pick" for i in range(tasks)),
        success=np.arange(tasks)[None] < solved,
        turns=np.where(np.arange(tasks)[None] < solved, 5, 20),
        score=np.float32(np.arange(tasks)[None] < solved),
        valid_rate=0.925,
    )


def make_evaluations(start: int, final: int, teacher: int, temperatures=(1.0, 0.4)):
    solved = {"start": start, "final": final, "teacher": teacher}
    return {r: {t: make_result(n, t) for t in temperatures} for r, n in solved.items()}


def report(folder, evaluations, **changes) -> str:
    arguments = {
        "title": "A run",
        "command": "python -m atod_jax.train --config=configs/quickstart.py",
        "evaluations": evaluations,
        "curve": [(0, wilson(2, 40)), (10, wilson(20, 40)), (20, wilson(30, 40))],
        "curve_temperature": 1.0,
        "settings": {"seed": 3, "device": "cpu"},
        "artifacts": {"transcripts": "transcripts/"},
    }
    return write_report(folder, **arguments | changes).read_text(encoding="utf-8")


def test_what_made_a_run_and_an_episode_to_read(tmp_path):
    steps = [
        {"step": s, "seconds/step": 30.0, "rollout/rows": 100.0, "rollout/action_tokens": 6.0}
        for s in range(4)
    ]
    assert took(steps) == {
        "training steps took": "2.0 min, 30.0 s each",
        "action tokens learnt from": "2,400, 20 per second",
    }
    assert took([{"step": 0, "eval/success": 0.5}]) == {}
    assert git_commit(tmp_path) == ""
    text = report(
        tmp_path, make_evaluations(2, 30, 20), chosen={"optim.lr": 1e-4},
        example="task <b>\n" * 100, picture="episode.png",
    )  # fmt: skip
    assert text.count("\n    task <b>") == 60
    assert "\n    …\n\n![The same episode, its tokens coloured](episode.png)\n" in text
    assert "| optim.lr | 0.0001 |" in text


def test_the_tables_hold_the_numbers(tmp_path):
    text = report(tmp_path, make_evaluations(start=2, final=30, teacher=20))
    # Wilson at 2, 30 and 20 of 40; heat are the first 20 tasks.
    assert (
        "| **all tasks** | 40 | 5.0 [1.4, 16.5] | 75.0 [59.8, 85.8] | 50.0 [35.2, 64.8] |" in text
    )
    assert "| heat | 20 | 10.0 [2.8, 30.1] | 100.0 [83.9, 100.0] | 100.0 [83.9, 100.0] |" in text
    assert "| pick | 20 | 0.0 [0.0, 16.1] | 50.0 [29.9, 70.1] | 0.0 [0.0, 16.1] |" in text
    assert "| turns per episode |  | 19.2 | 8.8 | 12.5 |" in text
    assert "| valid responses (%) |  | 92.5 | 92.5 | 92.5 |" in text
    assert text.count("| **all tasks** |") == 2


def test_differences_are_paired(tmp_path):
    """10 of 40 differences are 1: mean .25, standard error sqrt(.25 * .75 / 39) = .069338."""
    text = report(tmp_path, make_evaluations(start=2, final=30, teacher=20))
    assert "| after training - teacher | 1 | +25.0 [+11.4, +38.6] | yes |" in text
    assert "| after training - before training | 0.4 | +70.0 [+55.6, +84.4] | yes |" in text


@pytest.mark.parametrize(
    ("final", "teacher", "verdict"),
    [
        (30, 20, "above the teacher: +25.0"),
        (20, 30, "below the teacher: -25.0"),
        (21, 20, "not distinguishable from the teacher: +2.5"),
    ],
)
def test_the_first_lines_say_how_it_ended(tmp_path, final, teacher, verdict):
    text = report(tmp_path, make_evaluations(start=2, final=final, teacher=teacher))
    head = text.split("## Success")[0]
    assert f"The trained student is {verdict}" in head
    assert "**Temperature 1**, 40 tasks, % solved: 5.0 [1.4, 16.5] before training" in head


def test_a_run_without_teacher_is_compared_with_its_start(tmp_path):
    evaluations = make_evaluations(2, 30, 20)
    del evaluations["teacher"]
    text = report(tmp_path, evaluations)
    assert "teacher" not in text
    assert "| after training - before training | 1 | +70.0" in text


def test_settings_command_and_places_are_shown(tmp_path):
    text = report(tmp_path, make_evaluations(2, 30, 20), settings={"seed": 3, "odd": "a|b\nc"})
    assert "```\npython -m atod_jax.train --config=configs/quickstart.py\n```" in text
    assert "| seed | 3 |" in text
    assert "| odd | a\\|b c |" in text
    assert "| transcripts | transcripts/ |" in text


def colour_share(path, colour: str) -> float:
    """Share of the pixels that have exactly this colour."""
    image = np.rint(imread(path)[..., :3] * 255).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float(np.mean((image == wanted).all(-1)))


def test_the_picture_shows_student_teacher_and_start(tmp_path):
    report(tmp_path / "all", make_evaluations(2, 30, 20))
    picture = tmp_path / "all" / "success_curve.png"
    for colour in ("#0b5fa5", "#c2571a", "#7a7a7a"):
        assert colour_share(picture, colour) > 5e-4
    # At a temperature nobody else was evaluated at, the student stands alone.
    report(tmp_path / "alone", make_evaluations(2, 30, 20), curve_temperature=0.7)
    picture = tmp_path / "alone" / "success_curve.png"
    assert colour_share(picture, "#0b5fa5") > 5e-4
    assert colour_share(picture, "#c2571a") == 0


def test_without_a_curve_there_is_no_picture(tmp_path):
    assert "png" not in report(tmp_path, make_evaluations(2, 30, 20), curve=[])
    assert not (tmp_path / "success_curve.png").exists()


def test_a_single_point_can_be_drawn(tmp_path):
    report(tmp_path, make_evaluations(2, 30, 20), curve=[(0, wilson(1, 4))])
    assert (tmp_path / "success_curve.png").stat().st_size > 10_000


def test_the_curve_is_read_from_the_record(tmp_path):
    writer = Writer(tmp_path)
    for step in (0, 5):
        rate = wilson(step, 10)
        writer.scalars(step, {"loss/total": 1.0})
        writer.scalars(
            step,
            {
                "eval/success": rate.value,
                "eval/success_low": rate.low,
                "eval/success_high": rate.high,
            },
        )
    writer.close()
    assert curve_of(read_records(tmp_path)) == [(0, wilson(0, 10)), (5, wilson(5, 10))]


def test_roles_and_tasks_are_checked(tmp_path):
    evaluations = make_evaluations(2, 30, 20)
    with pytest.raises(ValueError, match="need 'start' and 'final'"):
        report(tmp_path, {"final": evaluations["final"]})
    with pytest.raises(ValueError, match=r"may have 'teacher', not .*'expert'"):
        report(tmp_path, evaluations | {"expert": evaluations["teacher"]})
    evaluations["teacher"] = {1.0: make_result(5, 1.0, tasks=20)}
    with pytest.raises(ValueError, match="on the same tasks"):
        report(tmp_path, evaluations)
    assert not (tmp_path / "report.md").exists()


def test_one_evaluation_makes_a_table():
    lines = evaluation_table({"T=1": make_result(30, 1.0)}).splitlines()
    assert lines[0] == "| task type | tasks | T=1 |"
    assert lines[2] == "| **all tasks** | 40 | 75.0 [59.8, 85.8] |"


def test_the_digest_names_the_config_whatever_its_order():
    config = {"b": {"y": 1, "x": 0.1}, "a": None}
    reordered = json.loads('{"a": null, "b": {"x": 0.1, "y": 1}}')
    assert config_digest(config) == config_digest(reordered)
    assert config_digest(config) != config_digest(config | {"a": 0})
    assert len(config_digest(config)) == 12


def test_versions_are_those_that_run():
    assert package_versions()["numpy"] == np.__version__


def test_graded_scores_several_tries_and_failures_have_rows_of_their_own():
    plain = make_result(10, 1.0)
    assert "score" not in evaluation_table({"a": plain})
    assert "could not be played" not in evaluation_table({"a": plain})
    rich = dataclasses.replace(
        plain,
        success=np.repeat(plain.success, 2, axis=0),
        turns=np.repeat(plain.turns, 2, axis=0),
        score=np.full((2, TASKS), 0.25, np.float32),
        failed=("task-3",),
    )
    table = evaluation_table({"a": rich})
    assert "| won at least once | 40 | 25.0" in table
    assert "in 2 tries" in table
    assert "| **score** | 40 | 25.0 [25.0, 25.0] |" in table
    assert "| score, heat | 20 | 25.0" in table
    assert "| could not be played (%) |  | 1.2 |" in table  # one of 80 episodes
    assert re.search(r"\*\*all tasks\*\* \| 40 \| 25\.0 \[.*\] \(1\.2 % not played\) \|", table)
    (said,) = warnings_of({"of a": dataclasses.replace(rich, valid_rate=1.0)})
    assert said.startswith("1.2 % of the episodes of a could not be played and count as not solved")


def with_stops(result, **stops):
    return dataclasses.replace(result, stops=stops)


def test_reasons_to_stop_have_rows():
    stopped = with_stops(make_result(10, 1.0), done=10, max_turns=28, prompt_too_long=2)
    table = evaluation_table({"a": stopped, "older": make_result(10, 1.0)})
    assert "| stopped by done (%) |  | 25.0 |  |" in table
    assert "| stopped by max_turns (%) |  | 70.0 |  |" in table
    assert "| stopped by prompt_too_long (%) |  | 5.0 |  |" in table
    assert "stopped by" not in evaluation_table({"older": make_result(10, 1.0)})


def test_many_prompts_that_are_too_long_are_warned_of(tmp_path):
    evaluations = make_evaluations(2, 30, 20)
    evaluations["start"][0.4] = with_stops(make_result(2, 0.4), done=2, prompt_too_long=38)
    evaluations["final"][0.4] = with_stops(make_result(30, 0.4), done=38, prompt_too_long=2)
    head = report(tmp_path, evaluations).split("## Success")[0]
    (warning,) = (line for line in head.splitlines() if line.startswith("**Warning:**"))
    assert "95.0 % of the episodes before training at temperature 0.4 stopped" in warning
    assert "sampling.prompt_buckets" in warning
    assert warnings_of({"a": make_result(2, 1.0)}) == []


def test_what_is_wrong_with_responses_has_rows_and_warnings():
    plain = make_result(10, 1.0)
    responses = int(plain.turns.sum())
    most = responses // 20  # 5 %
    few = {CUT: most, SHORTENED: most, "no action tags": most}
    bad = {CUT: most + 1, SHORTENED: most + 1, "no action tags": most, "not admissible": 1}
    results = {
        "few": dataclasses.replace(plain, problems=few),
        "bad": dataclasses.replace(plain, problems=bad),
        "older": plain,
    }
    table = evaluation_table(results)
    share = f"{100 * most / responses:.1f}"
    assert f"| responses: no action tags (%) |  | {share} | {share} | 0.0 |" in table
    assert "responses:" not in evaluation_table({"older": plain})
    assert warnings_of(results) == warnings_of({"bad": results["bad"]})
    lost, cut, invalid = warnings_of(results)
    assert "of the prompts bad were too long" in lost
    assert "raise sampling.max_new_tokens" in cut
    assert f"held no valid action (no action tags {share} %, not admissible" in invalid
