"""The progress of compiled programs, which report their network calls, and their interruption.

A program runs in a thread of its own, since Python's main thread gets Ctrl-C only while it is not
inside of a compiled program. It calls `Meter.tick` before each call of the network, which raises
once the program is to stop: so it stops within a network call.
"""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]
"""Called with the network calls done and their total: from 0 on, never less than before."""
PERIOD = 0.1
"""Seconds between reports."""
PATIENCE = 0.7
"""Seconds to wait for an interrupted program, and at exit again: it may be in a network call."""


class Stopped(Exception):
    """Ends a program from inside."""


# JAX logs the traceback of what a callback raises, before the program ends.
logging.getLogger("jax._src.debugging").addFilter(
    lambda record: not (record.exc_info and record.exc_info[0] is Stopped)
)


class Meter:
    """Counts the network calls of a program that is called again and again."""

    def __init__(self):
        self.stopped, self.calls = False, 0
        self.began: list[float] = []  # when the first and the last call began
        self.thread: threading.Thread | None = None  # the last one

    def tick(self, _: Any) -> None:
        """Count a call that begins: the one before it has ended."""
        if self.stopped:
            raise Stopped
        self.calls += 1
        self.began = [*self.began[:1], time.monotonic()]

    def pace(self, done: int) -> float:
        """Seconds per call."""
        return (self.began[-1] - self.began[0]) / done

    def watch(
        self, run: Callable[[], Any], report: Callable[[int], None] = lambda done: None
    ) -> Any:
        """run() in a thread; report(calls done) meanwhile, in this one.

        What `report` raises stops the program, as Ctrl-C does, and is raised here.
        """
        found: dict[str, Any] = {}

        def target():
            try:
                found["result"] = run()
            except BaseException as error:
                found["error"] = error

        while self.thread is not None and self.thread.is_alive():  # interrupted, still in a call
            self.thread.join(PERIOD)
        self.stopped, self.calls, self.began = False, 0, []
        thread = self.thread = threading.Thread(target=target, name="program", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(PERIOD)
                report(max(self.calls - 1, 0))
        except BaseException:
            self.stopped = True
            atexit.register(_leave, thread)
            thread.join(PATIENCE)
            raise
        if "error" in found:
            raise found["error"]
        return found["result"]


def _leave(thread: threading.Thread) -> None:
    """At the exit of the process: XLA's compiler, which nothing interrupts, would abort it."""
    thread.join(PATIENCE)
    if thread.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
