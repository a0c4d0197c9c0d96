"""The plan: counts of operations and bytes, the sum of the memory parts, the table."""

import jax
import numpy as np
import pytest

from configs.base import get_config
from hvp_jax.bench import machines, plan
from hvp_jax.config.resolve import resolve
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.monitoring.accelerators import PEAKS
from tests.helpers.small import SIZES

pytestmark = pytest.mark.usefixtures("quick_compile")

MODEL = HVPNet(clip_config=SIZES, taps=(3,), stages=1)
GIB = 2**30


@pytest.fixture
def config():
    config = get_config()
    config.data.max_frames, config.data.max_words, config.train.steps = 2, 4, 10
    config.model.variant, config.model.taps = "tiny", (3,)
    return resolve(config)


def num_params():
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: init_params(MODEL, 0))))


def test_operation_count_agrees_with_xla(config):
    ratio = plan.counted_over_cost_analysis(config, MODEL)
    assert 0.6 < ratio < 1.05  # XLA counts norms etc. too, which matter in a small model


def test_text_features_and_parameters_are_exchanged(config):
    words = 16 * (4 * 32 + 4 + 32) * 4  # words, their weights, the sentence: float32
    expected = 7 / 8 * 2 * (words + 4 * num_params())
    np.testing.assert_allclose(machines.bytes_sent(config, MODEL, 16, 8), expected)


def test_step_time_from_peak_and_links(config):
    machine = machines.MACHINES["8 x H100"]
    operations = flops.training_step(MODEL, 64, 2, 4)
    times = machines.step_seconds(config, MODEL, machine, 64)
    expected = 1000 * operations / 8 / (0.4 * PEAKS["NVIDIA H100 80GB HBM3"].flops_float32)
    np.testing.assert_allclose(times["compute_ms"], expected)
    assert times["links_ms"] == 1000 * machines.bytes_sent(config, MODEL, 64, 8) / 450e9


def test_memory_is_the_sum_of_line_and_loss_and_struck_out_if_it_does_not_fit(config, monkeypatch):
    each = {"none": 1.0, "dots": 0.5, "full": 0.25}  # GiB per example

    def loss(config, model, batch, devices):
        return batch / 1024 / devices * GIB

    def memory(config, model, batch, devices):
        count = len(devices)
        return (2 + each[model.remat] * batch / count) * GIB + loss(config, model, batch, count)

    monkeypatch.setattr(plan, "step_memory", memory)
    monkeypatch.setattr(plan, "loss_memory", loss)
    monkeypatch.setattr(plan, "counted_over_cost_analysis", lambda *_: 0.9)
    monkeypatch.setattr(plan, "some_devices", lambda count: [None] * count)
    result = plan.bench_plan(config, MODEL)
    np.testing.assert_allclose(result.gib_without_examples["none"], 2)
    np.testing.assert_allclose(result.mib_each_example["dots"], 512)
    np.testing.assert_allclose(result.sum_over_whole_step, 1)
    row = result.machines["8 x H100"][1024]["GiB"]
    np.testing.assert_allclose([row[r] for r in each], [130.125, 66.125, 34.125])
    (line,) = [line for line in result.text.splitlines() if line.startswith("| 1,024 | 128 |")]
    assert line.endswith("| ~~130.1~~ | 66.1 | 34.1 |")
    assert "Computed, not measured" in result.text
