"""The other processes of a run: where one ends before its time, all end, and each says why.

Every process holds a connection to process 0. When a process dies, however that happens, the
kernel closes its connection at once, and process 0 tells the others: they end within 0.3 s. Left to
JAX they wait for heartbeats and for each other, 55 s after a `kill -9`, and what they say then is a
page of C++.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

DEATH = 5
"""Seconds from the death of a process to the end of the others, at most."""
SILENCE = 30
"""The same where a machine vanishes: nothing is closed then, it only answers no more."""
FROZEN = 60
"""The same where a process stands still, or the machine with it: JAX's heartbeats stay out."""
GRACE = 2
"""Seconds in which a process may come itself to the error that another one has reported."""
FAILED = 1
KEY, JOINING = "vitdiff_jax/peers", 60


class Peers:
    """The connections of this process: of process 0 to all others, of these to process 0."""

    def __init__(self):
        self.process = 0
        self.connections: dict[int, socket.socket] = {}
        self._lines: dict[int, Iterator[str]] = {}  # what comes through them
        self._done, self._finished = threading.Semaphore(0), False
        self._gone: set[int] = set()
        self._ending = threading.Lock()  # held to the end by what ends this process

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return not self.connections

    def join(self) -> None:
        """Connect with the others after `jax.distributed.initialize`; alone, do nothing."""
        if jax.process_count() == 1:
            return
        # JAX has no public door to its store and to the address of process 0.
        from jax._src import distributed

        state: Any = distributed.global_state
        self.process, store = jax.process_index(), state.client
        if self.process == 0:
            self._accept(jax.process_count(), store)
        else:
            port, token = store.blocking_key_value_get(KEY, JOINING * 1000).split()
            host = state.coordinator_address.rpartition(":")[0].strip("[]")
            connection = socket.create_connection((host, int(port)), JOINING)
            connection.sendall(f"{token} {self.process}\n".encode())
            self.connections[0], self._lines[0] = connection, connection.makefile()
        for other, connection in self.connections.items():
            _keep_alive(connection)
            threading.Thread(target=self._listen, args=(other,), daemon=True).start()

    def _accept(self, processes: int, store: Any) -> None:
        """Wait for all others; who does not know the token is none of them."""
        token, both = secrets.token_hex(8), socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as listener:
            listener.settimeout(JOINING)
            store.key_value_set(KEY, f"{listener.getsockname()[1]} {token}")
            while len(self.connections) < processes - 1:
                connection, _ = listener.accept()
                connection.settimeout(JOINING)
                lines = connection.makefile()
                found, _, process = next(lines, "").partition(" ")
                if found == token:
                    self.connections[int(process)] = connection
                    self._lines[int(process)] = lines

    def _listen(self, other: int) -> None:
        """Hear what another process says, and that it says nothing more."""
        told = False
        with contextlib.suppress(OSError):
            for line in self._lines[other]:
                what, _, text = line.strip().partition(" ")
                if what == "done":
                    self._finished |= other == 0
                    self._done.release()
                elif what == "failed":
                    told = True
                    threading.Timer(GRACE, self._follow, [text]).start()
                else:
                    self._follow(text)
        self._gone.add(other)
        if not told:
            self._follow(f"process {other} died")

    def _follow(self, text: str) -> None:
        """End because another process did."""
        with self._ending:
            if self._finished:
                return
            line = f"error: {text}; so does this one; the same command goes on from what was saved"
            os.write(2, f"{line}\n".encode())
            self._end(f"ended {text}", FAILED)

    def _end(self, line: str, code: int) -> None:
        self._say(line)
        # Process 0 last: without it JAX ends the others before they can say why.
        last = time.monotonic() + GRACE + 1
        while self.process == 0 and len(self._gone) < len(self.connections):
            if time.monotonic() > last:
                break
            time.sleep(0.01)
        os._exit(code)

    def _say(self, line: str) -> None:
        for connection in self.connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(f"{line}\n".encode())

    def finish(self) -> None:
        """Wait until all processes have come to the end of their work."""
        if self.process == 0:
            for _ in self.connections:
                self._done.acquire()
            self._finished = True
            self._say("done")
        else:
            self._say("done")
            self._done.acquire()

    def fail(self, code: int, error: object) -> None:
        """End this process, and by that the others, for an error; alone, do nothing."""
        if not self.alone:
            with self._ending:
                sys.stdout.flush()
                sys.stderr.flush()
                text = " ".join(str(error).split())
                self._end(f"failed process {self.process} failed ({text})", code)

    def expect_cause(self) -> None:
        """After an error that another's end may have caused: end as `_follow` says, if so."""
        if not self.alone:
            time.sleep(GRACE + 1)


def _keep_alive(connection: socket.socket) -> None:
    """Notice after `SILENCE` seconds that the other machine does not answer."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENCE // 3), ("TCP_KEEPINTVL", SILENCE // 6)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_KEEPCNT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
