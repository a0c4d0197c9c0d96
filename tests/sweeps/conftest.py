"""Stub runs import this project, from wherever they are started."""

import os

import pytest

from tests.helpers.command import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
