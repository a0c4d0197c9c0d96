"""Pallas' interpreter, so that kernels for TPUs run on a CPU."""

import pytest
from jax.experimental import pallas as pl


@pytest.fixture
def interpreted_kernels(monkeypatch):
    call = pl.pallas_call
    monkeypatch.setattr(pl, "pallas_call", lambda *a, **k: call(*a, **k, interpret=True))
