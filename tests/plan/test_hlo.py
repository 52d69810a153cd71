"""Costs from HLO text: products, loops, slices, collectives, each against numbers worked by hand."""

import jax
import jax.numpy as jnp
import pytest

from pbrl_jax.plan.hlo import Cost, Walker, group_size, program_cost, valid_positions
from pbrl_jax.plan.hlo_text import device_groups, network_share, parse_instruction

CONVOLUTION = """HloModule m

ENTRY %main (a: bf16[8,16,32], b: bf16[8,32,64]) -> bf16[8,16,64] {
  %a = bf16[8,16,32]{2,1,0} parameter(0)
  %b = bf16[8,32,64]{2,1,0} parameter(1)
  ROOT %c = bf16[8,16,64]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""
SHARDED = """HloModule m

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%body (p: (s32[], f32[4,100])) -> (s32[], f32[4,100]) {
  %p = (s32[], f32[4,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[4,100]{1,0} get-tuple-element(%p), index=1
  %r = f32[4,100]{1,0} all-reduce(%v), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[4,100]{1,0}) tuple(%i, %r)
}

%condition (p: (s32[], f32[4,100])) -> pred[] {
  %p = (s32[], f32[4,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[4,25]) -> (s32[], f32[4,100]) {
  %a = f32[4,25]{1,0} parameter(0)
  %z = s32[] constant(0)
  %g = f32[4,100]{1,0} all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}
  %t = (s32[], f32[4,100]{1,0}) tuple(%z, %g)
  ROOT %w = (s32[], f32[4,100]{1,0}) while(%t), condition=%condition, body=%body
}
"""


def compiled(function, *arguments) -> Cost:
    return program_cost(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_batched_product_written_as_a_convolution():
    """8 products of [16, 32] x [32, 64]; the window that spells them reaches over mostly holes."""
    assert program_cost(CONVOLUTION).flops == 8 * 2 * 16 * 32 * 64


def test_a_counter_that_begins_later_or_counts_by_two():
    """The TPU compiler notes no trip count: it follows from the counter's start, its step and the limit."""
    later = SHARDED.replace("%z = s32[] constant(0)", "%z = s32[] constant(1)")
    assert program_cost(later).collectives["all-reduce"] == 2 * 1600 * 2 * 3 / 4
    by_two = SHARDED.replace("tuple(%i, %r)", "tuple(%j, %r)").replace("constant(3)", "constant(8)")
    by_two = by_two.replace("  %v =", "  %two = s32[] constant(2)\n  %j = s32[] add(%i, %two)\n  %v =")
    assert program_cost(by_two).collectives["all-reduce"] == 4 * 1600 * 2 * 3 / 4


def test_positions_of_a_window():
    """A plain window of 3 over 5 with padding 1 misses one at each end; holes leave one in `hole`."""
    assert valid_positions(5, 3, 5, stride=1, low=1, hole=1, spread=1) == 13
    assert valid_positions(8, 8, 8, stride=7, low=0, hole=8, spread=1) == 8
    assert valid_positions(3000, 3000, 3000, stride=2999, low=0, hole=3000, spread=1) == 3000


def test_a_loop_of_unknown_end_within_another_runs_once():
    def search(x, limit):
        def inner(s):
            return jax.lax.while_loop(lambda t: t.sum() < limit, lambda t: t @ t, s)

        return jax.lax.while_loop(lambda s: s.sum() < limit, inner, x)

    text = jax.jit(search).lower(jnp.ones((16, 16)), 3.0).compile().as_text()
    assert program_cost(text, 7).flops == 7 * 2 * 16**3 and program_cost(text, 7).unknown_loops == 2


NESTED = """HloModule m

%inner (q: bf16[8,4,4], i: s32[]) -> bf16[1,4,4] {
  %q = bf16[8,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %d = bf16[1,4,4]{2,1,0} dynamic-slice(%q, %i, %z, %z), dynamic_slice_sizes={1,4,4}
}

%outer (p: bf16[8,16], x: bf16[2,4], n: s32[]) -> bf16[2,4] {
  %p = bf16[8,16]{1,0} parameter(0)
  %x = bf16[2,4]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %b = bf16[8,4,4]{2,1,0} bitcast(%p)
  %w = bf16[1,4,4]{2,1,0} fusion(%b, %n), kind=kLoop, calls=%inner
  ROOT %c = bf16[2,4]{1,0} convolution(%x, %w), dim_labels=bf_0io->0bf
}

ENTRY %main (p: bf16[8,16], x: bf16[2,4], n: s32[]) -> bf16[2,4] {
  %p = bf16[8,16]{1,0} parameter(0)
  %x = bf16[2,4]{1,0} parameter(1)
  %n = s32[] parameter(2)
  ROOT %f = bf16[2,4]{1,0} fusion(%p, %x, %n), kind=kOutput, calls=%outer
}
"""


def test_a_layers_weights_are_read_alone():
    """One of eight layers of [4, 4], two rows in and out, an index: also where the slice hides in a fusion within."""
    walker = Walker(NESTED)
    fusion = walker.computations["main"]["f"]
    assert walker.fusion_bytes(fusion, walker.computations["main"], "outer") == 2 * 16 + 2 * 2 * 8 + 4
    whole = NESTED.replace("dynamic-slice(%q, %i, %z, %z), dynamic_slice_sizes={1,4,4}", "add(%q, %q)")
    walker = Walker(whole)
    assert walker.fusion_bytes(fusion, walker.computations["main"], "outer") == 2 * 128 + 2 * 2 * 8


def test_copies_from_the_host_are_counted_apart():
    text = """HloModule m

ENTRY %main (a: f32[100]) -> f32[100] {
  %a = f32[100]{0:T(128)S(5)} parameter(0)
  %s = (f32[100]{0:T(128)}, f32[100]{0:T(128)S(5)}, u32[]{:S(2)}) copy-start(%a)
  ROOT %d = f32[100]{0:T(128)} copy-done(%s)
}
"""
    cost = program_cost(text)
    assert (cost.host_bytes, cost.bytes) == (400, 400)


STARTED = """HloModule m

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%scatter (a: f32[8,100], i: s32[]) -> f32[2,100] {
  %a = f32[8,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[8,100]{1,0} all-reduce(%a), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %d = f32[2,100]{1,0} dynamic-slice(%r, %i), dynamic_slice_sizes={2,100}
}

ENTRY %main (a: f32[8,100], i: s32[]) -> f32[2,100] {
  %a = f32[8,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %c = (f32[8,100]{1,0}, f32[8,100]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %b = f32[8,100]{1,0} copy-done(%c)
  %l = (f32[8,100]{1,0}, f32[1,100]{1,0}, s32[]) slice-start(%b), slice={[0:1], [0:100]}
  %e = f32[1,100]{1,0} slice-done(%l)
  %g = (f32[1,100]{1,0}, f32[4,100]{1,0}) all-gather-start(%e), replica_groups={{0,1,2,3}}, dimensions={0}
  %h = f32[4,100]{1,0} all-gather-done(%g)
  ROOT %f = f32[2,100]{1,0} fusion(%b, %i), kind=kCustom, calls=%scatter
}
"""


def test_groups_of_chips_are_read_in_every_form():
    forms = {
        "replica_groups=[2,4]<=[8], x": 4, "replica_groups={{0,1,2},{3,4,5}}": 3,
        "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x": 4,
        "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}": 8,
        "replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}": 4,
    }  # fmt: skip
    assert {form: group_size(form) for form in forms} == forms


def test_members_of_groups_are_read_in_every_form():
    forms = {
        "replica_groups=[2,2]<=[4], x": [[0, 1], [2, 3]], "replica_groups={{0,2},{1,3}}": [[0, 2], [1, 3]],
        "replica_groups=[2,2]<=[2,2]T(1,0)": [[0, 2], [1, 3]],
        "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}": [[0, 2], [1, 3]],
        "replica_groups=mesh['axis_0'=4] {'axis_0':(1)2}": [[0, 2], [1, 3]],
    }  # fmt: skip
    assert {form: [group.tolist() for group in device_groups(form)] for form in forms} == forms


def test_what_passes_the_network():
    """Boxes of four chips. A ring of eight leaves each box once for its four members; groups that lie in one box do not
    leave it; a member that is alone in its box sends all by the network."""
    assert network_share("replica_groups=[1,8]<=[8]", 4) == 1 / 4
    assert network_share("replica_groups=[2,4]<=[8]", 4) == 0
    assert network_share("replica_groups=[4,2]<=[2,4]T(1,0)", 4) == 1
    assert network_share("source_target_pairs={{0,1},{1,2},{2,3},{3,4}}", 4) == 1 / 4
    within, across = program_cost(SHARDED, box=4), program_cost(SHARDED, box=2)
    assert (within.network_bytes, across.network_bytes) == (0, across.collective_bytes / 2)
    assert within.collectives == across.collectives


def test_what_ends_elsewhere_counts_once_and_a_reduction_that_is_sliced_as_one():
    """A copy reads and writes 3200 bytes, a slice 400, a gathering reads 400 and writes 1600; of a sum of 3200 over
    four chips each sends three quarters once, and keeps one."""
    cost = program_cost(STARTED)
    assert cost.bytes == 2 * 3200 + 2 * 400 + 400 + 1600 + 3200 + 4 + 800
    assert dict(cost.collectives) == {"all-gather": 1600 * 3 / 4, "reduce-scatter": 3200 * 3 / 4}


SPLASH = """HloModule m

ENTRY %main (q: bf16[2,4,256,128], k: bf16[2,2,384,128]) -> bf16[2,4,256,128] {
  %q = bf16[2,4,256,128]{3,2,1,0} parameter(0)
  %k = bf16[2,2,384,128]{3,2,1,0} parameter(1)
  %f = bf16[2,4,256,128]{3,2,1,0} custom-call(%q, %k, %k), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128, \\"block_kv\\": 384}"
}}, metadata={op_name="jit(f)/attention_pairs_1000/vmap(x)/splash_mha_fwd_segmented_residuals/pallas_call"}
  ROOT %c = bf16[2,4,256,128]{3,2,1,0} copy(%f)
}
"""


def test_kernels_of_splash_are_counted_by_their_pairs():
    """Two products of 128 channels for 1000 pairs of 2 rows and 4 heads; keys and values once more for each block of
    128 queries. The lines after the kernel's notes belong to the computation, too."""
    cost, size = program_cost(SPLASH), 2 * 4 * 256 * 128 * 2
    assert cost.flops == 2 * 2 * 128 * 1000 * 8
    assert cost.bytes == pytest.approx(2 * size + 2 * (2 * 2 * 384 * 128 * 2) + 2 * 2 * 128 * 1000 / 128 * 8 + 2 * size)


def test_what_a_kernel_writes_in_place_is_not_counted():
    """Of its arguments of 400 and 40 bytes it writes into the first."""
    text = """HloModule m

ENTRY %main (c: f32[100], n: f32[10]) -> f32[100] {
  %c = f32[100]{0} parameter(0)
  %n = f32[10]{0} parameter(1)
  ROOT %w = f32[100]{0} custom-call(%c, %n), custom_call_target="x", output_to_operand_aliasing={{}: (0, {})}
}
"""
    assert program_cost(text).bytes == 40


def test_collectives_count_as_often_as_their_loop_runs():
    cost = program_cost(SHARDED)
    whole = 4 * 100 * 4
    assert cost.collectives["all-gather"] == whole * 3 / 4
    assert cost.collectives["all-reduce"] == 3 * whole * 2 * 3 / 4
    assert cost.unknown_loops == 0


def test_a_scan_costs_its_length():
    """XLA's own analysis gives one iteration."""
    x, w = jnp.ones((8, 32)), jnp.ones((5, 32, 32))

    def layers(x, w):
        return jax.lax.scan(lambda h, k: (jnp.tanh(h @ k), None), x, w)[0]

    cost = compiled(layers, x, w)
    assert cost.flops == 5 * 2 * 8 * 32 * 32
    one = 4 * (32 * 32 + 2 * 8 * 32)
    assert 5 * one <= cost.bytes <= 5 * 3 * one, "a layer's weights are read once each, not the whole stack each time"


def test_a_loop_whose_end_depends_on_data_is_counted():
    def search(x, limit):
        return jax.lax.while_loop(lambda s: s.sum() < limit, lambda s: s @ s, x)

    x = jnp.ones((16, 16))
    assert compiled(search, x, 3.0).unknown_loops == 1
    text = jax.jit(search).lower(x, 3.0).compile().as_text()
    assert program_cost(text, 7).flops == 7 * 2 * 16**3


@pytest.mark.parametrize(
    "line, opcode, sizes, operands",
    [
        ("  %a.1 = f32[2,3]{1,0} add(f32[2,3]{1,0} %b, %c)", "add", [(2, 3)], ("b", "c")),
        ("  ROOT %t = (s32[], bf16[4]{0:T(256)}) tuple(%i, %v)", "tuple", [(), (4,)], ("i", "v")),
    ],
)
def test_lines_of_hlo(line, opcode, sizes, operands):
    found = parse_instruction(line)
    assert (found.opcode, [shape.sizes for shape in found.shapes], found.operands) == (opcode, sizes, operands)
    assert parse_instruction("}") is None
