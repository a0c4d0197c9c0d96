"""What is read from a compiled program for a TPU: loops, kernels, collectives, parts."""

import numpy as np
import pytest

from data.errors import DataError
from hvp_jax.bench.tpu import compilation, estimate, parts, program
from hvp_jax.monitoring.accelerators import PEAKS, TPUS

PEAK, CHIP = PEAKS["TPU v5 lite"], TPUS["v5e"]
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
# A loop of six iterations, whose limit is in its condition, around a loop from 2 to 12 by 2, whose
# start and limit enter by the carry.
LOOPS = f"""HloModule jit_f, is_scheduled=true

%inner_body (p.1: (s32[], s32[], f32[8,128])) -> (s32[], s32[], f32[8,128]) {{
  %p.1 = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)S(1)}}) parameter(0)
  %two = s32[] constant(2)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n.1 = s32[] get-tuple-element(%p.1), index=1
  %x.1 = f32[8,128] get-tuple-element(%p.1), index=2
  %next.1 = s32[] add(%i.1, %two)
  %y.1 = f32[8,128] fusion(%x.1), kind=kLoop, calls=%fused, \
metadata={{op_name="jit(f)/text/tower/while/body/blocks/qkv/dot_general"}}, {CYCLES % 1000}
  ROOT %t.1 = (s32[], s32[], f32[8,128]) tuple(%next.1, %n.1, %y.1)
}}

%inner_condition (p.2: (s32[], s32[], f32[8,128])) -> pred[] {{
  %p.2 = (s32[], s32[], f32[8,128]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %n.2 = s32[] get-tuple-element(%p.2), index=1
  ROOT %less.2 = pred[] compare(%i.2, %n.2), direction=LT
}}

%outer_body (p.3: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %p.3 = (s32[], f32[8,128]) parameter(0)
  %one = s32[] constant(1)
  %start = s32[] constant(2)
  %limit = s32[] constant(12)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %x.3 = f32[8,128] get-tuple-element(%p.3), index=1
  %copied = s32[] copy(%limit)
  %enter.3 = (s32[], s32[], f32[8,128]) tuple(%start, %copied, %x.3)
  %while.3 = (s32[], s32[], f32[8,128]) while(%enter.3), condition=%inner_condition, \
body=%inner_body
  %y.3 = f32[8,128] get-tuple-element(%while.3), index=2
  %next.3 = s32[] add(%i.3, %one)
  ROOT %t.3 = (s32[], f32[8,128]) tuple(%next.3, %y.3)
}}

%outer_condition (p.4: (s32[], f32[8,128])) -> pred[] {{
  %p.4 = (s32[], f32[8,128]) parameter(0)
  %six = s32[] constant(6)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  ROOT %less.4 = pred[] compare(%i.4, %six), direction=LT
}}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {{
  %x = f32[8,128] parameter(0)
  %zero = s32[] constant(0)
  %enter = (s32[], f32[8,128]) tuple(%zero, %x)
  %while = (s32[], f32[8,128]) while(%enter), condition=%outer_condition, body=%outer_body
  ROOT %y = f32[8,128] get-tuple-element(%while), index=1
}}
"""


def entry(*lines, before=""):
    inside = "\n".join(f"  {line}" for line in lines)
    return f"{before}\nENTRY %main (x: f32[1024,128]) -> f32[] {{\n{inside}\n}}\n"


def estimator(text, chips=4):
    return estimate.Estimator(program.parse(text), PEAK, CHIP, chips)


def test_nested_loops_multiply_and_starts_and_steps_count():
    counted = estimator(LOOPS)
    np.testing.assert_allclose(counted.total().seconds(), 6 * 5 * 1000 / CHIP.clock, rtol=1e-4)
    assert next(iter(counted.total().by("part"))) == "text_products"
    assert counted.loops_without_count == []


def test_the_greatest_number_of_cycles_is_no_estimate():
    """TPU's compiler writes it for some convolutions; their bytes are counted."""
    counted = estimator(LOOPS.replace('cycles":"1000"', f'cycles":"{2**63 - 1}"')).total()
    moved = 2 * 8 * 128 * 4
    np.testing.assert_allclose(counted.seconds(), 6 * 5 * moved / PEAK.bandwidth, rtol=0.01)
    assert "text_products" in counted.by("part", estimate.BYTES)


def test_a_loop_of_unknown_length_is_named():
    counted = estimator(LOOPS.replace("direction=LT", "direction=NE"))
    np.testing.assert_allclose(counted.total().seconds(), 1000 / CHIP.clock, rtol=1e-4)
    assert sorted(counted.loops_without_count) == ["while", "while.3"]


def test_a_conditional_costs_its_longest_branch_and_calls_are_followed():
    def branch(name, cycles):
        lines = f"  %p.{name} = f32[8] parameter(0)\n  ROOT %c.{name} = f32[8] copy(%p.{name}), "
        return f"%{name} (p.{name}: f32[8]) -> f32[8] {{\n{lines}{CYCLES % cycles}\n}}\n"

    text = entry(
        "%x = f32[8] parameter(0)",
        "%i = s32[] constant(0)",
        "%either = f32[8] conditional(%i, %x, %x), branch_computations={%short, %long}",
        "%call = f32[8] call(%either), to_apply=%short",
        "ROOT %run = f32[8] async-start(%call), calls=%short",
        before=branch("short", 10) + branch("long", 300),
    )
    np.testing.assert_allclose(estimator(text).total().seconds(), 320 / CHIP.clock)


KERNEL = (
    "%attention.3 = bf16[1024,128]{1,0:T(8,128)(2,1)} custom-call(%x), "
    'custom_call_target="tpu_custom_call", '
    'metadata={op_name="jit(f)/visual/tower/attention/fused/pallas_call"}, '
    'backend_config={"custom_call_config":{"body":"TUzv"COST}}'
)


def test_a_kernel_costs_its_arithmetic_plus_its_bytes():
    cost = ',"cost_estimate":{"flops":"197000000","transcendentals":"1","bytes_accessed":"1"}'
    total = estimator(
        entry("%x = f32[1024,128] parameter(0)", "ROOT " + KERNEL.replace("COST", cost))
    ).total()
    moved = 1024 * 128 * (4 + 2)
    expected = 1e-6 + moved / PEAK.bandwidth
    np.testing.assert_allclose(total.seconds(), expected)
    np.testing.assert_allclose(total.by("name", estimate.KERNEL)["fused"].seconds, expected)
    assert list(total.by("part")) == ["vision_attention"]


def test_a_kernel_without_a_cost_estimate_is_refused():
    text = entry("%x = f32[1024,128] parameter(0)", "ROOT " + KERNEL.replace("COST", ""))
    with pytest.raises(DataError, match="kernel fused has no cost estimate.*CostEstimate"):
        estimator(text).total()


def test_collectives_by_the_bytes_that_a_chip_sends():
    def gather(name):
        inside = 'ROOT %g = f32[32,4] all-gather(%q), frontend_attributes={chain_id="0"}'
        head = f"%{name} (q: f32[8,4]) -> f32[32,4] {{\n  %q = f32[8,4] parameter(0)\n"
        return f"{head}  {inside}\n}}\n"

    scatter = (
        "%all-reduce-scatter (r: f32[32,4]) -> f32[8,4] {\n  %r = f32[32,4] parameter(0)\n"
        "  %s = f32[32,4] all-reduce(%r), to_apply=%sum\n"
        "  ROOT %d = f32[8,4] dynamic-slice(%s, %s), dynamic_slice_sizes={8,4}\n}\n"
    )
    total = estimator(
        entry(
            "%x = f32[8,4] parameter(0)",
            "%y = f32[32,4] parameter(1)",
            "%async-collective-start = f32[32,4] fusion(%x), calls=%step",
            f"%work = f32[32,4] fusion(%x), calls=%async_collective_fusion.1, {CYCLES % 100}",
            "%async-collective-done = f32[32,4] fusion(%x), calls=%step",
            "%all = f32[32,4] all-reduce(%y), to_apply=%sum",
            "ROOT %part = f32[8,4] fusion(%y), kind=kCustom, calls=%all-reduce-scatter",
            before=gather("step") + gather("async_collective_fusion.1") + scatter,
        )
    ).total()
    complete = 32 * 4 * 4
    sent = {
        (estimate.ASYNC_COLLECTIVE, "all-gather"): 3 / 4 * complete,
        (estimate.COLLECTIVE, "all-reduce"): 6 / 4 * complete,
        (estimate.COLLECTIVE, "reduce-scatter"): 3 / 4 * complete,
    }
    found = {(i.source, i.name): a for i, a in total.items() if i.part == parts.EXCHANGE}
    assert found.keys() == sent.keys()
    for key, amount in found.items():
        assert amount[:2] == (1, complete) and amount.largest == complete
        np.testing.assert_allclose(amount.seconds, sent[key] / CHIP.link)
    np.testing.assert_allclose(total.seconds(estimate.CYCLES), 100 / CHIP.clock)


def test_copies_are_counted_apart_and_other_work_without_cycles_by_its_bytes():
    total = estimator(
        entry(
            "%x = f32[1024,128] parameter(0)",
            "%copy = (f32[1024,128]{1,0:S(1)}, f32[1024,128], u32[]) copy-start(%x)",
            "%copied = f32[1024,128]{1,0:S(1)} copy-done(%copy)",
            "ROOT %sorted = f32[1024,128] sort(%copied), dimensions={1}",
        )
    ).total()
    size = 1024 * 128 * 4
    np.testing.assert_allclose(total.seconds(estimate.COPY), size / PEAK.bandwidth)
    np.testing.assert_allclose(total.seconds(), 2 * size / PEAK.bandwidth)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jvp(HVPNet)/HVPNet.encode_video/visual/tower/while/body/blocks/qkv/dot_general", 0),
        ("transpose(jvp(HVPNet))/x/visual/tower/while/body/checkpoint/blocks/attention/mul", 1),
        ("jvp(HVPNet)/HVPNet.encode_video/distill/stage_0/attention/exp", 2),
        ("jvp(HVPNet)/HVPNet.encode_video/distill/stage_2/cluster/top_k", 3),
        ("transpose(jvp(scoring))/while/body/closed_call/checkpoint/acm,cm->ac/dot_general", 4),
        ("shard_map/optimizer/div", 5),
        ("something/new", 6),
    ],
)
def test_the_part_of_the_model_by_the_name_of_the_operation(name, part):
    expected = ("vision_products", "vision_attention", "distillation_attention")
    expected += ("distillation_clustering", "scoring", "optimizer", parts.OTHER)
    assert parts.part_of(f"jit(train_step)/shard_map/{name}") == expected[part]


def test_the_largest_batch_is_found_by_bisection():
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= 40

    assert compilation.largest_that_fits(fits, 128, 4) == 40
    assert len(tried) == 5
    assert compilation.largest_that_fits(lambda batch: False, 128, 4) == 0


def test_the_memory_that_the_compiler_names():
    ran_out = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G"
    assert compilation.used_memory(ran_out) == 20.5 * 2**30
    temporaries = "the total memory required for HLO temporaries (576.02G) exceeds"
    assert compilation.used_memory(temporaries) == 576.02 * 2**30
    assert compilation.used_memory("something else") is None
