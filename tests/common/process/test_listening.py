"""What is told where a process cannot listen?"""

import socket

import pytest

from common.process.listening import CannotListen, bind, bound_address, local_url


def test_a_port_that_another_listens_on_is_told_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(
            CannotListen, match=rf"^Port {port} of 127\.0\.0\.1 is used by another process.*--port or SLUICE_PORT\.$"
        ):
            bind("127.0.0.1", port, port_option="--port or SLUICE_PORT")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_this_machine_s_is_told(host: str):
    with pytest.raises(CannotListen, match=f"{host!r} is not an address of this machine. Choose one with --host"):
        bind(host, 0, port_option="--port")


def test_a_place_is_held_before_anybody_is_let_in():
    with bind("127.0.0.1", 0, port_option="--port") as held:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound_address(held), 1)

        held.listen()

        socket.create_connection(bound_address(held), 1).close()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("gateway.example", "http://gateway.example:80"),
    ],
)
def test_where_a_host_is_reached_from_this_machine(host: str, url: str):
    assert local_url(host, 80) == url
