"""A line whose far end is in a network namespace: taken down, it swallows what is sent.

Other than what a proxy can play, a new connection gets no answer either, and the kernel sends again
by itself when the line is back.
"""

import ctypes
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from tests.faults.conftest import Case
from tests.kit.proxy import Proxy

_CLONE_NEWNET = 0x40000000


class Link:
    """The way to one loopback port, by an address of its own."""

    def __init__(self, namespace: str, address: str, target_port: int) -> None:
        """Listen in the namespace, and forward from there to the port."""
        self._namespace = namespace
        # Where a socket was made is where it stays, whoever uses it.
        with ThreadPoolExecutor(1) as elsewhere:
            listener = elsewhere.submit(_listener_in, namespace, address).result()
        self.proxy = Proxy(target_port, listener=listener)
        self.target = f"{address}:{self.proxy.port}"

    def down(self) -> None:
        """Lose whatever is sent from now on, in both directions, without a word."""
        _ip("-n", self._namespace, "link", "set", "far", "down")

    def up(self) -> None:
        """Pass everything on again."""
        _ip("-n", self._namespace, "link", "set", "far", "up")


@contextmanager
def link_to(case: Case, target_port: int) -> Iterator[Link]:
    """Make a link; without the right to do so the row cannot run."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        case.cannot("needs root and iproute2 to take a network interface down")
    name = f"ingest{random.SystemRandom().randrange(1 << 28):07x}"
    # Of the addresses that are set aside for tests between networks (RFC 2544).
    net = f"198.18.{random.SystemRandom().randrange(256)}"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        case.cannot(f"cannot make a network namespace: {error.stderr.strip()}")
    try:
        try:
            _ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        except subprocess.CalledProcessError as error:
            case.cannot(f"cannot make a network interface: {error.stderr.strip()}")
        _ip("address", "add", f"{net}.1/30", "dev", name)
        _ip("-n", name, "address", "add", f"{net}.2/30", "dev", "far")
        _ip("link", "set", name, "up")
        _ip("-n", name, "link", "set", "far", "up")
        link = Link(name, f"{net}.2", target_port)
        with closing(link.proxy):
            yield link
    finally:
        # It takes the interfaces with it.
        _ip("netns", "delete", name)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=10)


def _listener_in(namespace: str, address: str) -> socket.socket:
    with (Path("/run/netns") / namespace).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot enter the namespace")
    return socket.create_server((address, 0), backlog=256)
