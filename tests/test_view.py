"""The page of runs: what is in it, what is left out, and what a browser makes of it."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run
from runs import page_content

from atod_jax.records import Instead, Speller, StopReason, Task, Trace, Trajectory, Turn
from atod_jax.results.page import Batch, write_page
from atod_jax.results.runs import RunRecord
from atod_jax.results.transcripts import records, write_records, write_transcripts
from atod_jax.view import main

HOSTILE = (
    "</script><img src=x onerror=\"document.body.dataset.hacked='1'\"><b>bold</b>"
    "\x1b[31m\u2028\x85\u202e\ud83d"
)
SPELLER = Speller(
    lambda ids: f"prompt of {len(ids)} {HOSTILE}", lambda ids: [f" w{i}" for i in ids]
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def make_episode(name: str, *, success: bool, turns: int = 3) -> Trajectory:
    def turn(k: int) -> Turn:
        return Turn(
            prompt=np.arange(5 + k, dtype=np.int32), action=np.arange(4, dtype=np.int32),
            logp=np.float32([-0.1, -0.2, -0.3, -0.4]), observation=f"room {k} {HOSTILE}",
            response=HOSTILE, command="look", valid=k != 1, reward=0.0,
            problem="not admissible" if k == 1 else "",
        )  # fmt: skip

    stop = StopReason.done if success else StopReason.max_turns
    task = Task(id=name, kind="pick", payload=None)
    return Trajectory(task, 0, tuple(map(turn, range(turns))), success, stop)


def _saying(turn: Turn, command: str) -> Turn:
    return dataclasses.replace(turn, command=command)


def make_trace(episode: Trajectory) -> Trace:
    """The teacher's part of a token's advantage is 1, the reward's part -0.25."""
    turns = len(episode.turns)
    streams = {
        "student": [-0.2] * 4, "teacher": [-1.2, -0.1, -0.2, -0.2], "entropy": [1.5] * 4,
        "advantage": [0.75] * 4, "distill": [1.0] * 4,
    }  # fmt: skip
    return Trace(
        {"d": [0.1 * (k + 1) for k in range(turns)], "h": [0.5] * turns, "w": [1.0] * turns},
        {name: [np.float32(values)] * turns for name, values in streams.items()},
        [[Instead(0, ((7, -0.5), (8, -1.5)))]] * turns,
    )


def fill(folder: Path, *, steps=(0, 10), tasks: int = 6) -> None:
    """Gives a run episodes: two a step while training, `tasks` before and after."""
    episodes = [make_episode("t-0", success=False), make_episode("t-1", success=True)]
    for step in steps:
        traces = [make_trace(e) for e in episodes]
        write_transcripts(folder, step, "train", episodes=episodes, traces=traces, speller=SPELLER)
        table = json.dumps({"gap": [0.5, None, 0.25], "turns": [2, 0, 2]})
        (folder / "transcripts" / f"{step:06d}-turns.json").write_text(table)
    for role in ("start", "final"):
        played = [make_episode(f"t-{i}", success=i % 2 == 0) for i in range(tasks)]
        write_records(
            folder / "evaluations" / f"{role}-T1.jsonl.gz", records(played, None, SPELLER)
        )


def test_a_page_holds_curves_and_episodes(tmp_path, capsys):
    folder = Path(make_run(tmp_path / "a"))
    fill(folder)
    main([str(folder)])
    assert re.fullmatch(r".*run\.html: 16 episodes, 0\.\d MB\n", capsys.readouterr().out)
    data = page_content(folder / "run.html")
    (run,) = data["runs"]
    assert run["curve"][1] == pytest.approx([10, 0.7 / 3, 0.7 / 6, 1.4 / 3])
    assert run["teacher"] == 0.5
    assert run["metrics"]["kl/verb"][:2] == [[0, 30.0], [1, 29.0]]
    assert "rollout/mixed_groups" not in run["metrics"]
    assert run["gaps"] == [[0, [0.5, None, 0.25]], [10, [0.5, None, 0.25]]]
    assert run["results"][0]["after"].startswith("70.0 [")
    assert [e["set"] for e in data["episodes"]] == ["train"] * 4 + ["final at T=1"] * 6 + [
        "start at T=1"
    ] * 6
    assert data["episodes"][0]["turns"][0]["instead"] == [[0, [[" w7", -0.5], [" w8", -1.5]]]]
    assert len({e["id"] for e in data["episodes"]}) == 16


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / name) for name in "ab"]
    main([*folders, f"--out={tmp_path / 'p.html'}"])
    names = [run["name"] for run in page_content(tmp_path / "p.html")["runs"]]
    assert names == ["atod, a", "atod, b"]


def test_what_is_left_out_is_said(tmp_path, capsys):
    folder = Path(make_run(tmp_path / "a"))
    fill(folder, steps=range(0, 80, 10))
    main([str(folder), "--most=10", f"--out={tmp_path / 'p.html'}"])
    assert "10 episodes, 18 left out (--most=10)" in capsys.readouterr().out
    data = page_content(tmp_path / "p.html")
    assert data["note"].startswith("10 episodes; 18 more are left out")
    kept = [(e["set"], e["step"], e["task"]) for e in data["episodes"]]
    assert {step for _, step, _ in kept} == {0, 20, 40, 60, None}
    assert [k for k in kept if k[1] is None] == [
        ("final at T=1", None, "t-0"), ("start at T=1", None, "t-0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["{a}", "{a}"], "--out is missing"),
        (["{a}", "--most=0"], "--most=0: give at least 1"),
        (["{a}", "--out=/"], "--out=/ is a folder; name a file"),
        (
            ["{a}", "--out={a}/run_config.json/x"],
            "run_config.json/x cannot be written (File exists)",
        ),
        (["{b}"], "000000-train.jsonl is damaged"),
    ],
)
def test_a_page_that_cannot_be_made_is_one_line(tmp_path, capsys, arguments, words):
    runs = {name: Path(make_run(tmp_path / name)) for name in "ab"}
    fill(runs["b"])
    for damage in ('{"task": "t', "[" * 100_000, '{"task": "t"}', '{"turns": [], "score": NaN}'):
        (runs["b"] / "transcripts" / "000000-train.jsonl").write_text(damage)
        with pytest.raises(SystemExit, match="2"):
            main([a.format(**runs) for a in arguments])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in error


# ---------------------------------------------------------------------------------- in a browser


def in_browser(page: Path, scratch: Path, *, script: str = "", address: str = "") -> str:
    """The document of a page after it has run, and after a script of ours."""
    if not CHROMIUM:
        pytest.skip("no chromium here: `apt-get install chromium`")
    run = f"<script>addEventListener('load', () => setTimeout(() => {{{script}}}, 400))</script>"
    copy = scratch / "copy.html"
    copy.write_text(page.read_text().replace("</body>", run + "</body>"))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run",
        f"--user-data-dir={scratch / 'chromium'}", "--virtual-time-budget=4000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *options, f"file://{copy}{address}"], capture_output=True, text=True, timeout=120
    )
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = Path(make_run(tmp_path_factory.mktemp("run") / "a"))
    fill(folder)
    main([str(folder)])
    return folder


def test_a_link_opens_its_turn_and_hostile_text_stays_text(folder, tmp_path):
    found = in_browser(
        folder / "run.html", tmp_path, address="#e=0.000010-train.jsonl.1&t=2",
        script="document.querySelector('.turn.now .token').focus()",
    )  # fmt: skip
    assert "data-hacked" not in found
    assert "<img" not in found.replace("&lt;img", "")
    assert '<article class="turn now" data-turn="1">' in found
    assert "✗ not admissible" in found
    assert r"\u001b[31m\u2028\u0085\u202e" in found  # shown, not obeyed
    assert found.count("&lt;b&gt;bold&lt;/b&gt;") >= 6  # observations and prompts, as text
    assert "advantage 0.75 = teacher's part 1 + reward's part -0.25" in found
    assert "log p: student -0.2, teacher -1.2, gap -1 nats" in found
    assert 'the teacher would rather have said: " w7" 60.7 %, " w8" 22.3 %' in found


def test_a_page_of_episodes_alone_opens_with_them(tmp_path):
    run = RunRecord(tmp_path, {}, (), {}, name="one")
    told = list(records([make_episode("t-0", success=False)], None, SPELLER))
    write_page(tmp_path / "page.html", [run], batches=[Batch("T1", "held out", None, told)])
    found = in_browser(tmp_path / "page.html", tmp_path)
    assert '<main id="curves" hidden="">' in found
    assert '<main id="episodes">' in found


def test_keys_walk_through_the_episodes(folder, tmp_path):
    steps = ""
    for i, key in enumerate("ejjfn"):
        event = f"new KeyboardEvent('keydown', {{key: '{key}'}})"
        steps += f"setTimeout(() => dispatchEvent({event}), {50 * i});"
    found = in_browser(folder / "run.html", tmp_path, script=steps)
    # first, second, then the next failure, its second turn
    assert 'data-id="0.000010-train.jsonl.0" aria-current="true"' in found
    assert '<article class="turn now" data-turn="1">' in found


def test_filters_orders_and_two_episodes_of_a_task(folder, tmp_path):
    script = """
      const pick = (label, value) => { const s = [...document.querySelectorAll('label')]
        .find((l) => l.textContent.startsWith(label)).querySelector('select');
        s.value = [...s.options].find((o) => o.textContent.startsWith(value)).value;
        s.dispatchEvent(new Event('change')); };
      pick('outcome', 'won'); pick('played for', 'final'); pick('order', 'surprise');
      pick('turns', '1 to 5');
      location.hash = 'e=0.final-T1.jsonl.gz.0&t=1';
      setTimeout(() => pick('beside it', 'atod · start'), 100);"""
    found = in_browser(folder / "run.html", tmp_path, script=script)
    assert "3 of 16 episodes" in found
    assert '<div class="sides two">' in found
    assert found.count('<article class="turn') == 6


def test_what_goes_round_in_circles_comes_first(tmp_path):
    folder = Path(make_run(tmp_path / "a"))
    said = [list("abcdef"), list("ababab"), ["__proto__"] * 5 + ["a"]]
    episodes = [make_episode(f"t-{n}", success=False, turns=6) for n in range(3)]
    episodes = [
        dataclasses.replace(e, turns=tuple(map(_saying, e.turns, commands)))
        for e, commands in zip(episodes, said, strict=True)
    ]
    told = records(episodes, None, SPELLER)
    write_records(folder / "evaluations" / "final-T1.jsonl.gz", told)
    main([str(folder)])
    script = """
      const order = [...document.querySelectorAll('#filters label')]
        .find((l) => l.textContent.startsWith('order')).querySelector('select');
      order.value = [...order.options].find((o) => o.textContent.startsWith('one command')).value;
      order.dispatchEvent(new Event('change'));"""
    found = in_browser(folder / "run.html", tmp_path, script=script)
    listed = re.findall(r"<li><button[^>]*>(.*?)</button>", found)
    assert "t-2" in listed[0]
    assert "one command 5 times" in listed[0]
    assert "times" not in listed[1]


def test_a_thousand_episodes_are_a_few_megabytes_and_open(tmp_path, capsys):
    folder = Path(make_run(tmp_path / "a"))
    played = [make_episode(f"t-{i}", success=i % 2 == 0, turns=20) for i in range(500)]
    for role in ("start", "final"):
        write_records(
            folder / "evaluations" / f"{role}-T1.jsonl.gz", records(played, None, SPELLER)
        )
    main([str(folder)])
    assert "1000 episodes" in capsys.readouterr().out
    assert (folder / "run.html").stat().st_size < 4e6
    found = in_browser(folder / "run.html", tmp_path)
    assert 'data-ready="' in found
    assert found.count("<li><button") == 1000
