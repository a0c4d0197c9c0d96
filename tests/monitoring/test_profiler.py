"""The values of `config.profile`, and the steps in a trace."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs.base import get_config
from data.errors import UsageError
from hvp_jax.config import schema
from hvp_jax.config.overrides import override
from hvp_jax.config.validate import validate
from hvp_jax.monitoring import profiler


@pytest.mark.parametrize(
    ("text", "steps"), [("", None), ("1:1", (1, 1)), ("10:12", (10, 12)), ("007:8", (7, 8))]
)
def test_steps_to_trace(text, steps):
    assert schema.parse_profile(text) == steps


@pytest.mark.parametrize("text", ["3", "0:2", "5:4", "-1:2", "1:2:3", "1-2", " 1:2", "1:x", "٣:٤"])
def test_invalid_values_are_refused(text):
    with pytest.raises(UsageError, match=r"config.profile is .*must be from:to"):
        schema.parse_profile(text)


def test_the_key_is_validated_with_the_config():
    config = get_config().lock()
    assert config.profile == ""
    override(config, "profile", "3:5")
    validate(config)
    override(config, "profile", "5:3")
    with pytest.raises(UsageError, match="config.profile is '5:3'"):
        validate(config)


@pytest.fixture
def calls(monkeypatch):
    """The calls of JAX, in order."""
    calls = []
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: calls.append(("wait", tree)))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (1, 9, [("wait", 3), "start", ("wait", 6), "stop"]),
        (1, 7, [("wait", 3), "start", "stop"]),  # the run ends before step 7
        (1, 6, [("wait", 3), "start", "stop"]),
        (6, 9, [("wait", 5), "start", ("wait", 6), "stop"]),  # resumes between them
        (7, 9, []),
        (1, 4, []),
    ],
)
def test_the_trace_has_the_configured_steps(calls, start, end, expected):
    with profiler.StepProfiler(Path("unused"), (4, 6)) as trace:
        for at in range(start, end):
            trace.step(at, at - 1)
    assert calls == expected


def test_a_run_that_fails_stops_its_trace(calls):
    with pytest.raises(KeyboardInterrupt):
        with profiler.StepProfiler(Path("unused"), (1, 6)) as trace:
            trace.step(1)
            raise KeyboardInterrupt
    assert calls == [("wait", ()), "start", "stop"]


def test_without_steps_nothing_happens(calls):
    with profiler.StepProfiler(Path("unused"), None) as trace:
        trace.step(1)
    assert calls == []


def test_a_trace_is_written(tmp_path):
    compute = jax.jit(lambda x: jnp.sin(x @ x).sum())
    x = jnp.ones((64, 64))
    done = compute(x)
    with profiler.StepProfiler(tmp_path / "profile", (2, 3)) as trace:
        for at in range(1, 6):
            trace.step(at, done)
            with jax.profiler.TraceAnnotation(f"the_step_{at}"):
                done = compute(x)
    (path,) = (tmp_path / "profile/plugins/profile").glob("*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert {f"the_step_{at}" for at in range(1, 6)} & names == {"the_step_2", "the_step_3"}
