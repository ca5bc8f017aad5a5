"""How long a program takes by its order: exchanges that hide behind work, and those that are waited for."""

import pytest

from unimp_jax.planning.chips import CHIPS
from unimp_jax.planning.program import read_program
from unimp_jax.planning.schedule import schedule_of
from unimp_jax.sharding import MeshConfig, make_mesh

CHIP = CHIPS["v5e"]
GROUP = "replica_groups=[2,4]<=[8], dimensions={0}"
GATHER = 3 * 2**20 / CHIP.ring_bandwidth
"""Seconds in which a device sends its MiB to three others, one after the other."""


def of(*lines, others=""):
    body = "".join(f"  {line}\n" for line in ("%x = f32[262144]{0} parameter(0)", *lines))
    program = read_program(f"{others}ENTRY %main (x: f32[262144]) -> f32[] {{\n{body}}}\n")
    return schedule_of(program, make_mesh(MeshConfig(data=2, fsdp=4)), CHIP)


def work(name, seconds):
    """An instruction that takes so long."""
    cycles = round(seconds * CHIP.clock)
    return f'%{name} = f32[8]{{0}} fusion(%x), kind=kLoop, backend_config={{"estimated_cycles":"{cycles}"}}'


def test_what_is_not_started_early_is_waited_for():
    schedule = of(work("a", 1e-3), f"%g = f32[1048576]{{0}} all-gather(%x), channel_id=1, {GROUP}", work("b", 1e-3))
    assert schedule.work == pytest.approx(2e-3)
    assert schedule.waiting == pytest.approx(GATHER)


@pytest.mark.parametrize("beside", [0.25, 2.0])
def test_work_hides_what_goes_on_beside_it(beside):
    schedule = of(
        f"%s = (f32[262144]{{0}}, f32[1048576]{{0}}) all-gather-start(%x), channel_id=1, {GROUP}",
        work("a", beside * GATHER),
        "%d = f32[1048576]{0} all-gather-done(%s)",
    )
    assert schedule.work == pytest.approx(beside * GATHER, rel=1e-3)
    assert schedule.waiting == pytest.approx(max(1 - beside, 0) * GATHER, rel=1e-3)


def test_one_exchange_waits_for_the_other():
    schedule = of(
        f"%s = (f32[262144]{{0}}, f32[1048576]{{0}}) all-gather-start(%x), channel_id=1, {GROUP}",
        work("a", 0.5 * GATHER),
        f"%g = f32[1048576]{{0}} all-gather(%x), channel_id=2, {GROUP}",
        "%d = f32[1048576]{0} all-gather-done(%s)",
    )
    assert schedule.waiting == pytest.approx(1.5 * GATHER, rel=1e-3)


def test_the_chips_own_exchanges_start_and_end_in_fusions():
    gather = f"  %g = f32[1048576]{{0}} all-gather(%p), channel_id=7, {GROUP}\n"
    fused = "".join(
        f"%{name} (p: f32[262144]) -> f32[1048576] {{\n  %p = f32[262144]{{0}} parameter(0)\n{gather}{end}}}\n\n"
        for name, end in (
            ("starts", '  ROOT %c = f32[8]{0} custom-call(%g), custom_call_target="AsyncCollectiveStart"\n'),
            ("async_collective_fusion.1", "  ROOT %c = f32[8]{0} negate(%g)\n"),
            ("ends", '  ROOT %c = f32[8]{0} custom-call(%g), custom_call_target="AsyncCollectiveDone"\n'),
        )
    )
    schedule = of(
        "%s = f32[8]{0} fusion(%x), kind=kCustom, calls=%starts",
        work("f", 0.25 * GATHER).replace("kind=kLoop", "kind=kOutput, calls=%async_collective_fusion.1"),
        "%d = f32[8]{0} fusion(%s), kind=kCustom, calls=%ends",
        others=fused,
    )
    assert schedule.work == pytest.approx(0.25 * GATHER, rel=1e-3)
    assert schedule.waiting == pytest.approx(0.75 * GATHER, rel=1e-3)


def test_kernels_take_what_they_say():
    call = (
        '%k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{'
    )
    told = of(f'{call}"body":"TUz","cost_estimate":{{"flops":"1000000"}}}}}}')
    assert told.kernels_told
    assert told.work == pytest.approx(1e6 / CHIP.flops / CHIP.kernel_share)
    assert not of(f'{call}"body":"TUz"}}}}').kernels_told
