"""The loop with a step that is no model: what it reads, heeds and tells, and when it ends."""

import contextlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from hvp_jax import loop, step
from hvp_jax.errors import BadData
from hvp_jax.meter import Meter
from hvp_jax.parallel import Layout
from hvp_jax.profiling import Trace
from hvp_jax.watch import Watch

BATCH = {"video": np.zeros((8, 1), np.float32)}


class Seen(list):
    """A monitor, and checkpoints, that remember."""

    def write(self, at, row):
        self.append((at, row))

    def say(self, text):
        self.append(text)

    def progress(self, at, loss):
        pass

    def paused(self):
        return contextlib.nullcontext()

    def save(self, at, state, batches, scored):
        self.append((at, int(state.step), scored))


def fake_step(state, batch, recipe, shards):
    """Counts; the loss is no number in the steps that `recipe` names."""
    bad = jnp.isin(state.step + 1, jnp.array(recipe, jnp.int32))
    skipped = state.skipped + bad
    metrics = {"loss": jnp.where(bad, jnp.nan, 1.0), "log_scale": jnp.zeros(()), "skipped": skipped}
    stop = shards.any(batch["stop"])
    return state.replace(step=state.step + 1, skipped=skipped), metrics | {"stop": stop}


def run(monkeypatch, tmp_path, bad=(), steps=10, validate=None, stop_at=None, **train):
    monkeypatch.setattr(step, "train_step", fake_step)
    config = get_config()
    config.optim.rate, config.optim.clip_rate = 1e-3, 1e-4
    config.train.update(steps=steps, log_every=2, checkpoint_every=4, eval_every=5, **train)
    layout, stop = Layout("shard_map"), SimpleNamespace(name=None)

    def batches():
        for i in range(100):
            stop.name = "SIGTERM" if i == stop_at else stop.name
            yield BATCH

    zero = jnp.zeros((), jnp.int32)
    state = layout.place(step.State(zero, zero, {}, ()))
    shown, saved = Seen(), Seen()
    going = loop.Loop(
        config, layout, tuple(bad), steps, batches(), saved, shown,
        Meter(0, 8, 1.0, layout.devices), Watch(tmp_path, 0), Trace(tmp_path, None), stop, validate,
    )  # fmt: skip
    return going, state, shown, saved


def test_step_then_evaluate_then_save(monkeypatch, tmp_path):
    going, state, shown, saved = run(monkeypatch, tmp_path, validate=lambda p: {"split": "val"})
    monkeypatch.setattr(loop.report, "line", lambda scored: "figures")
    state, at, stopped = going.run(state, 0)
    assert (int(state.step), at, stopped) == (10, 10, False)
    assert saved == [
        (4, 4, None),
        (5, 5, {"split": "val"}),
        (8, 8, None),
        (10, 10, {"split": "val"}),
    ]
    rows = [at for at, row in (x for x in shown if isinstance(x, tuple)) if "loss" in row]
    assert rows == [2, 4, 6, 8, 10]


def test_rows_have_the_rates_of_their_own_update(monkeypatch, tmp_path):
    going, state, shown, _ = run(monkeypatch, tmp_path, bad=[1])
    going.run(state, 0)
    rows = dict(shown)
    # Step 2 is the first update: a skipped one does not count.
    assert rows[2]["rate"] == 0 and rows[4]["rate"] == pytest.approx(
        1e-3 * 0.5 * (1 + np.cos(np.pi * 0.2))
    )
    assert rows[4]["clip_rate"] == pytest.approx(rows[4]["rate"] / 10)
    assert (
        rows[2]["temperature"] == 1 and "stop" not in rows[2] and "steps/s" in rows[2]["measured"]
    )


def test_too_many_bad_steps_in_a_row_end_the_run(monkeypatch, tmp_path):
    going, state, *_ = run(monkeypatch, tmp_path, bad=[2, 3, 5, 6, 7], most_skipped=3)
    with pytest.raises(BadData, match="not finite for 3 steps in a row, up to step 7"):
        going.run(state, 0)
    going, state, *_ = run(monkeypatch, tmp_path, bad=[2, 3, 5, 6, 8, 9], most_skipped=3)
    assert int(going.run(state, 0)[0].skipped) == 6


def test_a_wish_to_stop_is_heeded_after_a_whole_step_and_a_checkpoint(monkeypatch, tmp_path):
    going, state, _, saved = run(monkeypatch, tmp_path, stop_at=5)
    state, at, stopped = going.run(state, 0)
    assert stopped and int(state.step) == at == 6 and saved[-1] == (6, 6, None)


def test_another_process_wish_comes_through_the_devices(monkeypatch, tmp_path):
    """As one of two processes it waits for the answer, so that all stop at the same step."""
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.parallel, "wait", lambda name: None)
    going, state, _, saved = run(monkeypatch, tmp_path, stop_at=5)
    state, at, stopped = going.run(state, 0)
    assert stopped and int(state.step) == at == 7 and saved[-1] == (7, 7, None)


def test_nothing_is_compiled_after_the_first_step(monkeypatch, tmp_path, caplog):
    going, state, *_ = run(monkeypatch, tmp_path)
    with loop.jax.log_compiles():
        going.run(state, 0)
    texts = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert len([text for text in texts if "fake_step" in text]) == 1
