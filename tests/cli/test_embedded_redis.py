"""Which ports are given to servers that are about to start?"""

import socket

import pytest

from cli import embedded_redis
from cli.embedded_redis import free_port


def test_no_free_port_is_one_that_an_outgoing_connection_could_take():
    assert embedded_redis._PORTS.stop <= 32_768  # Linux begins there.
    assert {free_port() in embedded_redis._PORTS for _ in range(100)} == {True}


def test_a_port_that_is_taken_is_not_given(monkeypatch):
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        monkeypatch.setattr(embedded_redis, "_PORTS", range(port, port + 1))

        with pytest.raises(RuntimeError, match="no free port"):
            free_port()
