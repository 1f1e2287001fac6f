"""The bench: what it measures here, how entries are put together, and mistakes."""

import jax
import numpy as np
import pytest
from toy_update import CONFIG

from atod_jax import bench
from atod_jax.estimate import programs
from atod_jax.estimate.cost import Cost, Figures, Memory
from atod_jax.estimate.hardware import CHIPS
from atod_jax.estimate.programs import Shape
from atod_jax.models import build
from atod_jax.sharding import Layout, make_mesh

MODEL, SHAPE = build(CONFIG), Shape(rows=4, prompt=6, response=3, micro_rows=2)


@pytest.fixture(name="layout")
def _layout():
    layout = Layout(make_mesh({}, np.array(jax.devices()[:1])))
    with jax.set_mesh(layout.mesh):
        yield layout


MADE = {
    "update": lambda layout: programs.update(MODEL, SHAPE, layout),
    "score": lambda layout: programs.score(MODEL, SHAPE, layout),
    "decode": lambda layout: programs.play(MODEL, SHAPE, layout),
    "prefill": lambda layout: programs.prefill(MODEL, SHAPE, layout),
    "head": lambda layout: programs.head(1024, "float32", layout, width=8, vocab=32, teacher=True),
}


@pytest.mark.parametrize("name", MADE)
def test_every_program_runs_here(name, layout):
    program = MADE[name](layout)
    cost = bench.measured(program.lower().compile(), program)
    assert program.name == name
    assert max(cost.whole.seconds, cost.step.seconds) > 0
    part = bench.Part(program, times=0 if program.steps else 1, steps=1 if program.steps else 0)
    found = bench.record("x", "local", [(part, cost)], chip=CHIPS["h100"])
    assert found["milliseconds"] > 0
    assert found["flops"] >= program.work.flops * 0.5  # masked pairs aside, nothing is left out
    assert 0 < found["share_of_limit"] < 1
    assert "x on local" in bench.page(found, [(part, cost)], top=3)


def test_an_entry_adds_up_its_programs(layout):
    program = MADE["head"](layout)._replace(work=programs.Work(2e12, 0.0), steps=1)
    once, step = Figures(1.0, 10.0, 100.0), Figures(0.5, 1.0, 1.0)
    parts = [
        (bench.Part(program, times=2, steps=4), Cost(once, step, Memory(1, 5, 2), [])),
        (bench.Part(program, times=1), Cost(once, step, Memory(1, 7, 2), [])),
    ]
    found = bench.record("x", "h100", parts, chip=CHIPS["h100"])
    assert found["milliseconds"] == 5000
    assert (found["bytes"], found["flops"], found["temporary_bytes"]) == (34, 304, 7)
    assert found["share_of_limit"] == pytest.approx(4 * 2e12 / CHIPS["h100"].reached / 5)
    assert bench.record("x", "local", parts, chip=None)["share_of_limit"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=update"], "no entry update; take update_64x640"),
        (["--hardware=a100"], "invalid choice: 'a100'"),
        (["--modle=x"], "unrecognized arguments"),
        (["--model=x"], "invalid choice: 'x'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(arguments)
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (2, 1)
    assert message in said


def test_a_compiler_that_is_missing_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(bench.targets, "_installed", lambda name: False)
    with pytest.raises(SystemExit):
        bench.main(["--hardware=v5p"])
    assert 'pip install "atod_jax[aot]"' in capsys.readouterr().err
