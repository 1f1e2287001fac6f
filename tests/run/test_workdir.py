"""What pins a run to its folder, what may change, and how other programs find the run there."""

import json

import pytest
from runs import typed

from atod_jax import config
from atod_jax.results.checkpoint import Checkpointer
from atod_jax.run import workdir
from atod_jax.run.models import Saved, saved_run
from configs import household


def run(**changes):
    return typed(household.get_config("smoke"), **changes)


def pinned(folder, **changes):
    cfg = run(**changes)
    workdir.open_workdir(folder, cfg)
    workdir.pin(folder, cfg)
    return folder


def change_record(folder, change):
    record = json.loads((folder / "run_config.json").read_text())
    change(record)
    (folder / "run_config.json").write_text(json.dumps(record))


FREE = {
    "keep_checkpoints": 7,
    "save_every": 3,
    "log_transcripts": 0,
    "record": True,
    "export": "somewhere",
    "env.workers": 2,
    "env.timeout": 5.0,
    "eval.slots": 8,
    "sampling.rows": 4,
    "student.remat": "full",
    "packing.micro_rows": 8,
    "mesh.fsdp": 2,
    "teacher.devices": 1,
    "demos.label": "executed",  # nobody reads it: the student plays
    "algorithm.opd.coef": 2.0,  # another algorithm's
    "env.webshop.seed": 5,
}
DEFINING = {
    "seed": 1,
    "optim.lr": 1e-4,
    "algorithm.atod.tdur.top_rho": 0.5,
    "algorithm.name": "opd",
    "env.history": 0,
    "env.alfworld.seed": 3,
    "teacher.path": "household/teacher-good",
    "sampling.temperature": 0.7,
    "eval.tasks": 8,
    "loss.entropy_coef": 0.1,
}


@pytest.mark.parametrize("path", FREE)
def test_bookkeeping_may_change(path, tmp_path):
    pinned(tmp_path)
    workdir.open_workdir(tmp_path, run(**{path: FREE[path]}))


@pytest.mark.parametrize("path", DEFINING)
def test_what_defines_a_run_may_not(path, tmp_path):
    pinned(tmp_path)
    with pytest.raises(ValueError, match=rf"holds another run: .*{path} \(.* there, .* now\)") as e:
        workdir.open_workdir(tmp_path, run(**{path: DEFINING[path]}))
    assert "\n" not in str(e.value)
    assert "delete" not in str(e.value)


def test_a_start_that_failed_leaves_its_folder_free(tmp_path):
    workdir.open_workdir(tmp_path, run())
    for name in ("evaluations", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of the first start").touch()
    (tmp_path / "mine.txt").touch()
    workdir.open_workdir(tmp_path, run())  # the same start goes on with what is there
    assert (tmp_path / "evaluations" / "of the first start").exists()
    workdir.open_workdir(tmp_path, run(seed=1))
    assert not (tmp_path / "evaluations").exists()
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "mine.txt").exists()
    assert workdir.read_run(tmp_path) == run(seed=1)


def test_what_belongs_to_nobody_is_not_touched(tmp_path):
    """A copy that lost its record, or a start that cannot be read: refused, and all of it kept."""
    pinned(tmp_path)
    (tmp_path / "run_config.json").unlink()
    kept = tmp_path / "checkpoints" / "25"
    kept.mkdir(parents=True)
    for options in (run(), run(seed=1)):
        with pytest.raises(ValueError, match=r"holds checkpoints of a run, but its run_c"):
            workdir.open_workdir(tmp_path, options)
    workdir.write_text(tmp_path / "starting.json", json.dumps(config.to_plain(run(seed=2))))
    with pytest.raises(ValueError, match=r"restore that file, or use a new folder"):
        workdir.open_workdir(tmp_path, run())
    for damage in ("", "[]", "{", "3", '{"env": 3}'):
        (tmp_path / "starting.json").write_text(damage)
        with pytest.raises(ValueError, match=r"starting\.json .*; restore the file"):
            workdir.open_workdir(tmp_path, run())
    assert kept.is_dir()


ODD = [f'{{"seed": 0, "student": {{}}, "env": {x}}}' for x in ("3", '"name"', '{"name": [1]}')]


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", "null", "3", '{"seed": 1', '[["seed", 1]]', "[" * 100_000, *ODD]
)
def test_a_damaged_record_is_one_line(damage, tmp_path):
    pinned(tmp_path)
    (tmp_path / "run_config.json").write_text(damage)
    for read in (workdir.read_run, workdir.read_definition):
        with pytest.raises(ValueError, match=r"run_config\.json .*; restore the file"):
            read(tmp_path)


def test_the_record_is_written_once_with_the_first_finished_step(tmp_path):
    cfg = run()
    out = tmp_path
    workdir.open_workdir(out, cfg)
    assert not (out / "run_config.json").exists()
    workdir.pin(out, cfg)
    first = (out / "run_config.json").stat()
    workdir.pin(out, run(record=True))
    assert (out / "run_config.json").stat() == first
    assert workdir.read_run(out) == cfg
    assert not list(out.glob("starting.json*"))


def test_total_steps_may_grow_where_no_schedule_depends_on_it(tmp_path):
    pinned(tmp_path / "a")
    longer = run(total_steps=9, record=True)
    workdir.open_workdir(tmp_path / "a", longer)
    workdir.pin(tmp_path / "a", longer)
    assert workdir.read_run(tmp_path / "a") == run(total_steps=9)  # nothing else is noted
    with pytest.raises(ValueError, match=r"total_steps \(9 there, 2 now\); it may grow, not"):
        workdir.open_workdir(tmp_path / "a", run(total_steps=2))
    cosine = {"optim.schedule": "cosine"}
    pinned(tmp_path / "b", **cosine)
    with pytest.raises(ValueError, match=r"\(3 there, 9 now\); optim\.schedule=cosine depends"):
        workdir.open_workdir(tmp_path / "b", run(total_steps=9, **cosine))
    with pytest.raises(ValueError, match=r"has done 5 steps; set --config\.total_steps=5 or more"):
        workdir.first_step(run(total_steps=3), 5)


def test_an_option_that_is_younger_than_the_run_has_its_default(tmp_path):
    pinned(tmp_path)

    def older(record):
        del record["optim"]["warmup_steps"], record["eval"]["passes"], record["demos"]

    change_record(tmp_path, older)
    workdir.open_workdir(tmp_path, run())
    with pytest.raises(ValueError, match=r"optim\.warmup_steps \(0 there, 5 now\)"):
        workdir.open_workdir(tmp_path, run(**{"optim.warmup_steps": 5}))


def test_values_are_compared_as_parsed(tmp_path):
    pinned(tmp_path)

    def respell(record):
        record["env"]["alfworld"]["win_reward"] = 10
        record["eval"]["temperatures"] = [1, 0.4]

    change_record(tmp_path, respell)
    workdir.open_workdir(tmp_path, run())


def test_a_record_of_another_version_is_one_line(tmp_path):
    pinned(tmp_path)
    change_record(tmp_path, lambda record: record["env"].update(games="", gravity=9.8))
    with pytest.raises(ValueError, match=r"does not hold options of this version \(env\.") as error:
        workdir.open_workdir(tmp_path, run())
    assert "\n" not in str(error.value)


def test_the_same_folder_may_be_written_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    here = {"student.path": "model"}
    pinned(tmp_path / "run", **here)
    there = {"student.path": str(tmp_path / "model")}
    workdir.open_workdir(tmp_path / "run", run(**there))


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="is a file; name a folder"),
        workdir.claimed(str(tmp_path / "file")),
    ):
        pass


def test_a_workdir_whose_checkpoints_could_not_be_read_is_refused_before_it_is_made(tmp_path):
    with (
        pytest.raises(ValueError, match=r"with '\[' in its path; give it another name"),
        workdir.claimed(str(tmp_path / "a[1]")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_definition_can_be_read_without_the_plug_in(tmp_path):
    pinned(tmp_path)
    change_record(tmp_path, lambda r: r["algorithm"].update(name="gone.away", away={"x": 1}))
    found = workdir.read_definition(tmp_path)
    assert (found["algorithm.name"], found["algorithm.away.x"]) == ("gone.away", 1)
    assert "keep_checkpoints" not in found


def test_a_checkpoint_names_a_run_a_step_or_a_model(tmp_path):
    Checkpointer(tmp_path / "runs" / "quick" / "checkpoints").close()
    (tmp_path / "runs" / "quick" / "checkpoints" / "25").mkdir()
    a = tmp_path / "runs" / "quick"
    assert saved_run(str(a)) == saved_run(str(a / "checkpoints")) == Saved(a, None)
    assert saved_run(str(a / "checkpoints" / "25")) == Saved(a, 25)
    assert saved_run("household/student") is None
    with pytest.raises(FileNotFoundError, match=r"quik: no such folder; did you mean .*quick\?"):
        saved_run(str(tmp_path / "runs" / "quik"))
    with pytest.raises(FileNotFoundError, match=r"no checkpoints of a run and no config\.json"):
        saved_run(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"--checkpoint=Qwen/Qwen3-typo: no such folder$"):
        saved_run("Qwen/Qwen3-typo")


def test_a_typed_run_goes_to_plain_values_and_back():
    cfg = run(**{"algorithm.name": "tcod", "sampling.prompt_buckets": (8, 160)})
    again = json.loads(json.dumps(config.to_plain(cfg)))
    assert config.resolve(again) == config.resolve(config.to_config(cfg)) == cfg
