"""Graceful stop: the training loop polls after each step whether a signal has arrived."""

import contextlib
import os
import signal
from typing import Any

import jax

from vitdiff_jax.runtime.checkpoint import Checkpoints


class StopRequest:
    """Handlers of SIGTERM and Ctrl-C; calling the object tells whether to stop after this step.

    With several processes JAX agrees on a common step at which all stop. A second Ctrl-C kills.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.manager = checkpoints.manager
        self.requested, self.steps = False, 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if jax.distributed.is_initialized():  # JAX handles SIGTERM itself
            handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
        else:
            handlers = {signal.SIGINT: self._request, signal.SIGTERM: self._request}
        for number, handler in handlers.items():
            # Only the main thread can set handlers; elsewhere (notebooks) nothing changes.
            with contextlib.suppress(ValueError):
                self.previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        """Whether to save and stop after this step; to be called once after each step."""
        # JAX stops one step after the last one reported to it, and none has been reported if the
        # signal comes first: so report the number of steps of this run.
        self.steps += 1
        return self.requested or self.manager.reached_preemption(self.steps)
