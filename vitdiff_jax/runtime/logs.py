"""What a person sees: progress, metrics.jsonl, TensorBoard events, the table of parameters."""

import datetime
import json
import sys
import time
from typing import Any

import clu.parameter_overview
import jax
import tqdm
from etils import epath

from vitdiff_jax.runtime import chips, paths


def peak_flops() -> float | None:
    """The peak of all devices together, None where it is not known (CPUs)."""
    peak = chips.peak_flops(jax.devices()[0].device_kind)
    return peak and peak * jax.device_count()


def say(text: str) -> None:
    """One line to the terminal, from process 0, above a progress bar if there is one."""
    if jax.process_index() == 0:
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def parameter_table(params: Any) -> str:
    """clu's table of parameters: name, shape, size, and the total."""
    return clu.parameter_overview.get_parameter_overview(params, include_stats=False)


class Metrics:
    """Scalars and pictures of a run from step `start` on, written by process 0 alone.

    Lines of metrics.jsonl after `start`, left by a run that died after its last checkpoint, are
    dropped, so that each step stands there once. In a bucket they are at each checkpoint, and else
    after `paths.SECONDS`.
    """

    def __init__(self, workdir: epath.Path, start: int, steps: int, batch: int, flops: float):
        self.steps, self.batch, self.flops = steps, batch, flops
        self.main = jax.process_index() == 0
        self.last, self.waited, self.aside = start, 0.0, 0.0
        self.since: float | None = None
        if not self.main:
            return
        self.spool = paths.Spool(workdir)
        self.path, old = self.spool.folder / "metrics.jsonl", workdir / "metrics.jsonl"
        if old.exists():
            kept = [line for line in old.read_text().splitlines() if _step_of(line) <= start]
            self.path.write_text("".join(f"{line}\n" for line in kept if _step_of(line) >= 0))
        import tensorboardX  # it imports torch where there is one: seconds, only for training

        self.events = tensorboardX.SummaryWriter(str(self.spool.folder), purge_step=start + 1)
        self.bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )  # fmt: skip

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write scalars of a step to metrics.jsonl and TensorBoard."""
        if self.main:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
            for name, value in values.items():
                self.events.add_scalar(name, value, step)
            if self.spool.due:
                self.send()

    def image(self, step: int, name: str, image: Any) -> None:
        """Write a picture uint8 [H, W, C] to TensorBoard."""
        if self.main:
            self.events.add_image(name, image, step, dataformats="HWC")

    def tick(self, step: int, waited: float) -> None:
        """Count a step, of which `waited` seconds went by waiting for data."""
        if self.since is None:  # the first step compiles: it is no measure of speed
            self.last, self.since, self.waited = step, time.monotonic(), 0.0
            self.aside = 0.0
            return
        self.waited += waited
        if self.main:
            self.bar.update(step - self.bar.n)

    def elsewhere(self, seconds: float) -> None:
        """Do not count time that went into samples and held-out losses as training time."""
        self.aside += seconds

    def line(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of training since the last line, and show them."""
        now = time.monotonic()
        seconds = max(now - (self.since or now) - self.aside, 1e-9)
        rate = (step - self.last) / seconds
        speed = {}
        if rate:  # not after the first step alone, which compiles
            speed = {
                "steps_per_second": rate,
                "images_per_second": rate * self.batch,
                "data_wait_share": self.waited / seconds,
            }
        if rate and (peak := peak_flops()):
            speed["model_flop_utilisation"] = 3 * self.flops * rate * self.batch / peak
        self.last, self.since, self.waited, self.aside = step, now, 0.0, 0.0
        self.write(step, values | speed)
        if self.main:
            shown = f"loss {values['loss']:.4f}"
            if rate:
                shown += f"  {rate * self.batch:.0f} images/s"
            self.bar.set_postfix_str(shown)
            if self.bar.disable:
                if rate:
                    left = datetime.timedelta(seconds=round((self.steps - step) / rate))
                    shown += f"  {rate:.2f} steps/s  left {left}"
                say(f"step {step}/{self.steps}  {shown}")

    def send(self) -> None:
        """Into the bucket, where the workdir is one; a run does not end where that cannot be."""
        if self.main:
            self.events.flush()
            try:
                self.spool.send()
            except Exception as error:  # of gcsfs, which has its own; it has tried for a minute
                say(f"warning: metrics are not in {self.spool.home} yet: {error}")

    def close(self) -> None:
        """Flush everything."""
        if self.main:
            self.bar.close()
            self.events.close()
            self.send()


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl, -1 if it was cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return -1
