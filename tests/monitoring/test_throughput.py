"""Throughput, waits, shares and memory, with a fake clock."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from hvp_jax.monitoring import throughput
from hvp_jax.monitoring.accelerators import PEAKS


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is the time in seconds."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def device(kind="TPU v4", platform="tpu", process=0, **memory):
    return SimpleNamespace(
        device_kind=kind, platform=platform, process_index=process, memory_stats=lambda: memory
    )


def test_a_measurement_covers_the_time_since_the_last_one(clock):
    run = throughput.ThroughputMeter(100, 32, 1e12, [device(), device()])
    with run.waiting():
        clock.now += 1
    clock.now += 3
    # 10 steps in 4 s: 2.5 TFLOP/s, where the two devices have a peak of 550.
    assert run.measure(110) == {
        "steps/s": 2.5,
        "examples/s": 80.0,
        "input_wait_share": 0.25,
        "peak_flops_share": 2.5 / 550,
    }
    clock.now += 2
    assert run.measure(112) == {
        "steps/s": 1.0,
        "examples/s": 32.0,
        "input_wait_share": 0.0,
        "peak_flops_share": 1 / 550,
    }


def test_paused_time_does_not_count(clock):
    run = throughput.ThroughputMeter(0, 4, 1.0, jax.devices())
    clock.now += 1
    with run.paused():
        clock.now += 60
    with run.waiting():
        clock.now += 1
        with run.paused():
            clock.now += 60
    with pytest.raises(RuntimeError), run.paused():  # like an evaluation that fails
        clock.now += 60
        raise RuntimeError
    row = run.measure(4)
    assert (row["steps/s"], row["examples/s"], row["input_wait_share"]) == (2.0, 8.0, 0.5)
    clock.now += 2
    assert run.measure(5)["steps/s"] == 0.5


def test_a_pause_starts_when_the_last_step_is_done(clock, monkeypatch):
    def wait(tree):
        assert tree == "state"
        clock.now += 5

    run = throughput.ThroughputMeter(0, 4, 1.0, jax.devices())
    monkeypatch.setattr(jax, "block_until_ready", wait)
    with run.paused("state"):
        clock.now += 60
    assert run.measure(10)["steps/s"] == 2.0


def test_peak_flops_by_kind_and_precision():
    two = [device("NVIDIA A100-SXM4-80GB"), device("NVIDIA H100 80GB HBM3")]
    assert throughput.peak_flops(two, "bfloat16") == 312e12 + 989e12
    assert throughput.peak_flops(two, "float32") == 156e12 + 494e12
    assert throughput.peak_flops(two, "float64") is None
    assert (
        throughput.peak_flops([*two, device("NVIDIA H100 80GB HBM3 MIG 1g.10gb")], "bfloat16")
        is None
    )
    assert throughput.peak_flops(jax.devices(), "bfloat16") is None
    assert PEAKS["TPU v5 lite"].flops < PEAKS["TPU v4"].flops < PEAKS["TPU v5"].flops


def test_memory_is_that_of_the_local_device_that_uses_the_most():
    devices = [
        device(peak_bytes_in_use=2**30),
        device(peak_bytes_in_use=3 * 2**30),
        device(process=1, peak_bytes_in_use=9 * 2**30),
    ]
    assert throughput.ThroughputMeter(0, 1, 1.0, devices).measure(1)["memory_GiB"] == 3.0
    assert "memory_GiB" not in throughput.ThroughputMeter(0, 1, 1.0, [device()]).measure(1)


def test_memory_on_a_cpu_is_that_of_the_process():
    row = throughput.ThroughputMeter(0, 1, 1.0, jax.devices()).measure(1)
    assert "peak_flops_share" not in row
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc to compare with")
    (peak,) = re.findall(r"VmHWM:\s+([0-9]+) kB", status.read_text())
    assert row["memory_GiB"] == pytest.approx(int(peak) / 2**20, rel=0.05)
