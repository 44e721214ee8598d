"""Processes meet before JAX connects them: who is missing is said, and waiting for it has an end.

JAX alone waits for five minutes in silence and then aborts with a C++ stack trace. Process 0
listens on the coordinator's port until all others have called, then frees the port for JAX.
"""

import contextlib
import socket
import time

from vitdiff_jax.runtime.processes import StartError

PATIENCE = 10
"""Seconds after which a process says for whom it waits."""
GIVE_UP = 60
"""Seconds after which it stops waiting."""
HELLO, GO = "vitdiff_jax", "go"


def meet(address: str, count: int, process: int, advice: str) -> None:
    """Return once all `count` processes have called this; StartError if they do not, in one line.

    address: host:port of process 0. advice: how to start the others, for the message.
    """
    host, _, port = address.rpartition(":")
    if count == 1:
        return
    if process == 0:
        _receive(int(port), count, advice)
    else:
        _call(host.strip("[]"), int(port), count, process, advice)


def _receive(port: int, count: int, advice: str) -> None:
    """Process 0: wait for the calls of all others, then answer all of them."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise StartError(f"process 0 cannot use port {port} here: {error.strerror}") from error
    joined: dict[int, socket.socket] = {}
    wait = _Wait()
    with listener, contextlib.ExitStack() as stack:
        listener.settimeout(PATIENCE / 20)
        while len(joined) < count - 1:
            missing = [i for i in range(1, count) if i not in joined]
            if wait.over(f"{_named(missing)} of {count} to call process 0 at port {port}"):
                text = f"{_named(missing)} of {count} did not start within {GIVE_UP} s"
                _answer(joined, text)
                raise StartError(f"{text}: {advice}")
            with contextlib.suppress(OSError):  # nobody has called; one who has gone again
                caller = stack.enter_context(listener.accept()[0])
                caller.settimeout(PATIENCE / 5)
                _admit(caller, joined, count)
            joined = {i: caller for i, caller in joined.items() if not _gone(caller)}
        _answer(joined, GO)
        for caller in joined.values():  # they hang up first: the port is free at once
            with contextlib.suppress(OSError):
                caller.recv(1)


def _admit(caller: socket.socket, joined: dict[int, socket.socket], count: int) -> None:
    """Note who calls; a stranger is ignored, another count of processes ends the start."""
    words = caller.makefile(errors="replace").readline(100).split()
    if len(words) != 3 or words[0] != HELLO or not "".join(words[1:]).isdecimal():
        return
    process, theirs = int(words[1]), int(words[2])
    refusal = ""
    if theirs != count:
        refusal = f"process {process} was started as one of {theirs}, process 0 as one of {count}"
    elif process in joined and not _gone(joined[process]):
        refusal = f"two processes were started as process {process} of {count}"
    if refusal:
        _answer(joined | {-1: caller}, refusal)
        raise StartError(f"{refusal}: start each once, and all with the same number")
    joined[process] = caller


def _call(host: str, port: int, count: int, process: int, advice: str) -> None:
    """Another process: call process 0 until it answers."""
    wait, reason = _Wait(), ""
    while not wait.over(f"process 0 at {host}:{port}{reason}"):
        try:
            with socket.create_connection((host, port), PATIENCE / 2) as connection:
                connection.sendall(f"{HELLO} {process} {count}\n".encode())
                connection.settimeout(GIVE_UP + PATIENCE)  # it gives up before
                answer = connection.makefile(errors="replace").readline(1000).strip()
        except OSError as error:
            reason = f" ({error.strerror or error})"
            time.sleep(PATIENCE / 20)
            continue
        if answer == GO:
            return
        if answer.startswith("no: "):
            raise StartError(answer.removeprefix("no: "))
        if answer:
            raise StartError(f"what answers at {host}:{port} is not process 0: use another port")
        time.sleep(PATIENCE / 20)  # process 0 died
    raise StartError(f"no process 0 at {host}:{port} within {GIVE_UP} s{reason}: {advice}")


class _Wait:
    """The time that a process has waited."""

    def __init__(self):
        self.began, self.said = time.monotonic(), False

    def over(self, whom: str) -> bool:
        """Whether it has waited for long enough; says for whom it waits, once."""
        waited = time.monotonic() - self.began
        if waited > PATIENCE and not self.said:
            self.said = True
            print(f"waiting for {whom}, up to {GIVE_UP} s", flush=True)
        return waited > GIVE_UP


def _answer(joined: dict[int, socket.socket], text: str) -> None:
    for caller in joined.values():
        with contextlib.suppress(OSError):
            caller.sendall(f"{text if text == GO else f'no: {text}'}\n".encode())


def _gone(caller: socket.socket) -> bool:
    """Whether a process that called has hung up, since it died."""
    caller.setblocking(False)
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        caller.settimeout(PATIENCE / 5)


def _named(missing: list[int]) -> str:
    """Such as "process 1", or "processes 1, 2, 3"."""
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"process{'es' if len(missing) > 1 else ''} {shown}"
