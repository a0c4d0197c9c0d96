"""Answers requests on this machine until Ctrl-C."""

import errno
import socket

import uvicorn
from starlette.types import ASGIApp

from data.errors import UsageError

HOST = "127.0.0.1"  # other machines do not reach it
LAST_ANSWERS = 2  # seconds that running answers have after Ctrl-C


def bind(port: int) -> socket.socket:
    """A socket on `port` of this machine, 0 for a free one. Raises UsageError if it is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # two may bind a port, and one listen
    except OSError as error:
        listening.close()
        reason = {
            errno.EADDRINUSE: "is used by another program",
            errno.EACCES: "is not for ordinary users",
        }.get(error.errno or 0, error.strerror)
        raise UsageError(f"--port={port} {reason}; choose another one") from None
    return listening


def run(app: ASGIApp, listening: socket.socket) -> None:
    """Serves `app` on a socket of `bind`; returns after Ctrl-C."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_ANSWERS,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # which uvicorn raises again when it has ended
        pass
    finally:
        listening.close()
