"""A profile of some steps of training, on request: `--profile=100:110`.

JAX writes a trace of the host and of the devices below `<workdir>/profile`: .trace.json.gz for
Perfetto, .xplane.pb for TensorBoard; neither needs TensorFlow. Each step is one span, "train", with
its number; what is computed bears the names of the model's parts (block_3/attention/...).
"""

from typing import Any

import jax
from etils import epath

from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.runtime import logs, paths


def parse(text: str | None, steps: int) -> range:
    """The steps of "first:last", both included, of a run of `steps`; of None, none."""
    if text is None:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"--profile: {text!r} is not first:last step")
    if int(last) > steps:
        raise ConfigError(f"--profile: {text} is not reached with config.train.steps={steps}")
    return range(int(first), int(last) + 1)


class Profile:
    """Traces those of `steps` that a run goes through, in process 0 alone, with its own devices.

    A profile begins and ends between two steps, so that each is whole.
    """

    def __init__(self, steps: range, folder: epath.Path):
        self.steps = steps if jax.process_index() == 0 else range(0)
        self.spool, self._traced = paths.Spool(folder), False

    @property
    def text(self) -> str:
        """The first and the last step, for a person."""
        return f"{self.steps[0]} to {self.steps[-1]}"

    def begin(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The span of a step, to be opened with `with`."""
        if step in self.steps and not self._traced:
            jax.profiler.start_trace(self.spool.folder)
            self._traced = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, values: Any) -> None:
        """After a step, with something that is known when the devices have done it."""
        if self._traced and step + 1 not in self.steps:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Write what was traced, if anything was; a run does not end where that cannot be."""
        if not self._traced:
            return
        self._traced = False
        try:
            jax.profiler.stop_trace()
            self.spool.send()
        except Exception as error:  # the disk is full, or the folder read-only, or no bucket
            logs.say(f"warning: the profile could not be written: {error}")
        else:
            logs.say(f"profile in {self.spool.home}: open it with Perfetto or TensorBoard")
