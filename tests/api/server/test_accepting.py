"""How many connections does a turn of the loop take?"""

import asyncio
import socket

from api.main import listeners
from common.process.event_loop import Loop

CLIENTS = 160


async def _turns_until_all_are_taken(sock: socket.socket) -> int:
    loop, taken, turns = asyncio.get_running_loop(), [], 0

    class Taken(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            taken.append(transport)

    clients = [socket.create_connection(sock.getsockname()) for _ in range(CLIENTS)]  # The kernel takes them meanwhile.
    servers = [await loop.create_server(Taken, sock=each) for each in listeners(sock)]
    while len(taken) < CLIENTS:
        turns += 1
        await asyncio.sleep(0)
    for each in [*servers, *taken, *clients]:
        each.close()
    return turns


def test_connections_that_come_at_once_do_not_wait_for_a_turn_each():
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as sock, asyncio.Runner(loop_factory=Loop) as runner:
        turns = runner.run(_turns_until_all_are_taken(sock))

    assert turns < CLIENTS / 4
