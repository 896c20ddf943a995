"""The networks that workers are put into for the tests: what can be reached from one of them."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .cluster import Network

pytestmark = pytest.mark.services

ANSWERED = 0
OUTSIDE = "192.0.2.1"  # an address of nobody (RFC 5737); with a way out one would send there

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3.0).close()
    print(0)
except OSError as error:
    print(error.errno or -1)
"""
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        server.accept()[0].close()
"""


@pytest.fixture
def network() -> Iterator[Network]:
    """Where root, `ip` and the kernel allow one it must be there: no test would miss it."""
    reason = Network.refusal()
    if reason is not None:
        pytest.skip(f"no networks of their own for workers here: {reason}")
    made = Network.of_this_machine()
    assert made is not None
    try:
        yield made
    finally:
        made.close()


def within(space: str, script: str, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", space, sys.executable, "-c", script, *arguments]


def connects(space: str, host: str, port: int) -> int:
    """What comes of it: 0, or the number of the error; -1 if nothing comes for seconds."""
    command = within(space, CONNECT, host, str(port))
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@contextmanager
def listening(space: str, host: str) -> Iterator[int]:
    """A server in a namespace; its port."""
    command = within(space, LISTEN, host)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def address(space: str) -> str:
    """That of a namespace on the bridge."""
    told = subprocess.run(
        ["ip", "-n", space, "-4", "-brief", "address", "show", "scope", "global"],
        check=True,
        capture_output=True,
        text=True,
    )
    return told.stdout.split()[-1].partition("/")[0]


def test_a_worker_reaches_the_servers_and_nothing_else(network: Network) -> None:
    one, other = network.namespace(), network.namespace()
    with socket.create_server((network.host, 0)) as server:
        assert connects(one, network.host, server.getsockname()[1]) == ANSWERED
    with listening(other, address(other)) as port:
        assert connects(other, address(other), port) == ANSWERED
        assert connects(one, address(other), port) in (errno.EHOSTUNREACH, -1)
    assert connects(one, OUTSIDE, 443) == errno.ENETUNREACH
