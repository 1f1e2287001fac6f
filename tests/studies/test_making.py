"""Runs of a study: made once each, in order, side by side; failures, interruptions, choices.

A stand-in takes the place of `train`: it writes the folder of a run, as its options say.
"""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from made_runs import make_run, result

from atod_jax import study
from atod_jax.results.lock import locked
from atod_jax.studies import making
from atod_jax.studies.finished import KEPT, Shelf
from atod_jax.studies.found import found_in
from atod_jax.studies.overview import overview, pooled
from atod_jax.studies.plan import Cell, Job, Setting, Study, to_make

STAND_IN = """
import json, os, signal, sys, time
sys.path[:0] = [{tests!r}, {repo!r}]
from made_runs import make_run
given = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
folder, word = given["workdir"], given["config"]
os.makedirs(os.path.dirname(folder), exist_ok=True)
signal.signal(signal.SIGTERM, lambda *a: (open(folder + ".saved", "w").close(), os._exit(143)))
with open(os.environ["TOLD"], "a") as file:
    file.write(json.dumps([word, given, os.environ["XLA_FLAGS"]]) + chr(10))
if word == "slow":
    time.sleep(60)
if word == "bad":
    sys.exit("error: it went wrong")
if not os.path.isfile(folder + "/run_config.json"):
    from pathlib import Path
    solved = float(given.get("config.solved", 0.5))
    make_run(Path(folder), seed=int(given.get("config.seed", 0)), solved=solved, algorithm=word)
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Stands in for train; returns what it was told so far: (config, flags, XLA flags)."""
    script, log = tmp_path / "train.py", tmp_path / "told"
    tests = Path(__file__).resolve().parents[1]
    script.write_text(STAND_IN.format(tests=str(tests), repo=str(tests.parent)))
    monkeypatch.setattr(making, "program", lambda name: (sys.executable, str(script)))
    monkeypatch.setattr(making, "POLL", 0.05)
    monkeypatch.setenv("TOLD", str(log))
    return lambda: [json.loads(x) for x in log.read_text().splitlines()] if log.exists() else []


def make(out, jobs, said=None, *, side_by_side, known=None):
    tell, shelf = str if said is None else said.append, Shelf(out, known)
    missing = to_make(jobs, is_found=shelf.__contains__, is_made=shelf.is_made)
    return making.make(shelf, missing, every=jobs, side_by_side=side_by_side, tell=tell)


def test_what_is_missing_is_made_once_and_the_best_value_is_taken(told, tmp_path):
    tried = [
        Job(f"lr-{rate:g}", "grpo", 0, {"optim.lr": rate, "solved": solved}, needs=("base",))
        for rate, solved in ((1e-4, 0.3), (5e-4, 0.6), (1e-3, 0.4))
    ]
    last = Job("s/run-0", "atod", 0, tuned={"optim.lr": tuple(job.name for job in tried)})
    jobs, said = [Job("base", "sft", 0), *tried, last], []
    assert make(tmp_path, jobs, said, side_by_side=2) == []
    order = [word for word, _, _ in told()]
    assert order == ["sft", "grpo", "grpo", "grpo", "atod"]
    assert told()[-1][1]["config.optim.lr"] == "0.0005"
    assert all(making.ALONE["XLA_FLAGS"] in flags for _, _, flags in told())
    assert said[-1] == "s/run-0 done, 5 of 5"
    assert make(tmp_path, jobs, said, side_by_side=2) == []
    assert len(told()) == 5


def test_the_best_value_is_that_of_the_mean_over_the_seeds_that_tried_it(told, tmp_path):
    tried = [
        Job(f"lr-{rate:g}-{seed}", "grpo", seed, {"optim.lr": rate, "solved": solved})
        for rate, both in ((1e-4, (0.2, 0.7)), (5e-4, (0.5, 0.6)))
        for seed, solved in enumerate(both)
    ]
    last = Job("s/run-0", "atod", 0, tuned={"optim.lr": tuple(job.name for job in tried)})
    make(tmp_path, [*tried, last], side_by_side=2)
    assert told()[-1][1]["config.optim.lr"] == "0.0005"


def test_what_a_run_from_the_same_models_has_evaluated_is_taken_over(told, tmp_path):
    jobs = [Job(f"s/{name}-0", "atod", 0, like=("s/a-0", "s/b-0")) for name in "ba"]
    make(tmp_path, jobs, side_by_side=1)
    first, second = (given.get("config.eval.known") for _, given, _ in told())
    assert first is None
    assert second == f"{tmp_path}/runs/s/b-0"


def test_a_failure_costs_only_what_needs_it(told, tmp_path):
    jobs = [Job("a", "bad", 0), Job("b", "atod", 0, needs=("a",)), Job("c", "atod", 0)]
    said = []
    assert make(tmp_path, jobs, said, side_by_side=1) == ["a", "b"]
    assert "3 runs to be made, 1 at a time" in said[0]
    assert "failed: a: error: it went wrong" in said[1]
    assert any(line.startswith("left out: b") for line in said)
    assert [word for word, _, _ in told()] == ["bad", "atod"]
    make(tmp_path, jobs, said, side_by_side=1)  # tried again
    assert [word for word, _, _ in told()] == ["bad", "atod", "bad"]


STUDY = """
from atod_jax.studies.plan import Cell, Job, Setting, Study
def get_study(arg=None):
    words = {"grpo": 0.3, "opd": 0.5, "atod": 0.7}
    jobs = tuple(
        Job(f"s/{w}-{seed}", arg or w, seed, {"solved": x + 0.02 * seed, "seed": seed})
        for w, x in words.items() for seed in (0, 1, 2)
    )
    cells = tuple(Cell("s", w, {seed: f"s/{w}-{seed}" for seed in (0, 1, 2)}) for w in words)
    pairs = (("atod", "opd"), ("atod", "teacher"))
    return Study("A study", "About it.", (Setting("s", "One student.", pairs),), jobs, cells)
"""


def test_a_study_ends_with_tables_of_both_doubts_and_a_page(told, tmp_path, capsys):
    (tmp_path / "three.py").write_text(STUDY)
    arguments = [f"--config={tmp_path / 'three.py'}", f"--out={tmp_path / 'out'}"]
    study.main([*arguments, "--plan"])
    shown = capsys.readouterr()
    assert shown.out.count("python -m atod_jax.train --config=") == 9
    assert "16.3 points with 3 seeds" in shown.err
    assert told() == []
    study.main([*arguments, "--only=*-0,*-2", "--jobs=3"])
    page = (tmp_path / "out" / "study.md").read_text()
    assert "6 of 9 runs are finished." in page
    study.main(arguments)
    page = (tmp_path / "out" / "study.md").read_text()
    assert "| atod | 72.5 [" in page
    assert "| 70.0 / 72.5 / 75.0 |" in page
    assert "| atod - opd | +20.0 [" in page
    assert "| atod - teacher | +22.5 [" in page
    assert "| *teacher* | 50.0 [" in page
    assert "{+20.0, +20.0}" in page  # the same for every seed
    sign = next(line for line in page.splitlines() if line.startswith("| success in training |"))
    assert sign == "| success in training | +1.00 (9) |"
    for name in ("s.png", "study.html"):
        assert (tmp_path / "out" / name).stat().st_size > 5000
    assert len(told()) == 9


def test_what_was_made_in_another_way_is_not_taken_for_this_study(told, tmp_path, capsys):
    arguments = [f"--config={tmp_path / 'three.py'}", f"--out={tmp_path / 'out'}"]
    (tmp_path / "three.py").write_text(STUDY)
    study.main(arguments)
    shutil.rmtree(tmp_path / "out/runs/s/opd-2")  # made again
    study.main(arguments)
    assert len(told()) == 10
    (tmp_path / "four.py").write_text(STUDY.replace('"opd": 0.5', '"opd": 0.6'))
    with pytest.raises(SystemExit):
        study.main([f"--config={tmp_path / 'four.py'}", arguments[1]])
    words = "s/opd-0 was made with --config.solved=0.5, the study now has --config.solved=0.6: "
    assert words in (err := capsys.readouterr().err)
    assert "(use another --out, or remove it)" in err
    known = f"--known={tmp_path / 'out' / KEPT}"
    study.main([f"--config={tmp_path / 'four.py'}", f"--out={tmp_path / 'new'}", known])
    assert f"not taken over from {tmp_path / 'out' / KEPT}: {words[:-2]}; so for 2 more" in (
        capsys.readouterr().err
    )
    assert {given["config.solved"] for _, given, _ in told()[10:]} == {"0.6", "0.62", "0.64"}


def test_what_began_from_another_model_is_not_taken(told, tmp_path):
    """Though that has been made again as it should be, or is known from elsewhere."""
    old, new = (
        [Job("models/a-0", "sft", 0, {"size": size}),
         Job("s/x-0", "atod", 0, needs=("models/a-0",)),
         Job("s/signals", "told", 0, needs=("s/x-0",))]
        for size in (5, 7)
    )  # fmt: skip
    make(tmp_path, old, side_by_side=1)
    assert making.require_own(Shelf(tmp_path), old) == []
    with pytest.raises(ValueError, match=r"models/a-0 was made with .*size=5, .* now has .*size=7"):
        making.require_own(Shelf(tmp_path), new)
    shutil.rmtree(tmp_path / "runs/models")
    make(tmp_path, new[:1], side_by_side=1)
    with pytest.raises(
        ValueError, match=r"x-0 began from models/a-0, which was made with .*size=5"
    ):
        making.require_own(Shelf(tmp_path), new)
    other = Shelf(tmp_path / "new", tmp_path / KEPT)
    assert [line.split(" began from models/a-0")[0] for line in making.require_own(other, new)] == [
        "s/x-0", "s/signals",
    ]  # fmt: skip
    assert "models/a-0" in other
    assert "s/x-0" not in other
    known = shutil.copy(tmp_path / KEPT, tmp_path / "known")
    make(tmp_path / "third", old[:1], side_by_side=1)
    with pytest.raises(ValueError, match=r"third/runs/models/a-0 \(use another --out"):
        making.require_own(Shelf(tmp_path / "third", Path(known)), new)


def test_what_was_made_without_a_sweep_is_not_taken_for_tuned(told, tmp_path):
    """Though the sweep has not been made."""
    plain = Job("s/x-0", "atod", 0)
    make(tmp_path, [plain], side_by_side=1)
    tried = [Job(f"lr-{rate:g}", "grpo", 0, {"optim.lr": rate}) for rate in (1e-4, 1e-3)]
    tuned = Job("s/x-0", "atod", 0, tuned={"optim.lr": tuple(job.name for job in tried)})
    with pytest.raises(ValueError, match=r"x-0 was made with nothing.* now has --config.optim.lr"):
        making.require_own(Shelf(tmp_path), [*tried, tuned])
    shutil.rmtree(tmp_path / "runs")
    make(tmp_path, [*tried, tuned], side_by_side=1)
    shutil.rmtree(tmp_path / "runs" / "lr-0.0001")
    making.require_own(Shelf(tmp_path), [*tried, tuned])
    taken = Shelf(tmp_path).mark("s/x-0").arguments
    other = Job("s/x-1", "atod", 1, {"optim.lr": 1e-3 if "0.0001" in taken[-1] else 1e-4})
    make(tmp_path, [other], side_by_side=1)
    both = [*tried, tuned, Job("s/x-1", "atod", 1, tuned=tuned.tuned)]
    with pytest.raises(ValueError, match=r"s/x-1 was made with --config.optim.lr"):
        making.require_own(Shelf(tmp_path), both)  # one of each value


def test_a_study_goes_on_from_what_another_one_kept(told, tmp_path, capsys):
    (tmp_path / "three.py").write_text(STUDY)
    there, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    config = f"--config={tmp_path / 'three.py'}"
    study.main([config, f"--out={there}", "--only=*-0,*-2"])
    metrics = there / "runs/s/atod-0/metrics.jsonl"  # steps whose loss was not finite
    lost = '"loss/total": null, "kl/verb": 2'
    metrics.write_text(metrics.read_text().replace(lost.replace("null", "1.0"), lost))
    study.main([config, f"--out={there}", "--report"])
    kept = shutil.copy(there / KEPT, tmp_path)
    there.rename(tmp_path / "gone")
    again = [config, f"--out={elsewhere}", f"--known={kept}"]
    study.main([*again, "--report"])
    page = (tmp_path / "gone/study.md").read_text()
    assert (elsewhere / "study.md").read_text() == page
    assert "6 of 9 runs are finished." in page
    study.main(again)
    made = {given["workdir"] for _, given, _ in told()[6:]}
    assert made == {f"{elsewhere}/runs/s/{word}-1" for word in ("grpo", "opd", "atod")}
    assert "runs are finished" not in (elsewhere / "study.md").read_text()
    assert "Before training not all" not in (elsewhere / "study.md").read_text()
    shelves = Shelf(tmp_path / "gone"), Shelf(tmp_path, elsewhere / KEPT)
    whole, known = (shelf.get("s/opd-2") for shelf in shelves)
    assert known.run.results["final"][1.0].to_json() == whole.run.results["final"][1.0].to_json()
    assert known.rate == whole.rate == pytest.approx(0.55)
    curves = [[point.value for _, point in found.run.curve] for found in (known, whole)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)  # kept to six digits


def test_what_was_kept_stays_kept(tmp_path):
    finished(tmp_path, "s/x-0").keep(["s/x-0"])
    shutil.rmtree(tmp_path / "runs/s/x-0")
    finished(tmp_path, "s/x-1").keep(["s/x-1"])
    shelf = Shelf(tmp_path / "new", tmp_path / KEPT)
    assert all(name in shelf for name in ("s/x-0", "s/x-1"))
    assert shelf.get("s/x-0").run.results


def finished(out, name):
    make_run(out / "runs" / name)
    shelf = Shelf(out)
    shelf.put(name, ["--config=atod"], seconds=1, needs=())
    return shelf


def of_line(change):
    """Damages one line of the results."""

    def damage(content):
        lines = [json.loads(line) for line in lzma.decompress(content).splitlines()]
        lines[-1] |= change
        return lzma.compress("".join(json.dumps(line) + "\n" for line in lines).encode())

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x[:-20],
        lambda x: b"",
        lambda x: b"[]",
        lambda x: lzma.compress(b"[" * 100_000),
        *(of_line({key: wrong})
          for key, wrong in (("results", [1]), ("metrics", 5), ("metrics", [1]), ("tables", 5),
                             ("metrics", [{"step": 1, "kl/verb": "x"}]), ("needs", [1]),
                             ("arguments", "abc"), ("arguments", None), ("seconds", None))),
    ],
)  # fmt: skip
def test_results_that_are_damaged_are_not_taken(tmp_path, capsys, damage):
    (tmp_path / "three.py").write_text(STUDY)
    finished(tmp_path, "s/x-0").keep(["s/x-0"])
    (tmp_path / KEPT).write_bytes(damage((tmp_path / KEPT).read_bytes()))
    with pytest.raises(SystemExit):
        study.main([f"--config={tmp_path / 'three.py'}", f"--known={tmp_path / KEPT}", "--plan"])
    assert "holds no results of a study, or half of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # before anything is made
        study.main([f"--config={tmp_path / 'three.py'}", f"--out={tmp_path}"])
    assert "holds no results of a study, or half of them" in capsys.readouterr().err


def test_runs_on_other_tasks_are_not_compared(told, tmp_path, capsys):
    (tmp_path / "three.py").write_text(STUDY)
    arguments = [f"--config={tmp_path / 'three.py'}", f"--out={tmp_path / 'out'}"]
    study.main(arguments)
    for role in ("start", "final", "teacher"):
        path = tmp_path / f"out/runs/s/opd-1/evaluations/{role}-T1.json"
        path.write_text(json.dumps(result(0.55, 1.0, 40, "other-").to_json()))
    with pytest.raises(SystemExit):
        study.main([*arguments, "--report"])
    assert "s/opd-1 were evaluated on other tasks" in capsys.readouterr().err


@pytest.mark.parametrize("mark", ["{}", '{"arguments": null, "seconds": 1}', "["])
def test_a_damaged_mark_is_one_line(tmp_path, capsys, mark):
    (tmp_path / "three.py").write_text(STUDY)
    finished(tmp_path / "out", "s/opd-0")
    (tmp_path / "out/runs/s/opd-0/study.json").write_text(mark)
    with pytest.raises(SystemExit):
        study.main([f"--config={tmp_path / 'three.py'}", f"--out={tmp_path / 'out'}", "--plan"])
    assert "remove that folder, and the run is made again" in capsys.readouterr().err


def test_a_model_that_is_gone_is_made_again_for_those_who_start_from_it(told, tmp_path):
    jobs = [Job("models/a-0", "sft", 0), Job("s/x-0", "atod", 0, needs=("models/a-0",)),
            Job("s/y-0", "opd", 0, needs=("models/a-0",))]  # fmt: skip
    make(tmp_path, jobs[:2], side_by_side=1)
    make(tmp_path / "new", jobs, side_by_side=1, known=tmp_path / KEPT)
    assert [word for word, _, _ in told()] == ["sft", "atod", "sft", "opd"]


def test_a_run_without_an_evaluation_at_its_end_is_told(told, tmp_path):
    (tmp_path / "three.py").write_text(STUDY)
    arguments = [f"--config={tmp_path / 'three.py'}", f"--out={tmp_path / 'out'}"]
    study.main(arguments)
    (tmp_path / "out/runs/s/opd-1/evaluations/final-T1.json").unlink()
    study.main([*arguments, "--report"])
    words = "Without an evaluation at the end, and so in no table: opd, seed 1."
    assert words in (tmp_path / "out/study.md").read_text()


def test_differences_are_pooled_over_settings_and_seeds_and_a_row_compares_the_same_seeds(tmp_path):
    solved = {
        "a/atod-0": 0.5, "a/opd-0": 0.4, "a/atod-1": 0.6, "a/opd-1": 0.4, "a/grpo-0": 0.3,
        "b/atod-0": 0.8, "b/opd-0": 0.5, "b/atod-1": 0.9,
    }  # fmt: skip
    shelf = Shelf(tmp_path)
    for name, share in solved.items():
        make_run(shelf.folder(name), solved=share)
        shelf.put(name, ["--config=x"], seconds=1, needs=())
    settings = tuple(Setting(name, "About.", (("atod", "opd"),)) for name in "ab")
    cells = tuple(
        Cell(setting, method, {int(n[-1]): n for n in solved if n[:-2] == f"{setting}/{method}"})
        for setting in "ab" for method in ("atod", "opd", "grpo")
    )  # fmt: skip
    jobs = tuple(Job(name, "x", int(name[-1])) for name in solved)
    about = Study("t", "a", settings, jobs, cells, pooled=("a", "b"))
    every = {name: found_in(about, name, shelf) for name in "ab"}
    text = pooled(about, every)
    # +10, +20 and +30 points: 4.303 standard errors of 10 / sqrt(3) each way; b/1 has no pair
    assert text.splitlines()[-1] == "| atod - opd | +20.0 {-4.8, +44.8} (3) |"
    rows = [line.split(" | ") for line in overview(about, every).splitlines()[-3:]]
    assert [[row[0], row[1], *row[4:]] for row in rows] == [
        ["| a", "2", "55.0", "40.0", " |"], ["| a", "1", "50.0", "40.0", "30.0 |"],
        ["| b", "1", "80.0", "50.0", " |"],
    ]  # fmt: skip


def test_methods_that_began_with_other_models_are_told(told, tmp_path):
    (tmp_path / "three.py").write_text(STUDY)
    arguments = [f"--config={tmp_path / 'three.py'}", f"--out={tmp_path / 'out'}"]
    study.main(arguments)
    path = tmp_path / "out/runs/s/opd-1/evaluations/teacher-T1.json"
    path.write_text(json.dumps(result(0.55, 1.0, 40, "task-").to_json()))
    study.main([*arguments, "--report"])
    words = "Before training not all methods of seed 1 solved the same tasks"
    assert words in (tmp_path / "out/study.md").read_text()


def test_two_studies_share_the_work_in_one_folder(told, tmp_path):
    (tmp_path / "three.py").write_text(STUDY)
    (tmp_path / "out/runs/s/opd-1").mkdir(parents=True)
    code = textwrap.dedent(f"""
        from atod_jax import study
        from atod_jax.studies import making
        making.program, making.POLL = lambda name: {making.program("train")!r}, 0.05
        study.main(["--config={tmp_path}/three.py", "--out={tmp_path}/out", "--jobs=2"])
    """)
    start = [sys.executable, "-c", code]
    with locked(tmp_path / "out/runs/s/opd-1"):  # a run whose study was killed
        both = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        while len(told()) < 8:
            time.sleep(0.05)
        time.sleep(0.5)
        assert len(told()) == 8
    said = "".join(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert len(told()) == said.count(" done, ") == 9
    page = (tmp_path / "out" / "study.md").read_text()
    assert "runs are finished" not in page  # all are


def test_a_study_has_a_folder_named_after_it(told, tmp_path, monkeypatch, capsys):
    (tmp_path / "three.py").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    study.main(["--config=three.py:opd", "--plan"])
    assert "--workdir=runs/three-opd/runs/s/grpo-0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only=*-7"], "'*-7' is the name of no run of the study, such as s/grpo-0"),
        (["--out=/a,b"], "--out=/a,b: a comma there cannot be written in a config's variant"),
        ([f"--out={__file__}"], "is a file; name a folder"),
        (["--known=/no/file"], "No such file or directory: '/no/file'"),
        (["--jobs=0"], "--jobs=0: give at least 1"),
        (["--config=household"], "the file defines no get_study()"),
        (["--config=nothing.py"], "no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, arguments, words):
    (tmp_path / "three.py").write_text(STUDY)
    with pytest.raises(SystemExit) as ended:
        study.main([f"--config={tmp_path / 'three.py'}", f"--out={tmp_path}", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_reaches_the_runs_once(told, tmp_path, number):
    (tmp_path / "three.py").write_text(STUDY)
    code = textwrap.dedent(f"""
        import signal, sys
        sys.argv = ["-m"]  # as `python -m` begins
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup pytest` ignores
        from atod_jax import study
        from atod_jax.studies import making
        making.program = lambda name: {making.program("train")!r}
        study.main(["--config={tmp_path}/three.py:slow", "--out={tmp_path}/out", "--jobs=2"])
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while len(told()) < 2:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert len(list((tmp_path / "out" / "runs" / "s").glob("*.saved"))) == 2
