"""The bench: what it measures here, how entries are put together, and mistakes."""

import jax
import numpy as np
import pytest
from toy_update import CONFIG

from atod_jax import bench
from atod_jax.device.sampling import SamplingConfig
from atod_jax.episodes.packing import Form
from atod_jax.estimate import entries, learning, playing, workload
from atod_jax.estimate.cost import Cost, Figures, Memory
from atod_jax.estimate.hardware import CHIPS
from atod_jax.estimate.learning import Update
from atod_jax.estimate.programs import TooLarge
from atod_jax.estimate.work import Work
from atod_jax.models import build
from atod_jax.sharding import Layout, make_mesh

MODEL = build(CONFIG)
CFG = SamplingConfig(max_new_tokens=5, prompt_buckets=(8,), slots=8, eos_ids=(1,), pad_id=0)
BATCH = workload.packed(
    [(6, 3), (4, 2), (5, 4), (2, 1)], Form(10, 4, rows=1, micro_lines=2), minibatch_rows=4
)
LAYOUT = Layout(make_mesh({}, np.array(jax.devices()[:1])))
UPDATE = Update(MODEL, LAYOUT)
PROGRAMS = (
    UPDATE.whole(BATCH),
    UPDATE.gradient(BATCH),
    UPDATE.step(),
    Update(MODEL, LAYOUT, teacher=MODEL).gradient(BATCH),
    learning.score(MODEL, BATCH, LAYOUT, keep_states=True),
    playing.prefill(MODEL, LAYOUT, lines=2, columns=8, prompts=2),
    playing.fill(MODEL, LAYOUT, CFG, read=(2, 8, 2), rows=4, columns=8, entries=3),
    playing.decode(MODEL, LAYOUT, CFG, rows=4, columns=16, seen=9),
    learning.head(1024, "float32", LAYOUT, width=8, vocab=32, teacher=True),
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_program_runs_here(program):
    cost = bench.measured(program.compile(), program)
    assert max(cost.whole.seconds, cost.step.seconds) > 0
    assert (
        program.name in ("step", "fill")
        or cost.whole.flops + cost.step.flops > 0.5 * program.work.flops
    )
    part = bench.Part(program, times=0 if program.steps else 1, steps=1 if program.steps else 0)
    found = bench.record("x", "local", [(part, cost)], chip=CHIPS["h100"])
    assert found["milliseconds"] > 0
    assert 0 <= found["share_of_limit"] < 1
    assert "x on local" in bench.page(found, [(part, cost)], top=3)


@pytest.mark.parametrize(
    ("said", "needed"), [("Used 1.50G of", 1.5 * 2**30), ("of 20.25M in", 20.25 * 2**20)]
)
def test_a_program_too_large_for_a_tpu_says_what_it_needs(said, needed):
    class Refused:
        def lower(self, *arguments):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: Ran out of hbm. {said} memory")

    with pytest.raises(TooLarge, match=r"gradient does not fit") as error:
        PROGRAMS[1]._replace(run=Refused(), options={}).compile()
    assert error.value.temporary == needed


def test_rows_are_packed_as_training_packs_them():
    assert (BATCH.micro_batches, BATCH.minibatches) == (2, 1)
    rows = [BATCH.rows(n) for n in range(2)]
    tokens = sum(int(np.asarray(r.action_mask).sum()) for r in rows)
    assert tokens == 3 + 2 + 4 + 1
    assert rows[0].lines.tokens.shape == (2, 10)


def test_the_built_in_lengths_go_through_the_sampler():
    """What is kept of what slots compute; every token is drawn once."""
    rng = np.random.default_rng(0)
    prompts, responses = rng.integers(100, 500, (3, 16)), rng.integers(1, 200, (3, 16))
    cfg = SamplingConfig(max_new_tokens=200, prompt_buckets=(512,), slots=8, eos_ids=(1,), pad_id=0)
    played = workload.play(MODEL, cfg, prompts=prompts, responses=responses)
    steps = sum(rows * steps for (rows, _), steps in played.steps.items())
    assert played.kept == pytest.approx((responses.sum() - responses.size) / steps)
    assert played.kept > 0.6
    assert set(played.steps) == {(8, 512 + 200)}


def test_an_entry_adds_up_its_programs():
    program = PROGRAMS[-1]._replace(work=Work(2e12), steps=1)
    once, step = Figures(1.0, 10.0, 100.0), Figures(0.5, 1.0, 1.0)
    parts = [
        (bench.Part(program, times=2, steps=4), Cost(once, step, Memory(1, 5, 2), [])),
        (bench.Part(program, times=1), Cost(once, step, Memory(1, 7, 2), [])),
    ]
    found = bench.record("x", "h100", parts, chip=CHIPS["h100"])
    assert found["milliseconds"] == 5000
    assert (found["bytes"], found["flops"], found["temporary_bytes"]) == (34, 304, 7)
    assert found["share_of_limit"] == pytest.approx(4 * 2e12 / CHIPS["h100"].reached / 5)
    assert (found["fits"], found["memory_bytes"]) == (True, 1 + 7 + 2)
    unknown = bench.record("x", "local", parts, chip=None)
    assert unknown["share_of_limit"] is unknown["fits"] is None
    beside = [(parts[0][0]._replace(beside=80_000_000_000), parts[0][1])]
    large = bench.record("x", "h100", beside, chip=CHIPS["h100"])
    assert large["fits"] is False
    assert "does not fit" in bench.page(large, beside, top=0)


def test_lengths_are_cut_or_repeated_and_the_vocabulary_replaced():
    recorded = entries.Setting("Qwen3-0.6B", "bfloat16", "none", LAYOUT)
    whole = recorded.lengths("prompt")
    assert whole.shape == (25, 128)
    few, many = (
        recorded._replace(turns=t, episodes=n).lengths("prompt") for t, n in ((5, 32), (50, 256))
    )
    np.testing.assert_array_equal(few, whole[:5, :32])
    np.testing.assert_array_equal(many, np.tile(whole, (2, 2)))
    small = recorded._replace(vocab=8192)
    assert small.student.config.vocab_size == small.teacher.config.vocab_size == 8192
    assert recorded.teacher.config.vocab_size == 151_936


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=update"], "no entry 'update'; take update_64x640"),
        (["--hardware=a100"], "invalid choice: 'a100'"),
        (["--modle=x"], "unrecognized arguments"),
        (["--model=x"], "invalid choice: 'x'"),
        (["--json=/"], "--json=/: name a file"),
        ([f"--json={__file__}/below/x.json"], "Not a directory"),
        ([f"--dump_hlo={__file__}"], "File exists"),
        (["--turns=0"], "argument --turns: 0 is too small, give at least 1"),
        (["--episodes=many"], "argument --episodes: invalid number value: 'many'"),
        (["--top=-1"], "argument --top: -1 is too small, give at least 0"),
        (["--vocab=8"], "argument --vocab: 8 is too small, give at least 1000"),
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
