"""The verb `serve`: what is wrong is one line, before anything is served."""

import socket
import sys

import pytest

from hvp_jax.cli import main
from hvp_jax.search.app import server


def refused(capfd, *arguments: str) -> str:
    assert main.main(["serve", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_a_port_that_is_taken(capfd, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refused(capfd, f"--index={tmp_path}", f"--port={port}")
    assert f"--port={port} is used by another program; choose another one" in message


@pytest.mark.parametrize("port", ["-1", "65536", "http", ""])
def test_what_is_no_port(capfd, tmp_path, port):
    assert "is not a port" in refused(capfd, f"--index={tmp_path}", f"--port={port}")


def test_a_folder_that_is_no_index(capfd, tmp_path):
    message = refused(capfd, f"--index={tmp_path}", "--port=0")
    assert f"--index={tmp_path} holds no index" in message


def test_a_requirement_that_is_missing(capfd, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "hvp_jax.search.app.server")
    monkeypatch.delattr("hvp_jax.search.app.server")
    message = refused(capfd, f"--index={tmp_path}")
    assert "serve needs uvicorn: pip install -r requirements-app.txt" in message


def test_only_this_machine_is_listened_to():
    with server.bind(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
