"""cost.json from the rows of a run."""

import json

import jax
import pytest

from data.errors import DataError
from hvp_jax.evaluation import costs
from hvp_jax.models.hvpnet import HVPNet, init_params
from tests.helpers.small import SIZES


def test_the_cost_is_that_of_the_logged_rows(tmp_path):
    rows = [{"step": i, "measured": {"steps/s": s}} for i, s in enumerate((1.0, 4.0, 5.0), 1)]
    rows[1]["measured"]["memory_GiB"] = 2.0
    rows.append({"step": 3, "text_to_video": {}})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = HVPNet(SIZES, taps=(3,), stages=1)
    assert costs.read(tmp_path) == {}
    costs.write(tmp_path, model, 1e9, jax.devices()[:2])
    params = jax.eval_shape(lambda: init_params(model, 0))
    assert costs.read(tmp_path) == {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "flops_per_step": 1e9,
        "step_ms": 250.0,
        "peak_memory_mib": 2048.0,
        "device": "cpu",
        "devices": 2,
    }
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    costs.write(tmp_path, model, 1e9, jax.devices()[:1])
    cost = costs.read(tmp_path)
    assert cost["step_ms"] is None and cost["peak_memory_mib"] is None
    costs.remove(tmp_path)
    assert costs.read(tmp_path) == {}
    (tmp_path / "cost.json").write_text("[1]")
    with pytest.raises(DataError, match="cost.json is damaged"):
        costs.read(tmp_path)
