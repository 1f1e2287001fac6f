"""Operations, traffic and time of a toy, by hand."""

import dataclasses

import pytest
from toys import TOY, TOY_LAYER, TOY_PARAMETERS, make_plan, place

from atod_jax.estimate import roofline, work
from atod_jax.estimate.hardware import parse
from atod_jax.estimate.memory import local
from atod_jax.estimate.plan import parameters
from atod_jax.models import config_from_hf
from atod_jax.models.sizes import published
from atod_jax.sharding import RULES

INNER = 2 * TOY_LAYER + 8  # weights that every token meets


def test_a_forward_pass():
    done = work.forward(place(), rows=4, columns=10)
    # 2 per weight and token; scores and values: 2 * 2 per pair of columns, head width and layer
    assert done.flops == 2 * 40 * INNER + 4 * 4 * 2 * 100 * 8
    assert set(done.links.values()) == {0.0}


def test_the_head_sees_action_tokens():
    assert work.head(place(), tokens=4 * 6).flops == 2 * 4 * 6 * 100 * 8


def test_a_decoding_step_reads_all_weights_and_the_cache():
    done = work.step(place(), rows=8, columns=15)
    cache = 2 * 2 * 8 * 15 * 4 * 4
    assert done.memory == 4 * TOY_PARAMETERS + cache + 4 * 4 * 8 * 100


def test_full_sharding_gathers_weights_in_bulk_and_moves_columns_when_decoding():
    placed = place(mesh={"fsdp": 4})
    split = 4 * (TOY_PARAMETERS - 2 * 24 - 8)  # norms are whole everywhere
    assert work.forward(placed, 2, 10).links["fsdp"] == split * 3 / 4
    few, many = (work.step(placed, rows, 15).links["fsdp"] for rows in (1, 2))
    assert many == 2 * few > 0


def test_recomputing_costs_a_forward_pass():
    plain = work.train(make_plan()).flops
    again = work.train(make_plan(dataclasses.replace(TOY, remat="full"))).flops
    assert again - plain == work.forward(place(), 4, 15).flops


def test_frozen_matrices_have_no_gradients():
    trains, adapts = (work.train(make_plan(adapters=rank)) for rank in (0, 2))
    plan = make_plan()
    once = work.forward(plan.student, plan.micro_rows, plan.columns)
    pairs = plan.micro_rows * 2 * plan.columns**2
    head = work.head(plan.student, plan.micro_rows * plan.response)
    # matrices: their gradients, that of the head included; not those of the scores
    assert trains.flops - adapts.flops == once.flops - 4 * pairs * 8 + head.flops
    assert work.optimise(make_plan(adapters=2)).flops == 15 * 2 * 2 * (16 + 12 + 12 + 16 + 3 * 24)


def test_copies_sum_their_gradients():
    done = work.train(make_plan(mesh={"data": 4}))
    assert done.links["data"] == 2 * 4 * TOY_PARAMETERS * 3 / 4


def test_an_iteration_counts_turns_and_micro_batches():
    plan = make_plan(teacher=TOY)
    done = work.iteration(plan)
    assert done["prompts"].flops == 3 * work.forward(place(), 8, 10).flops
    # 8 episodes of 3 turns: 24 rows, 6 micro-batches of 4
    assert done["student scoring"] == done["teacher scoring"] == work.score(plan, place()).times(6)
    assert list(done) == ["prompts", "actions", "student scoring", "teacher scoring", "update"]


def test_playing_elsewhere_moves_the_weights_once_and_plays_there():
    student = dataclasses.replace(TOY, num_kv_heads=2)
    plan = make_plan(student, mesh={"fsdp": 4}, sampling={"data": 2, "tensor": 2})
    done = work.iteration(plan)
    assert list(done) == ["weights to play", "prompts", "actions", "student scoring", "update"]
    trained, played = (4 * local(parameters(p)) for p in (plan.student, plan.sampling))
    assert done["weights to play"] == work.Work(0.0, trained + played, {"data": played})
    # 8 episodes on 2 shards
    assert done["prompts"] == work.forward(plan.sampling, 4, 10).times(3)
    assert done["update"] == work.iteration(make_plan(student, mesh={"fsdp": 4}))["update"]
    assert [work.runs_on(plan, phase) is plan.sampling for phase in done] == [True] * 3 + [
        False
    ] * 2
    assert "weights to play" not in work.iteration(make_plan(student, mesh={"fsdp": 4}))


def test_the_teacher_scores_on_its_own_mesh():
    teacher = place(TOY, {"data": 4})
    done = work.iteration(make_plan(teacher=teacher, reserved=True))["teacher scoring"]
    # micro-batches of 4 rows: 1 on each of its devices
    one = work.forward(teacher, 1, 15) + work.head(teacher, 1 * 6)
    assert done == one.times(6)


def test_a_student_that_teaches_itself_scores_twice_and_without_a_judge_nobody_does():
    done = work.iteration(make_plan(scored_by="student", teacher=place(TOY, {"data": 4})))
    assert done["teacher scoring"] == done["student scoring"]
    assert "teacher scoring" not in work.iteration(make_plan(scored_by="", teacher=TOY))


def test_weights_that_no_rule_splits_are_not_gathered_but_their_gradients_summed():
    rules = tuple((dict(RULES) | {"embed": None}).items())
    placed = place(TOY, {"fsdp": 4}, rules=rules)
    assert work.forward(placed, 2, 10).links["fsdp"] == 0
    assert work.exchanged(placed, "fsdp") == 2 * 4 * TOY_PARAMETERS * 3 / 4
    assert work.step(placed, 1, 15) == work.step(place(), 1, 15)


def test_a_mixture_works_with_the_experts_of_a_token():
    moe = config_from_hf(published("Qwen3-30B-A3B"))
    met = work.active(place(moe))
    tables = 2 * 151_936 * 2048
    # the card: 3.3 B active, of them the two tables
    assert met + tables == pytest.approx(3.35e9, rel=0.01)
    halves = work.active(place(moe, {"expert": 2}))
    assert met / 2 < halves < met


def test_the_slowest_of_three_is_the_time():
    plan, v5e = make_plan(), parse("v5e-1")
    (prompts, *_), done = roofline.phases(plan, v5e), work.iteration(plan)["prompts"]
    assert prompts.computing == done.flops / (roofline.COMPUTING * 197e12)
    assert prompts.memory == done.memory / (roofline.MEMORY * 819e9)
    assert prompts.seconds == max(prompts.computing, prompts.memory)
    assert prompts.links == 0
    assert prompts.binds == "memory"


def test_a_decoding_step_waits_for_its_messages():
    assert work.step(place(), 1, 15).messages == 0
    plan = make_plan(mesh={"fsdp": 2})
    assert work.step(plan.sampling, 1, 15).messages == 5 * 2  # per layer
    actions = roofline.phases(plan, parse("v5e-2"))[1]
    assert actions.links > 3 * 6 * 10 * roofline.LATENCY  # turns, tokens


def test_links_slow_down_where_a_mesh_axis_leaves_the_node():
    near = roofline.phases(make_plan(mesh={"data": 4, "fsdp": 2}), parse("h100-8"))[-1]
    far = roofline.phases(make_plan(mesh={"data": 4, "fsdp": 4}), parse("h100-16"))[-1]
    assert 0 < 2 * near.links < far.links


def test_sampling_some_rows_at_a_time_reads_the_weights_more_often():
    whole, halves = (work.iteration(make_plan(sampled=n))["actions"] for n in (0, 4))
    assert halves.flops == whole.flops
    per_step = halves.memory - whole.memory
    assert per_step == 3 * 6 * 4 * TOY_PARAMETERS  # turns, tokens
