"""Verbs replaced by functions of a test."""

import dataclasses
import sys
import types

import pytest

from hvp_jax.cli import main


def as_result(fields):
    """A dataclass with the fields of a dict; other values as they are."""
    if not isinstance(fields, dict):
        return fields
    return dataclasses.make_dataclass("Result", fields)(**fields)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the function of every verb; a dict that it returns becomes a dataclass."""

    def install(run):
        def run_verb(**values):
            return as_result(run(**values))

        monkeypatch.setitem(sys.modules, "fake_verb", types.SimpleNamespace(run=run_verb))
        for name, verb in main.VERBS.items():
            fake = dataclasses.replace(verb, target="fake_verb:run")
            monkeypatch.setitem(main.VERBS, name, fake)

    return install
