"""Failure detection between the processes of a run: if one dies, all exit, and each says why.

Every process holds a TCP connection to process 0. When a process dies, for whatever reason, the
kernel closes its connection at once and process 0 notifies the others, which exit within 0.3 s. JAX
alone would wait for heartbeats, 55 s after a `kill -9`, and then print a page of C++ stack traces.
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
"""Maximum seconds from the death of a process to the exit of the others."""
SILENCE = 30
"""The same if a machine vanishes: no connection is closed, it only stops answering."""
FROZEN = 60
"""The same if a process or its machine hangs: JAX's heartbeat timeout."""
GRACE = 2
"""Seconds for a process to hit by itself the error that another one has reported."""
FAILED = 1
KEY, JOINING = "vitdiff_jax/peers", 60


class StartError(RuntimeError):
    """Processes that do not find each other; the message is one line."""


def is_first() -> bool:
    """Whether this is process 0. Of a single process it does not start JAX.

    So its devices can still be chosen.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


class Peers:
    """The connections of this process: to all others on process 0, to process 0 elsewhere."""

    def __init__(self):
        self.process = 0
        self.connections: dict[int, socket.socket] = {}
        self._lines: dict[int, Iterator[str]] = {}  # received through them
        self._done, self._finished = threading.Semaphore(0), False
        self._gone: set[int] = set()
        self._ending = threading.Lock()  # held by whoever exits this process

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return not self.connections

    def join(self) -> None:
        """Connect to the others after `jax.distributed.initialize`; no-op for a single process."""
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            return
        # JAX has no public API for its key-value store and the address of process 0.
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
        """Accept the connections of all others, authenticated by a token."""
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
        """Read the messages of another process, and notice when its connection closes."""
        reported = False
        with contextlib.suppress(OSError):
            for line in self._lines[other]:
                what, _, text = line.strip().partition(" ")
                if what == "done":
                    self._finished |= other == 0
                    self._done.release()
                elif what == "failed":
                    reported = True
                    threading.Timer(GRACE, self._follow, [text]).start()
                else:
                    self._follow(text)
        self._gone.add(other)
        if not reported:
            self._follow(f"process {other} died")

    def _follow(self, text: str) -> None:
        """Exit because another process did."""
        with self._ending:
            if self._finished:
                return
            line = f"error: {text}; this process exits too; run the same command to resume"
            os.write(2, f"{line}\n".encode())
            self._end(f"ended {text}", FAILED)

    def _end(self, line: str, code: int) -> None:
        self._say(line)
        # Process 0 exits last: without it JAX aborts the others before they can say why.
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
        """Wait until all processes have finished."""
        if self.process == 0:
            for _ in self.connections:
                self._done.acquire()
            self._finished = True
            self._say("done")
        else:
            self._say("done")
            self._done.acquire()

    def fail(self, code: int, error: object) -> None:
        """Exit this process, and thereby the others, with an error; no-op for a single process."""
        if not self.alone:
            with self._ending:
                sys.stdout.flush()
                sys.stderr.flush()
                text = " ".join(str(error).split())
                self._end(f"failed process {self.process} failed ({text})", code)

    def await_cause(self) -> None:
        """After an error that the death of a peer may have caused: wait for it to be reported."""
        if not self.alone:
            time.sleep(GRACE + 1)


def _keep_alive(connection: socket.socket) -> None:
    """Notice within `SILENCE` seconds that the other machine has stopped answering."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENCE // 3), ("TCP_KEEPINTVL", SILENCE // 6)):
        if hasattr(socket, name):  # not on all systems
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_KEEPCNT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
