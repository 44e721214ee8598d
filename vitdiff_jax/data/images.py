"""A `Source` of pictures: decoded, cropped, flipped, with conditions; broken ones replaced."""

import logging
import pathlib
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vitdiff_jax.data import transforms
from vitdiff_jax.data.pipeline import DataError, Example

Facts = dict[str, Any]
"""What is known of a picture, as JSON can hold it, and "index", its place among all records."""
Crop = Callable[[Image.Image, np.random.Generator | None], np.ndarray]
Annotate = Callable[[Facts, np.random.Generator | None], Example]


class Records(Protocol):
    """Pictures by number: encoded, or as pixels uint8 [H, W, C] if they are stored resized."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, Facts]: ...


class Images:
    """Pictures as examples.

    flip: mirror half of the examples. upright, least: see `transforms.decode`.
    listed: the numbers of the records that are known to be broken; they are left out.
    list_missing: where `--mode=prepare` should write that list; None if it is there.
    A picture that turns out broken is replaced in its place by the next good one, so that nothing
    shifts; more than a share `max_broken` of such is a DataError.
    """

    def __init__(
        self,
        records: Records,
        *,
        name: str,
        channels: int,
        crop: Crop,
        annotate: Annotate,
        flip: bool = False,
        upright: bool = False,
        least: int = 0,
        listed: Collection[int] = (),
        list_missing: pathlib.Path | None = None,
        max_broken: float = 0.001,
    ):
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken: {max_broken} is not a share")
        self.records, self.name, self.channels, self.crop = records, name, channels, crop
        self.annotate, self.flip, self.upright, self.least = annotate, flip, upright, least
        self.max_broken, self.list_missing = max_broken, list_missing
        self.good = np.setdiff1d(np.arange(len(records)), np.array(sorted(listed), np.int64))
        self.broken: set[int] = set()
        self._lock = threading.Lock()
        if len(records) and not len(self.good):
            raise DataError(f"{name}: none of the {len(records)} images can be decoded")

    def __len__(self):
        return len(self.good)

    def example(self, index, rng=None):
        """Example `index`: {"image": uint8 [H, W, C], ...}; see `pipeline.Source`."""
        for offset in range(len(self)):
            record = int(self.good[(index + offset) % len(self)])
            if record in self.broken:
                continue
            try:
                image, facts = self.pixels(record, rng)
            except (ValueError, OSError) as error:
                self._count(record, error)
                continue
            if self.flip and rng is not None and rng.random() < 0.5:
                image = image[:, ::-1]
            return {"image": image} | self.annotate(facts, rng)
        raise DataError(f"{self.name}: no image can be decoded")

    def pixels(self, record: int, rng=None) -> tuple[np.ndarray, Facts]:
        """A record decoded and cropped. Raises ValueError or OSError if it is broken."""
        image, facts = self.records[record]
        if isinstance(image, bytes):
            decoded = transforms.decode(image, self.channels, self.upright, self.least)
            image = self.crop(decoded, rng)
        return image, facts

    def _count(self, record: int, error: Exception) -> None:
        """Note a broken picture; DataError if these are too many."""
        with self._lock:
            if record in self.broken:  # another thread was faster
                return
            self.broken.add(record)
            count = len(self.broken)
        reason = " ".join(str(error).split())
        if count > self.max_broken * len(self):
            raise DataError(
                f"{self.name}: {count} of {len(self)} images cannot be decoded, more than the share"
                f" config.data.max_broken={self.max_broken}; the last one: {record}, {reason}"
            )
        logging.getLogger(__name__).warning(
            "%s: image %d cannot be decoded (%s); the next good one takes its place; %d so far",
            self.name, record, reason, count,
        )  # fmt: skip


def crop_of(size: int, random_area: float, cache: bool) -> Crop:
    """ADM's centre crop, or with `random_area` above 0 a random crop of at least that area.

    Without random numbers it is always the centre. cache: the result is to be stored.
    """
    if size < 1:
        raise ValueError(f"size: {size} is less than 1")
    if not 0 <= random_area <= 1:
        raise ValueError(f"random_area: {random_area} is not in [0, 1]")
    if cache and random_area:
        raise ValueError("cache: holds one crop of each image; use it with random_area=0")

    def crop(image, rng):
        if random_area and rng is not None:
            return transforms.random_crop(image, size, rng, random_area)
        return transforms.centre_crop(image, size)

    return crop


def label_only(facts: Facts, rng: np.random.Generator | None) -> Example:
    """The condition of a data set with classes."""
    return {"label": np.array(facts["label"], np.int32)}


def hiding(share: float) -> Callable[[np.ndarray, np.random.Generator | None], np.ndarray]:
    """A function that hides (-1) a random part of attributes int8 [K] in a `share` of examples."""
    if not 0 <= share <= 1:
        raise ValueError(f"hide: {share} is not in [0, 1]")

    def hidden(attributes, rng):
        if rng is not None and rng.random() < share:
            attributes[rng.random(len(attributes)) < rng.random()] = -1
        return attributes

    return hidden


def one_of(choices: Sequence[Any], rng: np.random.Generator | None) -> Any:
    """One at random, such as a caption; without random numbers the first."""
    return choices[0 if rng is None else int(rng.integers(len(choices)))]
