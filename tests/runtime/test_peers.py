"""The connections between processes, here between threads that take themselves for processes.

What real processes do with them is in test_processes.py.
"""

import contextlib
import socket
import sys
import threading
import types

import pytest
from jax._src import distributed

from tests.parts import quick
from vitdiff_jax.runtime import processes
from vitdiff_jax.runtime.processes import DEATH, Peers

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
AGAIN = "this process exits too; run the same command to resume"


class Store:
    """JAX's; as soon as the address is in it, a stranger connects before all others."""

    def __init__(self):
        self.value, self.known = "", threading.Event()

    def key_value_set(self, key, value):
        self.stranger = socket.create_connection(("localhost", int(value.split()[0])))
        self.stranger.sendall(b"another-token 1\n")
        self.value = value
        self.known.set()

    def blocking_key_value_get(self, key, milliseconds):
        assert self.known.wait(milliseconds / 1000)
        return self.value


class Group:
    """Three of them. lines: what each has said; ends: {process: its exit code}, in order."""

    def __init__(self, monkeypatch):
        self.lines, self.ends, self.here = {0: [], 1: [], 2: []}, {}, threading.local()
        fake = types.SimpleNamespace(
            process_count=lambda: 3, process_index=lambda: self.here.index,
            distributed=distributed,
        )  # fmt: skip
        state = types.SimpleNamespace(client=Store(), coordinator_address="localhost:1")
        monkeypatch.setattr(processes, "jax", fake)
        monkeypatch.setattr(distributed, "global_state", state)
        monkeypatch.setattr(processes, "GRACE", 0.2)
        monkeypatch.setattr(
            processes, "os", types.SimpleNamespace(write=self.write, _exit=self.exit)
        )
        self.peers = [Peers() for _ in range(3)]
        for thread in [self.thread(i, self.peers[i].join) for i in range(3)]:
            thread.join(DEATH)

    def thread(self, index, call, *arguments):
        def run():
            self.here.index = index
            call(*arguments)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def write(self, descriptor, line):
        process = sys._getframe(1).f_locals["self"].process
        assert descriptor == 2
        if process not in self.ends:
            self.lines[process].append(line.decode())

    def exit(self, code):
        self.end(sys._getframe(1).f_locals["self"].process, code)
        raise SystemExit

    def end(self, process, code):
        """The kernel closes its connections."""
        self.ends.setdefault(process, code)
        self.peers[process]._finished = True  # the dead follow nobody
        for connection in self.peers[process].connections.values():
            with contextlib.suppress(OSError):  # closed by the other
                connection.shutdown(socket.SHUT_RDWR)

    def wait(self):
        """Until all have ended."""
        for _ in range(100 * DEATH):
            if len(self.ends) == 3:
                return
            threading.Event().wait(0.01)
        pytest.fail(f"only {self.ends} have ended")


@pytest.fixture
def group(monkeypatch):
    before = threading.enumerate()
    found = Group(monkeypatch)
    yield found
    for process in range(3):
        found.end(process, None)
    for thread in threading.enumerate():  # none may call the true os._exit
        if thread not in before:
            thread.join(DEATH)
            assert not thread.is_alive()


def test_all_are_connected_with_process_0(group):
    assert [peers.process for peers in group.peers] == [0, 1, 2]
    assert [sorted(peers.connections) for peers in group.peers] == [[1, 2], [0], [0]]
    assert not any(peers.alone for peers in group.peers)
    for peers in group.peers:
        for connection in peers.connections.values():
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_death_ends_all_and_process_0_last(group):
    victim = 2
    group.end(victim, -9)
    group.wait()
    line = f"error: process {victim} died; {AGAIN}\n"
    assert group.lines == {i: [line] * (i != victim) for i in range(3)}
    assert group.ends == {i: -9 if i == victim else 1 for i in range(3)}
    assert [*group.ends] == [2, 1, 0]


@pytest.mark.parametrize("culprit", quick([1], [0, 1]))
def test_an_error_ends_all_with_its_text(group, culprit):
    group.thread(culprit, group.peers[culprit].fail, 2, "the disk\nis full")
    group.wait()
    line = f"error: process {culprit} failed (the disk is full); {AGAIN}\n"
    assert group.lines == {i: [line] * (i != culprit) for i in range(3)}
    assert group.ends == {i: 2 if i == culprit else 1 for i in range(3)}


def test_who_comes_to_an_error_itself_says_nothing_of_the_others(group):
    for i in (1, 2, 0):
        group.thread(i, group.peers[i].fail, 2, f"error {i}")
    group.wait()
    assert group.lines == {0: [], 1: [], 2: []}
    assert group.ends == {0: 2, 1: 2, 2: 2}


def test_all_wait_for_each_other_at_the_end_and_may_then_go(group):
    threads = [group.thread(i, group.peers[i].finish) for i in (0, 1)]
    for thread in threads:
        thread.join(0.2)
        assert thread.is_alive()
    threads.append(group.thread(2, group.peers[2].finish))
    for thread in threads:
        thread.join(DEATH)
        assert not thread.is_alive()
    group.peers[0].connections[1].shutdown(socket.SHUT_RDWR)
    threading.Event().wait(0.2)
    assert group.ends == {}
    assert group.lines == {0: [], 1: [], 2: []}


def test_alone_nothing_happens(monkeypatch):
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: pytest.fail("it waits"))
    peers = Peers()
    peers.join()
    assert peers.alone
    peers.finish()
    peers.fail(1, "nobody hears it")
    peers.await_cause()
