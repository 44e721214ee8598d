"""Metrics with their reference: sets of images, real or drawn, are measured and compared here.

What was added up so far of a set is kept in a file, so that the same command goes on after an
interruption, and the reference is measured once.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

import vitdiff_jax
from vitdiff_jax.data import gather, pictures
from vitdiff_jax.data.pipeline import DataError, Dataset
from vitdiff_jax.evaluation.frechet import Moments
from vitdiff_jax.evaluation.measuring import Batch, Measure, Measured, Part, Setting
from vitdiff_jax.evaluation.references import References
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.runtime.tables import Results

Batches = Callable[[int], Iterable[Batch]]
"""The batches of a set of images, from image number ... on."""
SAVE_SECONDS = 60
BATCH = 128
OTHER = {"heldout": "train", "train": "heldout"}


def measure(
    parts: Iterable[Part],
    count: int,
    batches: Batches,
    keep: epath.Path | None,
    about: dict[str, Any],
) -> Measured:
    """Add up the parts over `count` images, going on from what `keep` holds of the same `about`."""
    measured = Measured(parts, count)
    about = about | {"extractors": [part.extractor.name for part in measured.found]}
    if keep is not None:
        measured.load(keep, about)
    measured.done = parallel.agree(measured.done)
    if measured.done == count:
        return measured
    if measured.done:
        logs.say(f"going on at image {measured.done:,} of {count:,} ({keep})")
    saved = time.monotonic()
    for batch in batches(measured.done):
        with experiment_lib.named("config.evaluate.metrics: "):
            measured.update(batch)
        last = measured.done == count
        if keep is not None and (last or time.monotonic() - saved > SAVE_SECONDS):
            if jax.process_index() == 0:
                measured.save(keep, about)
            logs.say(f"{measured.done:,} of {count:,} images measured")
            saved = time.monotonic()
    return measured


class Evaluator:
    """The metrics of a config, what they compare with, and what real images get."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        mesh: jax.sharding.Mesh,
        dataset: Dataset | None = None,
    ):
        self.config, self.home = config, workdir / "evaluation"
        if not config.evaluate.metrics:
            raise ConfigError("config.evaluate.metrics: empty; name what to measure")
        read = functools.partial(experiment_lib.pictures, config)
        self.setting = Setting(
            read if dataset is None else lambda: dataset, mesh, config.evaluate.inception
        )
        self.metrics = [self._metric(name) for name in config.evaluate.metrics]
        self.split = self.config.evaluate.reference
        self.file = None
        if self.split not in OTHER:
            self.file = References(paths.local(self.split).expanduser())

    def _metric(self, name: str) -> Measure:
        make = config_lib.find(config_lib.METRICS, "config.evaluate.metrics", name)
        with experiment_lib.named("config.evaluate.metrics: "):
            return make(self.setting)

    @property
    def parts(self) -> list[Part]:
        """What is to be added up of samples."""
        return [part for metric in self.metrics for part in metric.parts]

    def _compared(self) -> list[Measure]:
        return [metric for metric in self.metrics if metric.compares]

    def results(self, measured: Measured) -> Results:
        """Each metric's numbers."""
        found = {}
        for metric in self.metrics:
            reference = self.reference(metric) if metric.compares else ()
            with experiment_lib.named("config.evaluate.metrics: "):
                found[metric.name] = metric.result(measured.of(metric), reference)
        return found

    def reference(self, metric: Measure) -> tuple[Any, ...]:
        """What stands for the accumulators of a metric's parts in the reference."""
        return tuple(self._reference[part] for part in metric.parts)

    @functools.cached_property
    def _reference(self) -> dict[Part, Any]:
        metrics = self._compared()
        parts = [part for metric in metrics for part in metric.parts]
        if self.file is None:
            return self.real(self.split, None, parts).found
        lacking = [part for metric in metrics for part in self.file.lacks(metric)]
        found = {part: self.file.of(part) for part in parts if part not in lacking}
        if lacking and not self.file.has_images:
            raise DataError(
                f"{self.file.path}: has no {lacking[0].output} for"
                f" {lacking[0].kind.__name__.lower()}, which a metric of config.evaluate.metrics"
                " needs; make it with --mode=statistics"
            )
        if lacking:
            images = pictures.Npz(self.file.path)
            logs.say(f"measuring the {len(images):,} images in {self.file.path}")
            about = {"file": self.split, "bytes": self.file.path.stat().st_size}
            keep = self.home / "reference-images.npz"
            found |= measure(lacking, len(images), of_pictures(images), keep, about).found
        return found

    def real(self, split: str, count: int | None, parts: Iterable[Part]) -> Measured:
        """Real images of a split of the data set; count: a random part of so many, None: all."""
        dataset = self.setting.dataset
        source = dataset.train if split == "train" else dataset.heldout
        which: Sequence[int] = range(len(source))
        if count is not None and count < len(source):
            which = np.random.default_rng(0).choice(len(source), count, replace=False)  # type: ignore
        logs.say(f"measuring {len(which):,} images of {split}, {dataset.origin}")
        threads = self.config.parallel.data_threads

        def batches(first):
            for part in gather.read(source, which[first:], BATCH, threads):
                yield Batch(part.pop("image"), part)

        about = about_data(self.config, dataset) | {"split": split}
        return measure(parts, len(which), batches, self.home / f"real-{split}.npz", about)

    def real_scores(self, count: int) -> tuple[str, Results] | None:
        """The distances of so many real images of the split that is not the reference.

        None where the reference is a file and the data set is not there.
        """
        split = OTHER.get(self.split, "heldout")
        metrics = [metric for metric in self._compared() if not metric.higher_is_better]
        if not metrics:
            return None
        try:
            measured = self.real(split, count, [part for m in metrics for part in m.parts])
        except DataError as error:
            if self.file is None:
                raise
            logs.say(f"real images are not measured: {error}")
            return None
        found = {m.name: m.result(measured.of(m), self.reference(m)) for m in metrics}
        return f"{measured.count:,} real images of {split}", found

    def warnings(
        self, measured: Measured, shape: tuple[int, ...], crop: str | None, lossy: bool
    ) -> list[str]:
        """What makes numbers of these samples doubtful, a line each; crop None: not known."""
        lines = []
        for metric in self.metrics:
            for part in metric.parts:
                moments = measured.found[part]
                if isinstance(moments, Moments) and moments.count <= len(moments.sum):
                    lines.append(
                        f"{metric.name}: {moments.count:,} images are no more than the"
                        f" {len(moments.sum):,} numbers of each, so its covariance is not of full"
                        " rank and the distance too large; compare it with nothing"
                    )
        about = self.file.about if self.file else {}
        if about and tuple(about.get("size", shape)) != shape:
            lines.append(
                f"the samples are of {shape}, the reference {self.split} of {about['size']}"
                " (height, width, channels): resizing shifts the distance"
            )
        if crop is not None and crop != about.get("crop", crop):
            lines.append(
                f"the model's images were cropped {crop!r}, the reference {self.split}"
                f" {about['crop']!r}: they are not of one distribution"
            )
        if lossy:
            lines.append(
                "the samples were compressed with loss (JPEG, WebP), which alone shifts FID by"
                " several points; measure PNG or .npz"
            )
        return lines

    def crop(self) -> str | None:
        """How the data set is cropped, None where it is not there."""
        try:
            return self.setting.dataset.crop
        except (DataError, ConfigError):
            return None


def about_data(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """What makes images of a data set comparable."""
    data = {k: v for k, v in config.data.to_dict().items() if k not in ("data_dir", "cache")}
    counts = {"train": len(dataset.train), "heldout": len(dataset.heldout)}
    return {"data": data, "size": list(dataset.shape), "crop": dataset.crop, "images": counts}


def sampled(
    draw: Callable[[prompts.Cond, int, int], np.ndarray], config: ConfigDict, dataset: Dataset,
    count: int,
) -> Batches:  # fmt: skip
    """Samples as batches, by draw(conditions, n, first seed); image i has evaluate.seed + i."""

    def batches(first):
        for start in range(first, count, config.sample.batch):
            n = min(config.sample.batch, count - start)
            share = -(-n // jax.process_count())  # of conditions, which lie with images to decode
            cond = prompts.of_examples(
                dataset, share, start + jax.process_index() * share,
                prior=config.evaluate.labels == "prior",
            )  # fmt: skip
            cond = gather.gathered(cond, n)
            yield Batch(draw(cond, n, config.evaluate.seed + start), cond)

    return batches


def of_pictures(images: pictures.Pictures, truth: pictures.Pictures | None = None) -> Batches:
    """Pictures as batches, with the true ones."""

    def read(found, first):
        mine = found.read(BATCH, first, jax.process_index(), jax.process_count())
        for start, part in zip(range(first, len(found), BATCH), mine):
            yield gather.gathered(part, min(BATCH, len(found) - start))

    def batches(first):
        others = read(truth, first) if truth else itertools.repeat(None)
        for part, true in zip(read(images, first), others):
            yield Batch(part, {}, true)

    return batches


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return {
        "vitdiff_jax": vitdiff_jax.__version__, "jax": jax.__version__, "flax": flax.__version__,
        "numpy": np.__version__,
    }  # fmt: skip
