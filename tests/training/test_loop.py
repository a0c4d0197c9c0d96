"""The training loop with a fake step: its order, metrics, errors and stop signals."""

import contextlib
from types import SimpleNamespace
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from data.errors import DataError
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import loop, train_state
from hvp_jax.training.step_spec import StepSpec

BATCH = {"x": np.zeros((8, 1), np.float32)}


class FakeLogger(list):
    """A metrics logger that records rows and texts in a list."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, at, row):
        self.append((at, row))

    def print(self, text):
        self.append(text)

    def flush(self):
        pass

    def progress(self, at, loss):
        pass

    def paused(self):
        return contextlib.nullcontext()


def fake_step(state, batch, spec, collectives):
    """Counts steps; the loss is NaN in the steps `spec.bad`."""
    bad = jnp.isin(state.step + 1, jnp.array(spec.bad, jnp.int32))
    skipped = state.skipped + bad
    metrics = {"loss": jnp.where(bad, jnp.nan, 1.0), "log_scale": jnp.zeros(()), "skipped": skipped}
    metrics["lr_factor"] = state.step / 8
    return state._replace(step=state.step + 1, skipped=skipped), metrics


class Run:
    """A loop that gets a stop signal with batch `stop_at`, and records what it logs and saves."""

    def __init__(
        self, monkeypatch, tmp_path, bad=(), steps=10, validate=None, stop_at=None, **train
    ):
        config = get_config()
        config.optimizer.learning_rate, config.optimizer.clip_learning_rate = 1e-3, 1e-4
        config.train.update(steps=steps, log_every=2, checkpoint_every=4, eval_every=5, **train)
        config.train.stall_timeout = 0.0
        self.logged, self.saved, self.validate = FakeLogger(), [], validate
        stop = SimpleNamespace(name=None)
        monkeypatch.setattr(loop, "train_step", fake_step)
        monkeypatch.setattr(loop, "SignalHandler", lambda: contextlib.nullcontext(stop))
        monkeypatch.setattr(loop, "MetricsLogger", lambda *_, **__: self.logged)
        monkeypatch.setattr(loop.flops, "training_step", lambda *_: 1.0)

        def batches():
            for i in range(100):
                stop.name = "SIGTERM" if i == stop_at else stop.name
                yield BATCH

        def save(at, items, batches, scores):
            self.saved.append((at, int(items["rest"]["step"]), scores))

        partitioner, zero = Partitioner("shard_map"), jnp.zeros((), jnp.int32)
        self.state = partitioner.shard_state(train_state.TrainState(zero, zero, {}, ()))
        self.loop = loop.TrainLoop(
            config, tmp_path, 0, partitioner=partitioner,
            spec=mock.Mock(spec=StepSpec, model=None, bad=tuple(bad)), batches=batches(),
            checkpointer=mock.Mock(spec=Checkpointer, save=save), num_frames=1,
        )  # fmt: skip

    def run(self):
        with self.loop:
            return self.loop.run(self.state, self.validate)


def test_step_then_evaluate_then_save(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, validate=lambda p: {"split": "val"})
    monkeypatch.setattr(loop.report, "line", lambda scores: "metrics")
    state, at, stopped = run.run()
    assert (int(state.step), at, stopped) == (10, 10, False)
    assert run.saved == [
        (4, 4, None),
        (5, 5, {"split": "val"}),
        (8, 8, None),
        (10, 10, {"split": "val"}),
    ]
    rows = [at for at, row in (x for x in run.logged if isinstance(x, tuple)) if "loss" in row]
    assert rows == [2, 4, 6, 8, 10]


def test_rows_have_the_learning_rates_of_their_own_update(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path)
    run.run()
    rows = dict(run.logged)
    assert rows[2]["learning_rate"] == 1e-3 * 1 / 8 and rows[4]["learning_rate"] == 1e-3 * 3 / 8
    assert rows[4]["clip_learning_rate"] == 1e-4 * 3 / 8 and "lr_factor" not in rows[4]
    assert (
        rows[2]["temperature"] == 1 and "stop" not in rows[2] and "steps/s" in rows[2]["measured"]
    )


def test_too_many_skipped_updates_in_a_row_end_the_run(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, bad=[2, 3, 5, 6, 7], max_skipped_updates=3)
    with pytest.raises(DataError, match="not finite for 3 steps in a row, up to step 7"):
        run.run()
    run = Run(monkeypatch, tmp_path, bad=[2, 3, 5, 6, 8, 9], max_skipped_updates=3)
    assert int(run.run()[0].skipped) == 6


def test_a_stop_signal_ends_the_run_after_a_complete_step_and_a_checkpoint(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, stop_at=5)
    state, at, stopped = run.run()
    assert stopped and int(state.step) == at == 6 and run.saved[-1] == (6, 6, None)


def test_with_two_processes_the_stop_signal_goes_through_the_devices(monkeypatch, tmp_path):
    """The loop waits for the metric `stop`, so that all processes stop at the same step."""
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop, "barrier", lambda name: None)
    run = Run(monkeypatch, tmp_path, stop_at=5)
    state, at, stopped = run.run()
    assert stopped and int(state.step) == at == 7 and run.saved[-1] == (7, 7, None)


def test_nothing_is_compiled_after_the_first_step(monkeypatch, tmp_path, caplog):
    run = Run(monkeypatch, tmp_path)
    with loop.jax.log_compiles():
        run.run()
    texts = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert len([text for text in texts if "train_step" in text]) == 1
