"""Where compiled programs are kept, and what happens if they cannot be.

That a resumed run loads them is tested in `tests/training/test_train.py`.
"""

import logging
import os
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs.base import get_config
from data.errors import UsageError
from hvp_jax.config.overrides import check_paths
from hvp_jax.parallel import compile_cache
from hvp_jax.parallel.compile_cache import use_compile_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """No cache, as in a new process; what a test sets is undone after it."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_an_accelerator_keeps_its_programs_in_the_workdir(tmp_path, monkeypatch):
    use_compile_cache("auto", tmp_path)  # on a CPU
    assert jax.config.jax_compilation_cache_dir is None and os.listdir(tmp_path) == []
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    use_compile_cache("auto", None)  # `bench` without a workdir
    assert jax.config.jax_compilation_cache_dir is None
    use_compile_cache("auto", tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compile_cache")
    assert os.listdir(tmp_path) == ["compile_cache"] and not os.listdir(tmp_path / "compile_cache")


def test_auto_respects_the_variable_of_jax_and_a_path_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "variable"))
    use_compile_cache("auto", tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "variable")
    use_compile_cache(str(tmp_path / "config"), tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "config")


def test_programs_are_written_to_the_place_and_with_none_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "MIN_COMPILE_SECONDS", 0)
    x = jnp.ones(3)
    for name in ("first", "second"):  # in one process: the place changes
        use_compile_cache(str(tmp_path / name), None)
        jax.jit(lambda x: x * 2 + 1)(x).block_until_ready()
        assert [file.endswith("-cache") for file in os.listdir(tmp_path / name)] == [True]
    use_compile_cache("none", tmp_path)
    jax.jit(lambda x: x * 3 + 1)(x).block_until_ready()
    assert len(os.listdir(tmp_path / "second")) == 1


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    use_compile_cache(str(tmp_path / "file" / "cache"), None)
    [line] = caplog.messages
    assert line.startswith(
        f"compile_cache={tmp_path}/file/cache cannot be written (Not a directory"
    )
    assert jax.config.jax_compilation_cache_dir is None


def test_warnings_of_the_cache_are_one_line_and_others_are_shown(tmp_path, caplog, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print("shown", message)
        use_compile_cache(str(tmp_path), None)
        text = "Error writing persistent compilation cache entry for 'jit_f': OSError:\n no space"
        warnings.warn(text, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    assert "'jit_f': OSError: no space; the program is compiled instead" in record.getMessage()
    assert capsys.readouterr().out == "shown something else\n"


def test_a_bucket_is_passed_to_jax_without_the_caches_that_xla_writes_itself(monkeypatch):
    monkeypatch.setattr(compile_cache, "_prepare", lambda place: True)
    use_compile_cache("gs://bucket/programs", None)
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs"
    assert jax.config.jax_persistent_cache_enable_xla_caches == "none"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("gs://bucket", "gs://bucket"),
        ("s3://my-bucket/$NAME/programs", "s3://my-bucket/one/programs"),
        ("$NAME", "one"),
    ],
)
def test_what_the_key_may_be(text, meant, monkeypatch):
    monkeypatch.setenv("NAME", "one")
    config = get_config()
    config.compile_cache = text
    check_paths(config)
    assert config.compile_cache == meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FILE", "is a file; it must be a folder"),
        ("gs:/bucket", "is no path in a bucket; write gs://bucket"),
        ("host:/folder", "is neither on this machine nor in a bucket"),
        ("gs://", "names no bucket"),
    ],
)
def test_what_it_may_not_be(text, message, tmp_path):
    (tmp_path / "file").write_text("")
    config = get_config()
    config.compile_cache = text.replace("FILE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="^config.compile_cache=") as error:
        check_paths(config)
    assert message in str(error.value)
