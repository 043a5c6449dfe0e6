"""The proxy fails as it is told to, and not otherwise."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import anyio
import pytest

from tests.servers.proxy import Proxy

PATIENCE = 5.0


class Echo:
    """A server that sends back what it gets, in a thread; remembers all that it got."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.got = b""
        self.changed = threading.Condition()
        self.open: list[socket.socket] = []
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.open.append(connection)
                self.threads.append(threading.Thread(target=self.serve, args=(connection,)))
                self.threads[-1].start()

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                with self.changed:
                    self.got += data
                    self.changed.notify_all()
                connection.sendall(data)

    def wait_for(self, data: bytes) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.got == data, PATIENCE), self.got

    def close(self) -> None:
        for sock in [self.listener, *self.open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self.threads:
            thread.join(PATIENCE)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    with contextlib.ExitStack() as clients:
        yield lambda: clients.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE))


Connect = Callable[[], socket.socket]


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := client.recv(count - len(data))):
        data += more
    return data


def test_bytes_pass_unchanged_and_are_counted(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    data = bytes(range(256)) * 8192
    client = connect()
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert read(client, len(data)) == data
    sender.join(PATIENCE)
    assert proxy.received("to_server") == proxy.forwarded("to_server") == len(data)
    assert proxy.received("to_client") == len(data)
    assert (proxy.accepted, proxy.connections) == (1, 1)
    client.close()
    proxy.wait_for_connections(0)
    assert echo.got == data


def test_the_end_of_one_side_is_told_to_the_other(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    client.sendall(b"one")
    assert read(client, 3) == b"one"
    echo.open[0].shutdown(socket.SHUT_RDWR)
    assert client.recv(1) == b""
    proxy.wait_for_connections(0)


def test_cut_ends_all_connections_by_reset_and_takes_new_ones(proxy: Proxy, connect: Connect) -> None:
    clients = [connect(), connect()]
    for client in clients:
        client.sendall(b"x")
        assert read(client, 1) == b"x"
    assert proxy.cut() == 2
    assert proxy.connections == 0
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    again = connect()
    again.sendall(b"y")
    assert read(again, 1) == b"y"
    assert proxy.accepted == 3


def test_cut_without_reset_is_an_orderly_end(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    client.sendall(b"x")
    assert read(client, 1) == b"x"
    assert proxy.cut(reset=False) == 1
    assert client.recv(1) == b""


def test_cut_after_counts_what_comes_back(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    proxy.cut_after(3)
    client.sendall(b"hello")
    assert read(client, 10) == b"hel"
    echo.wait_for(b"hello")
    again = connect()  # once only
    again.sendall(b"more")
    assert read(again, 4) == b"more"


def test_cut_after_0_loses_the_answer_of_what_was_done(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    proxy.cut_after(0)
    client.sendall(b"hello")
    assert client.recv(1) == b""
    assert echo.got == b"hello"
    assert proxy.forwarded("to_client") == 0


def test_cut_after_counts_what_goes_there(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    proxy.cut_after(2, "to_server")
    client.sendall(b"hello")
    with contextlib.suppress(ConnectionResetError):
        while client.recv(100):
            pass
    echo.wait_for(b"he")


def test_cut_after_can_reset(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    proxy.cut_after(0, reset=True)
    client.sendall(b"hello")
    with pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.busy
def test_delay_keeps_the_order_and_does_not_add_up(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    proxy.delay(0.1)
    started = time.monotonic()
    client.sendall(b"one")
    proxy.wait_until_received(3, "to_server")
    client.sendall(b"two")
    assert read(client, 6) == b"onetwo"
    assert 0.2 <= time.monotonic() - started < 0.2 + PATIENCE
    proxy.restore()
    fastest = 1.0
    for _ in range(10):  # one of them has a processor at once, however busy the machine is
        started = time.monotonic()
        client.sendall(b"three")
        assert read(client, 5) == b"three"
        fastest = min(fastest, time.monotonic() - started)
    assert fastest < 0.1


def test_delay_in_one_direction_delays_that_one(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    proxy.delay(PATIENCE + 1, "to_client")
    client.sendall(b"hello")
    echo.wait_for(b"hello")
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_swallow_hands_on_nothing(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    old = connect()
    old.sendall(b"1")
    assert read(old, 1) == b"1"
    proxy.swallow()
    new = connect()
    for count, client in enumerate((old, new), start=1):
        client.sendall(b"lost")
        proxy.wait_until_received(1 + 4 * count, "to_server")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert echo.got == b"1"
    proxy.restore()
    old.settimeout(PATIENCE)
    old.sendall(b"2")
    assert read(old, 1) == b"2"
    assert echo.got == b"12"


def test_swallow_to_the_client_lets_the_server_work(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    client = connect()
    proxy.swallow("to_client")
    client.sendall(b"done")
    proxy.wait_until_received(4, "to_client")
    assert echo.got == b"done"
    assert proxy.forwarded("to_client") == 0


def test_refuse_refuses_until_restored_and_open_ones_go_on(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    client.sendall(b"1")
    assert read(client, 1) == b"1"
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    client.sendall(b"2")
    assert read(client, 1) == b"2"
    proxy.restore()
    again = connect()
    again.sendall(b"3")
    assert read(again, 1) == b"3"


def test_a_server_that_is_not_there_resets(proxy: Proxy, connect: Connect, echo: Echo) -> None:
    echo.close()
    with pytest.raises(ConnectionResetError):
        read(connect(), 1)


def test_waiting_in_vain_says_so(proxy: Proxy) -> None:
    with pytest.raises(TimeoutError, match="0 connections taken"):
        proxy.wait_for_accepted(1, timeout=0.01)


def test_nothing_is_left_after_close(echo: Echo) -> None:
    before = threading.active_count()
    proxy = Proxy(echo.port).start()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
        client.sendall(b"x")
        assert read(client, 1) == b"x"
        assert threading.active_count() > before
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("Proxy-")]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)


@pytest.mark.anyio
async def test_it_is_used_from_any_loop(proxy: Proxy) -> None:
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
        await client.send(b"hello")
        assert await client.receive(5) == b"hello"
        assert proxy.cut() == 1
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await client.receive()
