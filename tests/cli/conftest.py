"""Verbs replaced by functions of a test."""

import dataclasses
import sys
import types

import pytest

from hvp_jax.cli import main


@pytest.fixture
def fake(monkeypatch):
    """Replaces the function of every verb."""

    def install(run):
        monkeypatch.setitem(sys.modules, "fake_verb", types.SimpleNamespace(run=run))
        for name, verb in main.VERBS.items():
            fake = dataclasses.replace(verb, target="fake_verb:run")
            monkeypatch.setitem(main.VERBS, name, fake)

    return install
