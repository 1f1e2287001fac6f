"""Programs written by hand, whose kernels can be counted by hand."""

import pytest

from atod_jax.estimate import hlo
from atod_jax.estimate.hardware import CHIPS, LAUNCH

TABLES = """HloModule jit_f

FileNames
1 "/x/jax/lax.py"
2 "/x/atod_jax/core/fused.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

"""
LOOP = """
%sliced (p.0: f32[10,4], p.1: s32[]) -> f32[1,4] {
  %p.0 = f32[10,4]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %d = f32[1,4]{1,0} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,4}
}

%updated (p.0: f32[10,4], p.1: f32[1,4], p.2: s32[]) -> f32[10,4] {
  %p.0 = f32[10,4]{1,0} parameter(0)
  %p.1 = f32[1,4]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  ROOT %u = f32[10,4]{1,0} dynamic-update-slice(%p.0, %p.1, %p.2, %p.2)
}

%body (t: (s32[], f32[10,4])) -> (s32[], f32[10,4]) {
  %t = (s32[], f32[10,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[10,4]{1,0} get-tuple-element(%t), index=1
  %row = f32[1,4]{1,0} fusion(%x, %i), calls=%sliced, metadata={op_name="f/a" stack_frame_id=2}
  %new = f32[10,4]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%updated
  ROOT %r = (s32[], f32[10,4]{1,0}) tuple(%i, %new)
}

ENTRY %main (a: f32[10,4]) -> f32[10,4] {
  %a = f32[10,4]{1,0} parameter(0)
  %c = s32[] constant(0)
  %t0 = (s32[], f32[10,4]{1,0}) tuple(%c, %a)
  %w = (s32[], f32[10,4]{1,0}) while(%t0), condition=%cond, body=%body@
  ROOT %o = f32[10,4]{1,0} get-tuple-element(%w), index=1
}
"""


SCATTER = """
%put (p.0: f32[10,4], p.1: s32[2,1], p.2: f32[2,4]) -> f32[10,4] {
  %p.0 = f32[10,4]{1,0} parameter(0)
  %p.1 = s32[2,1]{1,0} parameter(1)
  %p.2 = f32[2,4]{1,0} parameter(2)
  ROOT %s = f32[10,4]{1,0} scatter(%p.0, %p.1, %p.2), update_window_dims={1}
}

ENTRY %main (a: f32[10,4], i: s32[2,1], u: f32[2,4]) -> f32[10,4] {
  %a = f32[10,4]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %u = f32[2,4]{1,0} parameter(2)
  ROOT %f = f32[10,4]{1,0} fusion(%a, %i, %u), kind=kInput, calls=%put
}
"""


def entry(*lines):
    """The kernels of a program of these operations."""
    return hlo.kernels("ENTRY %main (a: f32[1]) -> f32[1] {\n  " + "\n  ".join(lines) + "\n}\n")


def test_a_loop_that_reads_and_writes_slices():
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    read, written = hlo.kernels(TABLES + LOOP.replace("@", known))
    assert (read.times, read.kind, read.open_loop) == (5, "fusion", False)
    assert read.bytes == 16 + 4 + 16  # a row, the index, the row again
    assert written.bytes == 16 + 4 + 16  # nothing of the array that it updates
    assert read.source == "core/fused.py:7 a"  # the line of the package, not JAX's own
    assert written.source == "new"


def test_a_loop_whose_condition_says_how_often_it_runs():
    condition = """
%cond (t: (s32[], f32[10,4])) -> pred[] {
  %n = s32[] constant(9)
  %t = (s32[], f32[10,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %c = pred[] compare(%i, %n), direction=LT
}
"""
    found = hlo.kernels(condition + LOOP.replace("@", ""))
    assert [(k.times, k.open_loop) for k in found] == [(9, False), (9, False)]


def test_a_loop_of_unknown_length_counts_as_often_as_one_says():
    found = hlo.kernels(LOOP.replace("@", ""), open_trips=7)
    assert [(k.times, k.open_loop) for k in found] == [(7, True), (7, True)]


def test_what_is_scattered_into_is_not_read_and_written_as_a_whole():
    (found,) = hlo.kernels(SCATTER)
    assert found.bytes == 8 + 32 + 32  # indices and rows, and the rows again


def test_products():
    dot, batched, cublas, convolution = entry(
        "%a = bf16[8,16]{1,0} parameter(0)",
        "%b = bf16[16,32]{1,0} parameter(1)",
        "%d = f32[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "%e = bf16[4,8,16]{2,1,0} parameter(2)",
        "%f = bf16[4,16,2]{2,1,0} parameter(3)",
        "%g = f32[4,8,2]{2,1,0} dot(%e, %f), lhs_batch_dims={0}, lhs_contracting_dims={2}",
        '%h = (f32[8,32]{1,0}, s8[99]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
        'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}',
        "%i = f32[8,32]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, "
        'backend_config={"estimated_cycles":"3000"}',
    )
    assert dot.flops == cublas.flops == convolution.flops == 2 * 8 * 16 * 32
    assert batched.flops == 2 * 4 * 8 * 16 * 2
    assert dot.bytes == 2 * (8 * 16 + 16 * 32) + 4 * 8 * 32
    assert cublas.kind == "__cublas$gemm"
    assert convolution.cycles == 3000
    assert hlo.seconds(convolution, CHIPS["v5e"]) == 3000 / 1.5e9
    assert hlo.seconds(dot, CHIPS["h100"]) == LAUNCH + dot.bytes / CHIPS["h100"].streamed


def test_a_window_over_a_batch_is_not_summed():
    spatial = "window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf"
    (found,) = entry(
        "%a = bf16[4,8,16]{2,1,0} parameter(0)",
        "%b = bf16[4,16,2]{2,1,0} parameter(1)",
        f"%c = bf16[4,8,2]{{2,1,0}} convolution(%a, %b), {spatial}",
    )
    assert found.flops == 2 * 4 * 8 * 16 * 2


def test_a_window_over_padding_is_not_summed():
    """How a TPU's compiler writes a product whose columns are heads times their size."""
    spatial = "window={size=1x6 pad=0_0x5_5 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f"
    (found,) = entry(
        "%a = bf16[4,8,16,1]{2,1,0,3} parameter(0)",
        "%b = bf16[6,2,16,1]{2,1,0,3} parameter(1)",
        f"%c = bf16[4,8,6,2]{{3,1,2,0}} convolution(%a, %b), {spatial}",
    )
    assert found.flops == 2 * (4 * 8) * 16 * (6 * 2)


@pytest.mark.parametrize(
    ("window", "places", "summed"),
    [("size=3", 5, 3), ("size=3 pad=1_1", 7, 19 / 7), ("size=3 stride=2", 3, 3)],
)
def test_a_real_window_is_summed(window, places, summed):
    (found,) = entry(
        "%a = f32[2,7,4]{2,1,0} parameter(0)",
        "%b = f32[3,4,8]{2,1,0} parameter(1)",
        f"%c = f32[2,{places},8]{{2,1,0}} convolution(%a, %b), window={{{window}}}, "
        "dim_labels=b0f_0io->b0f",
    )
    assert found.flops == pytest.approx(2 * (2 * places * 8) * 4 * summed)


def test_attention_counts_the_half_that_is_not_masked():
    forward, backward, tpu = entry(
        "%q = bf16[2,64,4,8]{3,2,1,0} parameter(0)",
        "%f = (bf16[2,64,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), "
        'custom_call_target="__cudnn$fmhaSoftmax"',
        "%b = (bf16[2,64,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), "
        'custom_call_target="__cudnn$fmhaSoftmaxBackward"',
        "%i = s32[2,64]{1,0} parameter(1)",
        "%t = bf16[2,4,64,8]{3,2,1,0} parameter(2)",
        "%splash_mha_fwd.1 = bf16[2,4,64,8]{3,2,1,0} custom-call(%i, %t, %t, %t), "
        'custom_call_target="tpu_custom_call"',
    )
    assert forward.flops == 2 * 2 * (2 * 64 * 4 * 8) * 64 / 2
    assert backward.flops == 2.5 * forward.flops
    assert tpu.flops == forward.flops


def test_attention_of_one_row_has_no_axis_for_it():
    (found,) = entry(
        "%m = s8[1,4,4]{2,1,0} parameter(0)",
        "%q = bf16[4,64,8]{2,1,0} parameter(1)",
        "%s = s32[64,128]{1,0} parameter(2)",
        "%splash_mha_fwd.1 = (f32[64,8]{1,0}, bf16[4,64,8]{2,1,0}) custom-call(%m, %m, %q, %q, %q, "
        '%s), custom_call_target="tpu_custom_call"',
    )
    assert found.flops == 2 * 2 * (64 * 4 * 8) * 64 / 2


def test_what_devices_send():
    summed, gathered, waited = entry(
        "%a = f32[100]{0} parameter(0)",
        "%s = f32[100]{0} all-reduce(%a), to_apply=%add",
        "%g = (f32[100]{0}, f32[800]{0}) all-gather-start(%a), dimensions={0}",
        "%d = f32[800]{0} all-gather-done(%g)",
        "%c = f32[800]{0} copy(%d)",
    )
    assert summed.sent == 2 * 400
    assert gathered.sent == 3200
    assert (waited.kind, waited.sent) == ("copy", 0)


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.kernels("module {}")


@pytest.mark.parametrize(("shape", "bytes"), [("(bf16[3]{0}, pred[])", 7), ("f8e4m3fn[2,2]", 4)])
def test_sizes(shape, bytes):
    assert hlo.size(shape) == bytes
