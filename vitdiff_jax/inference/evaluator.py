"""Evaluates metrics of samples against a reference set of real images.

The statistics accumulated for a set are stored in a file, so that an interrupted command can
resume, and the reference is measured only once.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

import vitdiff_jax
from vitdiff_jax.data import card, gather, image_files, marks
from vitdiff_jax.data.pipeline import DataError, Dataset, Source
from vitdiff_jax.evaluation.frechet import Moments
from vitdiff_jax.evaluation.metric import Batch, Measure, Measured, Part, Setting
from vitdiff_jax.evaluation.references import References
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.runtime.tables import Results

Batches = Callable[[int], Iterable[Batch]]
"""A function of `first`: the batches of a set of images, starting from image `first`."""
SAVE_SECONDS = 60
BATCH = 128
LEAST = 2
"""Images of a set that can be compared: one has no covariance."""
OTHER = {"heldout": "train", "train": "heldout"}
SPLIT = {"heldout": "held-out", "train": "training"}


def measure(
    parts: Iterable[Part],
    count: int,
    batches: Batches,
    keep: epath.Path | None,
    about: dict[str, Any],
) -> Measured:
    """Accumulate the parts over `count` images; resumes from the file `keep` if `about` matches."""
    measured = Measured(parts, count)
    about = about | {"extractors": [part.extractor.name for part in measured.found]}
    if keep is not None and not measured.load(keep, about) and keep.is_file():
        logs.say(f"{keep} is of other images or settings, or damaged: measuring anew")
    measured.done = parallel.broadcast(measured.done)
    if measured.done == count:
        return measured
    if measured.done:
        logs.say(f"resuming at image {measured.done:,} of {count:,} ({keep})")
    saved = time.monotonic()
    for batch in batches(measured.done):
        with experiment_lib.config_errors("config.evaluate.metrics: "):
            measured.update(batch)
        last = measured.done == count
        if keep is not None and (last or time.monotonic() - saved > SAVE_SECONDS):
            if jax.process_index() == 0:
                measured.save(keep, about)
            logs.say(f"{measured.done:,} of {count:,} images measured")
            saved = time.monotonic()
    return measured


class Evaluator:
    """The metrics of a config, their reference, and the scores of real images."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        mesh: jax.sharding.Mesh,
        dataset: Dataset | None = None,
    ):
        self.config, self.home = config, workdir / "evaluation"
        if not config.evaluate.metrics:
            raise ConfigError("config.evaluate.metrics: empty; name at least one metric")

        def read():
            found = experiment_lib.pixel_dataset(config)
            for line in [*card.lines(found), *card.changed(workdir, found)]:
                logs.say(line)
            return found

        self.setting = Setting(
            read if dataset is None else lambda: dataset, mesh, config.evaluate.inception,
            experiment_lib.patch_of(config),
        )  # fmt: skip
        self.metrics = [self._metric(name) for name in config.evaluate.metrics]
        self.split = self.config.evaluate.reference
        self.file = None
        if self.split not in OTHER:
            self.file = References(paths.local_copy(self.split))

    def _metric(self, name: str) -> Measure:
        make = config_lib.find(config_lib.METRICS, "config.evaluate.metrics", name)
        with experiment_lib.config_errors("config.evaluate.metrics: "):
            return make(self.setting)

    @property
    def parts(self) -> list[Part]:
        """The statistics to accumulate over samples."""
        return [part for metric in self.metrics for part in metric.parts]

    def check_unpaired(self) -> None:
        """Refuse metrics that compare pairs of images, where there is no ground truth."""
        for name, metric in zip(self.config.evaluate.metrics, self.metrics):
            if getattr(metric, "paired", False):
                raise ConfigError(
                    f"config.evaluate.metrics: {name} compares pairs of images: --truth is required"
                )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse metrics that do not apply to images of this shape [H, W, C]."""
        for metric in self.metrics:
            with experiment_lib.config_errors("config.evaluate.metrics: "):
                getattr(metric, "check", lambda shape: None)(shape)

    def check_reference(self, shape: tuple[int, ...]) -> None:
        """Refuse a reference that a metric cannot compare with images of this shape [H, W, C]."""
        if not (parts := self._to_measure()):
            return
        key = f"config.evaluate.reference: {self.split}: "
        stored = image_files.Npz(self.file.path) if self.file else None
        if (n := len(stored or self._source(self.split))) < LEAST:
            what = "image" if stored else f"{SPLIT[self.split]} image"
            raise ConfigError(
                f"{key}{n} {what} is too few to compare with, at least {LEAST} are needed; use"
                f" {OTHER.get(self.split, 'heldout')}, or more images"
            )
        real = stored.shape if stored else self.setting.dataset.shape
        for metric in self._compared():
            if set(metric.parts) & set(parts):
                with experiment_lib.config_errors("config.evaluate.metrics: "):
                    getattr(metric, "check_sizes", lambda own, real: None)(shape, real)
        if stored:  # images without conditions
            with experiment_lib.config_errors(key):
                Measured(parts, LEAST).update(Batch(next(stored.read(LEAST))))

    def _source(self, split: str) -> Source:
        dataset = self.setting.dataset
        return dataset.train if split == "train" else dataset.heldout

    def _compared(self) -> list[Measure]:
        return [metric for metric in self.metrics if metric.compares]

    def _to_measure(self) -> list[Part]:
        """The parts of the reference that its file lacks. DataError if it lacks images, too."""
        if self.file is None:
            return [part for metric in self._compared() for part in metric.parts]
        lacking = [part for metric in self._compared() for part in self.file.lacks(metric)]
        if lacking and not self.file.has_images:
            raise DataError(
                f"{self.file.path}: lacks {lacking[0].output} for"
                f" {lacking[0].kind.__name__.lower()}, required by a metric of"
                " config.evaluate.metrics; make the file with --mode=statistics"
            )
        return lacking

    def results(self, measured: Measured) -> Results:
        """The values of all metrics."""
        found = {}
        for metric in self.metrics:
            reference = self.reference(metric) if metric.compares else ()
            with experiment_lib.config_errors("config.evaluate.metrics: "):
                found[metric.name] = metric.result(measured.of(metric), reference)
        return found

    def reference(self, metric: Measure) -> tuple[Any, ...]:
        """The reference statistics of the parts of a metric."""
        return tuple(self._reference[part] for part in metric.parts)

    @functools.cached_property
    def _reference(self) -> dict[Part, Any]:
        lacking = self._to_measure()
        if self.file is None:
            return self.real(self.split, None, lacking).found
        parts = [part for metric in self._compared() for part in metric.parts]
        found = {part: self.file.of(part) for part in parts if part not in lacking}
        if lacking:
            images = image_files.Npz(self.file.path)
            logs.say(f"measuring the {len(images):,} images in {self.file.path}")
            about = {"file": self.split, "mark": marks.of_file(self.file.path)}
            keep = self.home / "reference-images.npz"
            found |= measure(lacking, len(images), of_pictures(images), keep, about).found
        return found

    def real(self, split: str, count: int | None, parts: Iterable[Part]) -> Measured:
        """Measure real images of a split; count: size of a random subset, None: all."""
        dataset, source = self.setting.dataset, self._source(split)
        which: Sequence[int] = range(len(source))
        if count is not None and count < len(source):
            which = np.random.default_rng(0).choice(len(source), count, replace=False)  # type: ignore
        logs.say(f"measuring {len(which):,} {SPLIT[split]} images of {dataset.origin}")
        threads = self.config.parallel.data_threads

        def batches(first):
            for part in gather.read(source, which[first:], BATCH, threads):
                yield Batch(part.pop("image"), part)

        about = about_data(self.config, dataset) | {"split": split}
        return measure(parts, len(which), batches, self.home / f"real-{split}.npz", about)

    def real_scores(self, count: int) -> tuple[str, Results] | None:
        """The scores of `count` real images from the split that is not the reference.

        These are the best that samples can expect. None if the reference is a file and the dataset
        is missing, or of too few images.
        """
        split = OTHER.get(self.split, "heldout")
        metrics = [metric for metric in self._compared() if not metric.higher_is_better]
        if not metrics:
            return None
        try:
            if len(self._source(split)) < LEAST:
                logs.say(f"no score of real images: too few {SPLIT[split]} images")
                return None
            measured = self.real(split, count, [part for m in metrics for part in m.parts])
            with experiment_lib.config_errors("config.evaluate.metrics: "):
                found = {m.name: m.result(measured.of(m), self.reference(m)) for m in metrics}
        except (ConfigError, DataError) as error:
            if self.file is None and isinstance(error, DataError):
                raise
            logs.say(f"no score of real images: {error}")
            return None
        return f"{measured.count:,} {SPLIT[split]} images", found

    def warnings(
        self, measured: Measured, shape: tuple[int, ...], crop: str | None, lossy: bool
    ) -> list[str]:
        """Reasons to doubt the metrics of these samples, one line each; crop None: unknown."""
        spaces, asked = self.config.train.frechet.spaces, self.config.evaluate.metrics
        lines = [
            f"{name}: the model was trained to lower this distance (config.train.frechet), which is"
            " no judge of it; others are"
            for name in asked
            if name in spaces
        ]
        for metric in self.metrics:
            for part in metric.parts:
                moments = measured.found[part]
                distance = isinstance(moments, Moments) and getattr(metric, "ideal", None) is None
                if distance and moments.count <= len(moments.sum):
                    lines.append(
                        f"{metric.name}: {moments.count:,} images are too few for"
                        f" {len(moments.sum):,} features: the covariance is rank-deficient and the"
                        " distance biased upwards; do not compare it with published values"
                    )
        about = self.file.about if self.file else {}
        if about and tuple(about.get("size", shape)) != shape:
            lines.append(
                f"the samples have shape {shape}, the reference {self.split} has {about['size']}"
                " (height, width, channels): resizing changes the distance"
            )
        if crop is not None and crop != about.get("crop", crop):
            lines.append(
                f"the training images were cropped {crop!r}, the reference {self.split}"
                f" {about['crop']!r}: their distributions differ"
            )
        if lossy:
            lines.append(
                "the samples have lossy compression (JPEG, WebP), which alone changes FID by"
                " several points; use PNG or .npz"
            )
        return lines

    def crop(self) -> str | None:
        """How images of the dataset are cropped; None if the dataset is missing."""
        try:
            return self.setting.dataset.crop
        except (DataError, ConfigError):
            return None


def outside(results: Results) -> list[str]:
    """A line for each value that lies outside the band of real images of its metric."""
    lines = []
    for name, found in results.items():
        value, band = found["value"], [found[end] for end in ("low", "high") if end in found]
        if band and math.isnan(value):
            lines.append(f"{name}: no number, for the samples have no steps within patches")
        elif band and not band[0] <= value <= band[1]:
            lines.append(
                f"{name}: {value:.3f} is outside the band of real images, {band[0]:.3f} to"
                f" {band[1]:.3f}"
            )
    return lines


def about_data(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """Facts about a dataset that comparable results must share."""
    places = ("data_dir", "path", "cache")
    data = {k: v for k, v in config.data.to_dict().items() if k not in places}
    counts = {"train": len(dataset.train), "heldout": len(dataset.heldout)}
    return {
        "data": data, "size": list(dataset.shape), "crop": dataset.crop, "images": counts,
        "mark": dataset.mark,
    }  # fmt: skip


def sampled(
    sample: Callable[[prompts.Cond, int, int], np.ndarray], config: ConfigDict, dataset: Dataset,
    count: int,
) -> Batches:  # fmt: skip
    """Batches from sample(conditions, n, first seed); image i uses seed evaluate.seed + i."""

    def batches(first):
        for start in range(first, count, config.sample.batch):
            n = min(config.sample.batch, count - start)
            share = -(-n // jax.process_count())  # of the conditions, which are read with images
            cond = prompts.of_examples(
                dataset, share, start + jax.process_index() * share,
                prior=config.evaluate.labels == "prior",
            )  # fmt: skip
            cond = gather.allgather(cond, n)
            yield Batch(sample(cond, n, config.evaluate.seed + start), cond)

    return batches


def of_pictures(images: image_files.ImageSet, truth: image_files.ImageSet | None = None) -> Batches:
    """Batches of image files, with their ground truth."""

    def read(found, first):
        mine = found.read(BATCH, first, jax.process_index(), jax.process_count())
        for start, part in zip(range(first, len(found), BATCH), mine):
            yield gather.allgather(part, min(BATCH, len(found) - start))

    def batches(first):
        truths = read(truth, first) if truth else itertools.repeat(None)
        for part, true in zip(read(images, first), truths):
            yield Batch(part, {}, true)

    return batches


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return {
        "vitdiff_jax": vitdiff_jax.__version__, "jax": jax.__version__, "flax": flax.__version__,
        "numpy": np.__version__,
    }  # fmt: skip
