"""A `Source` of images: decoded, cropped, flipped, with conditions; broken ones are replaced."""

import logging
import pathlib
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vitdiff_jax.data import marks, transforms
from vitdiff_jax.data.pipeline import DataError, Example

Metadata = dict[str, Any]
"""JSON-serialisable facts about an image, and "index", its position among all records."""
Crop = Callable[[Image.Image, np.random.Generator | None], np.ndarray]
Annotate = Callable[[Metadata, np.random.Generator | None], Example]


class Records(Protocol):
    """Images by index: encoded, or pixels uint8 [H, W, C] where they are stored resized."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, Metadata]: ...


class Images:
    """Images as examples.

    flip: random horizontal flips. upright, min_size: see `transforms.decode`.
    listed: indices of records known to be broken; they are left out.
    mark: of the content of these records, see `marks`.
    list_missing: where `--mode=prepare` should write that list; None if it exists.
    An image that fails to decode is replaced in place by the next good one, so that the order of
    the others does not change; so is one that cannot be read, which is tried again the next time.
    More than a fraction `max_broken` of them is a DataError.
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
        min_size: int = 0,
        listed: Collection[int] = (),
        list_missing: pathlib.Path | None = None,
        mark: Callable[[Sequence[int]], str] | None = None,
        max_broken: float = 0.001,
    ):
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken: {max_broken} is not in [0, 1]")
        self.records, self.name, self.channels, self.crop = records, name, channels, crop
        self.annotate, self.flip, self.upright, self.min_size = annotate, flip, upright, min_size
        self.max_broken, self.list_missing = max_broken, list_missing
        self.good = np.setdiff1d(np.arange(len(records)), np.array(sorted(listed), np.int64))
        self._mark = mark
        self.broken: set[int] = set()
        self.unread: set[int] = set()
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
                image, metadata = self.pixels(record, rng)
            except (ValueError, OSError) as error:
                self._count(record, error)
                continue
            self.unread.discard(record)
            if self.flip and rng is not None and rng.random() < 0.5:
                image = image[:, ::-1]
            return {"image": image} | self.annotate(metadata, rng)
        raise DataError(f"{self.name}: no image can be decoded")

    def pixels(self, record: int, rng=None) -> tuple[np.ndarray, Metadata]:
        """A record, decoded and cropped. Raises ValueError or OSError if it is broken."""
        image, metadata = self.records[record]
        if isinstance(image, bytes):
            decoded = transforms.decode(image, self.channels, self.upright, self.min_size)
            image = self.crop(decoded, rng)
        return image, metadata

    def mark(self, which: Sequence[int]) -> str:
        """The mark of the content of these examples, by index."""
        if self._mark is not None:
            return self._mark([int(self.good[i]) for i in which])
        some = [int(self.good[i]) for i in which[:: max(1, len(which) // marks.EXAMPLES)]]
        return marks.digest([len(which), *map(self._content, some)])

    def _content(self, record: int) -> list[Any]:
        """What identifies a record."""
        try:
            image, metadata = self.records[record]
        except (ValueError, OSError):
            return [record]
        return [marks.of_bytes(image if isinstance(image, bytes) else image.tobytes()), metadata]

    def _count(self, record: int, error: Exception) -> None:
        """Record a broken or unreadable image. Raises DataError if there are too many."""
        unread = isinstance(error, OSError) and error.errno is not None  # decoders set none
        with self._lock:
            if record in self.broken or record in self.unread:  # by another thread, or before
                return
            (self.unread if unread else self.broken).add(record)
            count = len(self.broken) + len(self.unread)
        reason, cannot = (
            " ".join(str(error).split()),
            f"cannot be {'read' if unread else 'decoded'}",
        )
        if count > self.max_broken * len(self):
            raise DataError(
                f"{self.name}: {count} of {len(self)} images {cannot}, more than the"
                f" fraction config.data.max_broken={self.max_broken}; last image {record}: {reason}"
            )
        logging.getLogger(__name__).warning(
            "%s: image %d %s (%s) and is replaced by the next one; %d so far",
            self.name, record, cannot, reason, count,
        )  # fmt: skip


def make_crop(size: int, random_area: float, cache: bool) -> Crop:
    """ADM's centre crop, or with `random_area` > 0 a random crop of at least that area.

    Without an rng it is always the centre crop. cache: whether the result will be stored.
    """
    if size < 1:
        raise ValueError(f"size: {size} is less than 1")
    if not 0 <= random_area <= 1:
        raise ValueError(f"random_area: {random_area} is not in [0, 1]")
    if cache and random_area:
        raise ValueError("cache: stores one crop per image; use it with random_area=0")

    def crop(image, rng):
        if random_area and rng is not None:
            return transforms.random_crop(image, size, rng, random_area)
        return transforms.centre_crop(image, size)

    return crop


def label_only(metadata: Metadata, rng: np.random.Generator | None) -> Example:
    """The condition of a data set with classes."""
    return {"label": np.array(metadata["label"], np.int32)}


def attribute_dropout(
    rate: float,
) -> Callable[[np.ndarray, np.random.Generator | None], np.ndarray]:
    """A function that hides (-1) a random subset of attributes int8 [K], at this rate."""
    if not 0 <= rate <= 1:
        raise ValueError(f"hide: {rate} is not in [0, 1]")

    def drop(attributes, rng):
        if rng is not None and rng.random() < rate:
            attributes[rng.random(len(attributes)) < rng.random()] = -1
        return attributes

    return drop


def choose(choices: Sequence[Any], rng: np.random.Generator | None) -> Any:
    """A random choice, such as a caption; the first without an rng."""
    return choices[0 if rng is None else int(rng.integers(len(choices)))]
