"""Stopping on request: a signal becomes a question that the training loop asks after each step."""

import contextlib
import os
import signal
from typing import Any

import jax

from vitdiff_jax.runtime.checkpoint import Checkpoints


class StopRequest:
    """SIGTERM and Ctrl-C as a question that the training loop asks after each step.

    With several processes JAX agrees on one step at which all stop; a second Ctrl-C kills.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.manager = checkpoints.manager
        self.asked, self.steps = False, 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if jax.distributed.is_initialized():  # JAX handles SIGTERM itself
            handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
        else:
            handlers = {signal.SIGINT: self._ask, signal.SIGTERM: self._ask}
        for number, handler in handlers.items():
            # Handlers can be set in the main thread only; elsewhere (notebooks) nothing changes.
            with contextlib.suppress(ValueError):
                self.previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        """Whether to save and stop after this step; to be asked once after each."""
        # JAX stops at the step after the last one that it was told of, and has been told of none
        # where the signal comes first: it is told how many this run has made.
        self.steps += 1
        return self.asked or self.manager.reached_preemption(self.steps)
