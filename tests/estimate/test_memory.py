"""Bytes per device: against hand-computed numbers, and against what XLA reports."""

import dataclasses

import jax
import pytest
from toys import TOY, TOY_LAYER, TOY_PARAMETERS, make_plan, place

from atod_jax.estimate import memory
from atod_jax.estimate.compiled import measure
from atod_jax.estimate.plan import count, parameters
from atod_jax.models import ModelConfig, config_from_hf
from atod_jax.models.sizes import published
from atod_jax.sharding import RULES

MEDIUM = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=768,
    rope_theta=1e4,
    rms_eps=1e-6,
    tie_embeddings=True,
)
MIXTURE = dataclasses.replace(MEDIUM, intermediate_size=192, num_experts=16, experts_per_token=4)
WIDE_MIXTURE = dataclasses.replace(
    MEDIUM, hidden_size=128, intermediate_size=256, num_experts=8, experts_per_token=2, remat="dots"
)
WIDE = dataclasses.replace(TOY, num_kv_heads=2)
FULL = dataclasses.replace(MEDIUM, remat="full")


def resident(plan):
    (kind,) = memory.needs(plan)
    return kind.resident


def phases(plan):
    (kind,) = memory.needs(plan)
    return kind.phases


def test_parameters_of_a_toy():
    assert count(TOY) == TOY_PARAMETERS
    pieces = {p.name: p for p in parameters(place(mesh={"fsdp": 2}))}
    # [layers, embed, mlp]: the width over fsdp
    assert pieces["layers/mlp/up/kernel"].local_shape == (1, 4, 16)
    assert pieces["norm/scale"].local_shape == (8,)


def test_a_large_student_on_one_device_and_on_sixteen():
    student = config_from_hf(published("Qwen3-1.7B"))
    size = 1_720_574_976
    parts = resident(make_plan(student))
    # float32 weights twice (trained, and as they were at the start), two float32 moments
    assert list(parts.values()) == [4 * size, 4 * size, 8 * size]
    norms = 28 * (2048 + 2048 + 128 + 128) + 2048  # whole on every device
    parts = resident(make_plan(student, mesh={"fsdp": 16}))
    assert parts["Adam moments"] == 8 * ((size - norms) // 16 + norms)


def test_adapters_alone_have_moments_and_gradients():
    plan = make_plan(adapters=3)
    # inputs + outputs of q, k, v, o and of gate, up, down, times the rank, in 2 layers
    learn = 2 * 3 * (16 + 12 + 12 + 16 + 3 * 24)
    frozen_and_they = 4 * (TOY_PARAMETERS + learn)
    assert list(resident(plan).values()) == [frozen_and_they, 4 * learn, 8 * learn]
    assert memory.update(plan)["gradients"] == 8 * learn
    whole = resident(make_plan(mesh={"fsdp": 4}, adapters=3))
    norms = 2 * 24 + 8
    # A of q, k, v, gate, up and B of o, down are split along the model's width
    split = 2 * 3 * (7 * 8)
    assert whole["Adam moments"] == 8 * (split // 4 + learn - split)
    assert whole["student weights"] == 4 * (
        (TOY_PARAMETERS - norms) // 4 + norms + split // 4 + learn - split
    )


def test_a_teacher_is_stored_in_its_own_type():
    teacher = dataclasses.replace(TOY, dtype="bfloat16")
    assert resident(make_plan(teacher=teacher))["teacher weights"] == 2 * TOY_PARAMETERS
    plan = make_plan(teacher=place(teacher, storage="int8"))
    matrices = 2 * (TOY_LAYER - 24)  # all but the norms
    assert resident(plan)["teacher weights"] == 2 * TOY_PARAMETERS - matrices


def test_the_cache_of_a_toy():
    # 8 rows; keys and values of 2 layers, 1 head of 4 numbers of 4 bytes; 10 columns, then 15
    parts = memory.sampling(make_plan(), place(), 8)
    assert parts["KV cache"] == 8 * 2 * 2 * 4 * 4 * (10 + 15)
    # scores of 2 heads over 10 x 10 columns, in float32, and their softmax
    assert parts["attention scores"] == 8 * 2 * 100 * (4 + 4)


def test_rows_sampled_later_need_no_cache_now():
    whole, half = (memory.sampling(make_plan(sampled=n), place(), 8)["KV cache"] for n in (0, 4))
    assert whole == 2 * half


def test_what_is_kept_for_the_backward_pass():
    plan = make_plan()
    kept = {
        remat: memory.update(make_plan(dataclasses.replace(TOY, remat=remat)))["saved activations"]
        for remat in ("none", "dots", "full")
    }
    # one layer before the last; 4 rows of 15 columns of width 8, 4 bytes each
    assert kept["full"] == 4 * plan.columns * 8 * 4
    # and the products q 8, k 4, v 4, o 8, gate 16, up 16, down 8
    assert kept["dots"] == 4 * plan.columns * (8 + 8 + 4 + 4 + 8 + 16 + 16 + 8) * 4
    assert kept["none"] > kept["dots"]


def test_gathered_weights_are_a_layer_and_the_table():
    assert memory.gathered(place()) == 0
    assert memory.gathered(place(mesh={"fsdp": 8})) == 4 * (TOY_LAYER + 800 + 8)


def test_the_peak_is_the_largest_phase():
    plan = make_plan(eval_slots=512)
    phase, needed = memory.peak(plan)
    assert phase == "evaluation"
    stays, adds = resident(plan), phases(plan)["evaluation"]
    assert needed == sum(stays.values()) + sum(adds.values())


def test_where_the_student_plays_on_another_mesh_its_weights_are_there_twice():
    plan = make_plan(mesh={"fsdp": 4}, sampling={"data": 2, "tensor": 2}, student=WIDE)
    copy = 4 * memory.local(parameters(plan.sampling))
    assert copy > 1.9 * 4 * memory.local(parameters(plan.student))
    for phase, parts in phases(plan).items():
        assert parts.get("weights to play", 0) == (
            copy if phase in ("rollout", "evaluation") else 0
        )
    # 4 rows of a shard; keys of 2 heads, 1 on a device
    assert phases(plan)["rollout"]["KV cache"] == 4 * 2 * 2 * 4 * 4 * (10 + 15)


def test_a_teacher_with_devices_of_its_own_needs_nothing_of_the_student():
    plan = make_plan(
        mesh={"fsdp": 2}, teacher=place(TOY, {"data": 4}), reserved=True, eval_slots=512
    )
    ours, theirs = memory.needs(plan)
    assert (ours.whose, ours.devices, theirs.whose, theirs.devices) == ("student", 2, "teacher", 4)
    assert list(theirs.resident) == ["teacher weights"]
    assert list(theirs.phases) == ["teacher's evaluation", "teacher scoring"]
    assert ours == memory.needs(make_plan(mesh={"fsdp": 2}, eval_slots=512))[0]._replace(
        whose="student"
    )
    assert memory.peak(plan) == max(ours.peak, theirs.peak, key=lambda peak: peak[1])
    together = make_plan(mesh={"fsdp": 2}, teacher=place(TOY, {"data": 2}), eval_slots=512)
    (both,) = memory.needs(together)
    assert both.peak[1] > max(ours.peak[1], theirs.peak[1])


def test_a_student_that_teaches_itself_is_scored_twice():
    found = phases(make_plan(scored_by="student"))
    assert found["teacher scoring"] == found["student scoring"]
    assert "teacher scoring" not in phases(make_plan())
    small = dataclasses.replace(TOY, hidden_size=4)
    both = phases(make_plan(scored_by="student", teacher=small))
    assert both["teacher scoring"] == found["student scoring"] != both["teacher on transcripts"]


def test_an_exact_divergence_keeps_the_teachers_states_and_head():
    teacher = place(dataclasses.replace(TOY, hidden_size=4, dtype="bfloat16"), {"data": 2})
    fields = {"mesh": {"tensor": 2}, "teacher": teacher, "student": WIDE, "reserved": True}
    ours, theirs = memory.needs(make_plan(**fields, scored_by="teacher", exact=True))
    # 24 rows of 6 tokens, 4 numbers of 2 bytes; a table of 100 rows in halves
    assert ours.resident["teacher's head"] == 100 / 2 * 4 * 2
    assert ours.phases["update"]["teacher's states"] == 24 * 6 * 4 * 2
    assert theirs.phases["teacher scoring"]["teacher's states"] == 24 / 2 * 6 * 4 * 2
    for kind in memory.needs(make_plan(**fields, scored_by="teacher")):
        assert not [
            k for parts in (kind.resident, *kind.phases.values()) for k in parts if "'" in k
        ]


def test_rules_decide_what_is_split():
    rules = dict(RULES) | {"embed": None, "heads": None, "kv_heads": None, "mlp": "fsdp"}
    placed = place(TOY, {"fsdp": 2, "tensor": 2}, rules=tuple(rules.items()))
    # heads are on all devices, the MLP is stored in pieces and gathered for use, the table is split
    assert memory.widths(placed) == memory.widths(place())
    assert memory.local(parameters(placed)) == 400 + 2 * (TOY_LAYER - 384 + 192) + 8
    assert memory.gathered(placed) == 4 * (TOY_LAYER + 400 + 8)


def test_the_products_of_a_mixture_are_dense_on_a_cpu_only():
    mixture = dataclasses.replace(TOY, num_experts=4, experts_per_token=2)
    placed = place(mixture, {"expert": 2})
    # 7 tokens twice over 2 experts of the device; 3 kernels each
    expected = 4 * (7 * 2 * 2 * 16 + 2 * 3 * 8 * 16)
    assert memory.dense_mixture(make_plan(), placed, 7) == {"rows spread over experts": expected}
    assert memory.dense_mixture(make_plan(platform="tpu"), placed, 7) == {}
    assert memory.dense_mixture(make_plan(), place(), 7) == {}


def test_an_expert_needs_no_rollout():
    assert "rollout" not in phases(make_plan(plays=False))


@pytest.mark.parametrize(
    ("student", "mesh", "playing", "prompt"),
    [
        (FULL, {"fsdp": 8}, None, 192),
        (MEDIUM, {"data": 8}, None, 192),
        (FULL, {"fsdp": 2, "tensor": 4}, None, 192),
        (FULL, {"fsdp": 8}, {"data": 2, "tensor": 4}, 960),
    ],
    ids=["fsdp", "data", "tensor", "long, plays elsewhere"],
)
def test_xla_needs_between_half_of_the_estimate_and_all_of_it(student, mesh, playing, prompt):
    hold_to_xla(student, mesh=mesh, sampling=playing, prompt=prompt)


@pytest.mark.parametrize(
    ("student", "mesh"), [(FULL, {"fsdp": 8}), (MEDIUM, {"fsdp": 2, "tensor": 4})]
)
def test_the_same_with_adapters(student, mesh):
    hold_to_xla(student, mesh=mesh, prompt=192, adapters=8)


@pytest.mark.parametrize(
    ("student", "mesh"),
    [
        (dataclasses.replace(MIXTURE, remat="full"), {}),
        pytest.param(MIXTURE, {"data": 8}, marks=pytest.mark.slow),
        (dataclasses.replace(MIXTURE, remat="full"), {"fsdp": 2, "expert": 4}),
        pytest.param(WIDE_MIXTURE, {"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param(
            dataclasses.replace(WIDE_MIXTURE, dtype="bfloat16"),
            {"data": 4, "expert": 2},
            marks=pytest.mark.slow,
        ),
        (WIDE_MIXTURE, {"fsdp": 2, "tensor": 2, "expert": 2}),
    ],
    ids=["one", "data", "expert", "fsdp", "bfloat16", "all"],
)
def test_the_same_of_mixtures_with_their_products_dense(student, mesh):
    hold_to_xla(student, mesh=mesh, prompt=192)


def hold_to_xla(student, **changes):
    plan = make_plan(
        student,
        episodes=32,
        response=64,
        micro_rows=16,
        minibatch_rows=32,
        **changes,
    )
    assert jax.device_count() == 8
    ours, measured = memory.temporaries(plan), measure(plan)
    for name, program in measured.items():
        estimate = ours[name]
        assert 0.5 * estimate <= program.temporary <= 1.05 * estimate, (name, program)
    played = 4 * memory.local(memory.everything(plan.sampling))
    assert played < measured["rollout"].arguments < 1.1 * played
    stays = resident(plan)
    # weights and two moments; the rows are small
    arguments = stays["student weights"] + stays["Adam moments"]
    assert arguments < measured["update"].arguments < 1.07 * arguments
