"""Profiling of some training steps, on request: `--profile=100:110`.

JAX writes a trace of host and devices below `<workdir>/profile`: .trace.json.gz for Perfetto,
.xplane.pb for TensorBoard; neither needs TensorFlow. Each step is a span "train" with its number;
operations are named after the modules of the model (block_3/attention/...).
"""

from typing import Any

import jax
from etils import epath

from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.runtime import logs, paths, processes


def parse(text: str | None, steps: int) -> range:
    """The steps of "first:last", inclusive, in a run of `steps`; an empty range for None."""
    if text is None:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile: {text!r} is not of the form first:last")
    if int(last) > steps:
        raise ConfigError(f"--profile: {text} is beyond config.train.steps={steps}")
    return range(int(first), int(last) + 1)


class Profile:
    """Traces `steps` on process 0, with its local devices.

    A trace starts and stops between two steps, so that all of its steps are complete.
    """

    def __init__(self, steps: range, folder: epath.Path):
        self.steps = steps if processes.is_first() else range(0)
        self.spool, self._traced = paths.Spool(folder), False

    @property
    def text(self) -> str:
        """First and last step, for messages."""
        return f"{self.steps[0]} to {self.steps[-1]}"

    def begin(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The span of a step, a context manager."""
        if step in self.steps and not self._traced:
            jax.profiler.start_trace(self.spool.folder)
            self._traced = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, values: Any) -> None:
        """Call after a step; `values` are outputs of the step, to wait for."""
        if self._traced and step + 1 not in self.steps:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Write the trace, if there is one; a failure does not stop the run."""
        if not self._traced:
            return
        self._traced = False
        try:
            jax.profiler.stop_trace()
            self.spool.upload()
        except Exception as error:  # full disk, read-only folder, unreachable bucket
            logs.say(f"warning: the profile could not be written: {error}")
        else:
            logs.say(f"profile in {self.spool.home}: open it with Perfetto or TensorBoard")
