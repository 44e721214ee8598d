"""Logging: terminal output, progress bar, metrics.jsonl, TensorBoard events."""

import datetime
import json
import sys
import time
from typing import Any

import clu.parameter_overview
import jax
import tqdm
from etils import epath

from vitdiff_jax.runtime import chips, paths, processes, tables


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together; None if unknown (CPUs)."""
    peak = chips.peak_flops(jax.devices()[0].device_kind)
    return peak and peak * jax.device_count()


def say(text: str) -> None:
    """Print a line from process 0, above the progress bar if there is one."""
    if processes.is_first():
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def parameter_table(params: Any) -> str:
    """clu's table of parameters: name, shape, dtype and size of each, and the total."""
    return clu.parameter_overview.get_parameter_overview(params, include_stats=False)


class Bar:
    """A progress bar in a terminal; elsewhere a line for each tenth of what takes long.

    To be called with (done, total).
    """

    SECONDS = 10.0  # between lines, at least

    def __init__(self, name: str):
        self.name, self.bar = name, None
        self.began = self.said = time.monotonic()
        self.tenths = 0

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty() and jax.process_index() == 0:
            if self.bar is None:
                self.bar = tqdm.tqdm(desc=self.name, total=total, leave=False, dynamic_ncols=True)
            self.bar.total = total  # which may grow
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if 10 * done // total > self.tenths and done < total and now - self.said >= self.SECONDS:
            self.tenths, self.said = 10 * done // total, now
            left = datetime.timedelta(seconds=round((now - self.began) * (total / done - 1)))
            say(f"{self.name}: {done / total:.0%}, {left} left")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()


class Metrics:
    """Scalars and images of a run from step `start` on, written by process 0.

    Lines of metrics.jsonl after `start`, left by a run that died after its last checkpoint, are
    dropped, so that no step is logged twice. In a bucket, the files are uploaded at each checkpoint
    and every `paths.SECONDS`.
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
            lines = old.read_bytes().decode(errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= start]
            text = "".join(f"{line}\n" for line in kept if _step_of(line) >= 0)
            paths.write(self.path, text.encode())
        import tensorboardX  # imports torch if installed: seconds, so only in training

        self.events = tensorboardX.SummaryWriter(str(self.spool.folder), purge_step=start + 1)
        self.bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )  # fmt: skip

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of a step to metrics.jsonl and TensorBoard."""
        if self.main:
            with self.path.open("a") as file:
                file.write(json.dumps(tables.finite({"step": step} | values)) + "\n")
            for name, value in values.items():
                self.events.add_scalar(name, value, step)
            if self.spool.due:
                self.upload()

    def image(self, step: int, name: str, image: Any) -> None:
        """Write an image uint8 [H, W, C] to TensorBoard."""
        if self.main:
            self.events.add_image(name, image, step, dataformats="HWC")

    def tick(self, step: int, waited: float) -> None:
        """Count a step, `waited` seconds of which were spent waiting for data."""
        if self.since is None:  # the first step compiles: not representative
            self.last, self.since, self.waited = step, time.monotonic(), 0.0
            self.aside = 0.0
            return
        self.waited += waited
        if self.main:
            self.bar.update(step - self.bar.n)

    def exclude(self, seconds: float) -> None:
        """Exclude time spent on samples and evaluations from the training speed."""
        self.aside += seconds

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write training metrics and the speed since the last call, and print them."""
        now = time.monotonic()
        seconds = max(now - (self.since or now) - self.aside, 1e-9)
        rate = (step - self.last) / seconds
        speed = {}
        if rate:  # none after the first step alone, which compiles
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
                    eta = datetime.timedelta(seconds=round((self.steps - step) / rate))
                    shown += f"  {rate:.2f} steps/s  ETA {eta}"
                say(f"step {step}/{self.steps}  {shown}")

    def upload(self) -> None:
        """Upload, if the workdir is in a bucket; a failure does not stop the run."""
        if self.main:
            self.events.flush()
            try:
                self.spool.upload()
            except Exception as error:  # of gcsfs, which has its own and retries for a minute
                say(f"warning: metrics not uploaded to {self.spool.home} yet: {error}")

    def close(self) -> None:
        """Flush and close all files."""
        if self.main:
            self.bar.close()
            self.events.close()
            self.upload()


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 if the line is truncated or damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return -1
