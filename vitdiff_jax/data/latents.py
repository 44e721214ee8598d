"""Latents of images, encoded once by an autoencoder (`--mode=prepare`) instead of during training.

A record is the mean and log-variance of an image, those of its mirror image too where training uses
horizontal flips, and the metadata as JSON. Each shard is written atomically, so that little is lost
when a long preparation is interrupted.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vitdiff_jax.data.images import Images, Metadata
from vitdiff_jax.data.pipeline import DataError, Example
from vitdiff_jax.data.records import Say, atomic_folder, read_record, scan

SHARD = 16_384
"""Images per shard: 540 MB of Stable Diffusion's latents at 256 px, with mirror images."""
BATCH = 64
"""Images encoded at once."""
FILES = ("latents.array_record", "latents.json")

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8 [N, H, W, 3] -> mean and log-variance [N, h, w, 2C] of the latents."""
DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
"""Errors that reading a damaged shard may raise."""


class Changed(DataError):
    """Latents of a data set whose images or labels have changed since."""


class Latents:
    """A `Source` of latents float32 [h, w, C], sampled with the rng; without one, their means.

    images: the images that were encoded. crop: how they were cropped, in words. encoder: the
    encoder required, in words; None: any. shape: (1 or 2, h, w, 2C).
    """

    def __init__(self, folder: pathlib.Path, images: Images, crop: str, encoder: str | None):
        self.folder, self.images, self.shape = folder, images, (0, 0, 0, 0)
        self._shards = []
        for first in range(0, len(images), SHARD):
            shard, wanted = _shard(folder, first), _about(images, first, crop, encoder)
            self.shape, source = _read(shard, wanted)
            self._shards.append(source)

    def __len__(self):
        return len(self.images)

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """See `pipeline.Source`."""
        try:
            record = read_record(self._shards[index // SHARD], index % SHARD)
        except OSError as error:
            raise _damaged(_shard(self.folder, index), error) from error
        size = 2 * int(np.prod(self.shape))
        moments = np.frombuffer(record[:size], np.float16).reshape(self.shape)
        mirrored = len(moments) > 1 and rng is not None and rng.random() < 0.5
        mean, log_variance = np.split(moments[int(mirrored)].astype(np.float32), 2, -1)
        if rng is not None:
            noise = rng.standard_normal(mean.shape, np.float32)
            mean = mean + np.exp(log_variance / 2) * noise
        return {"image": mean} | self.images.annotate(json.loads(record[size:]), rng)


def write(
    folder: pathlib.Path, images: Images, crop: str, encode: Encode, encoder: str, say: Say,
    process: int = 0, processes: int = 1,
) -> None:  # fmt: skip
    """Write the latents of all good images; existing shards of these images are kept.

    Shards of what these images were before are made anew; those of another data set or encoder are
    a DataError. The shards are distributed over the processes.
    """
    for first in range(process * SHARD, len(images), processes * SHARD):
        shard, about = _shard(folder, first), _about(images, first, crop, encoder)
        if (shard / FILES[1]).is_file():
            try:
                _read(shard, about)  # raises if it does not match
                continue
            except Changed:
                say(f"{images.name}: has changed since {shard} was written, which is made anew")
        say(f"{images.name}: writing latents {first:,} of {len(images):,} to {shard}")
        _write_shard(shard, images, first, encode, about, say)


def _read(shard: pathlib.Path, wanted: dict[str, Any]) -> tuple[tuple[int, ...], Any]:
    """(shape, records) of a shard. Raises DataError where it does not match."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    if not (shard / FILES[1]).is_file():
        raise DataError(f"{shard}: no latents: run the same config with --mode=prepare")
    try:
        about = json.loads((shard / FILES[1]).read_text())
        shape = tuple(about.pop("shape"))
        if wanted["encoder"] is None:
            wanted = wanted | {"encoder": about["encoder"]}
        source = ArrayRecordDataSource(str(shard / FILES[0]))
        about = {key: about[key] for key in wanted if key != "mark"} | {"mark": about.get("mark")}
        if len(source) != about["count"]:
            raise ValueError(f"{len(source)} records instead of {about['count']}")
    except DAMAGED as error:
        raise _damaged(shard, error) from error
    same = about["images"] == wanted["images"]
    if about["mark"] == wanted["mark"]:
        about["images"] = wanted["images"]  # wherever they lie
    elif same and all(about[key] == wanted[key] for key in ("crop", "mirrored", "encoder")):
        raise Changed(
            f"{shard}: latents of other images or labels than those of {wanted['images']} now; run"
            " the same config with --mode=prepare to make them anew"
        )
    if about != wanted:
        wrong = next(key for key in wanted if about.get(key) != wanted[key])
        raise DataError(
            f"{shard}: latents of different data: {wrong} is {about.get(wrong)!r}, not"
            f" {wanted[wrong]!r}; use another config.latent.path"
        )
    return shape, source


def _damaged(shard: pathlib.Path, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{shard}: damaged latents ({reason}); delete it and prepare again")


def _write_shard(
    shard: pathlib.Path, images: Images, first: int, encode: Encode, of: dict[str, Any], say: Say
) -> None:
    waiting: list[tuple[np.ndarray, Metadata]] = []
    shard.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(shard, *FILES, "group_size:1,uncompressed") as (write_record, about):

        def flush():
            if not waiting:
                return
            pixels = np.stack([image for image, _ in waiting])  # [N, H, W, 3]
            both = [pixels, pixels[:, :, ::-1]] if images.flip else [pixels]
            moments = np.stack([encode(a) for a in both], 1).astype(np.float16)
            about["shape"] = moments.shape[1:]
            for found, (_, metadata) in zip(moments, waiting):
                write_record(found.tobytes() + json.dumps(metadata).encode())
            waiting.clear()

        def use(pixels, metadata):
            waiting.append((pixels, metadata))
            if len(waiting) == BATCH:
                flush()

        about.update(of)
        which = range(first, min(first + SHARD, len(images)))
        if broken := scan(images, say, use, which):
            number, reason = next(iter(broken.items()))
            raise DataError(f"{images.name}: image {number} can no longer be decoded: {reason}")
        flush()


def _shard(folder: pathlib.Path, first: int) -> pathlib.Path:
    return folder / f"{first // SHARD:05d}"


def _about(images: Images, first: int, crop: str, encoder: str | None) -> dict[str, Any]:
    """What identifies the latents of a shard, independent of the location of the images."""
    count = min(SHARD, len(images) - first)
    return {
        "images": images.name.rpartition("/")[2], "crop": crop, "mirrored": images.flip,
        "encoder": encoder, "mark": images.mark(range(first, first + count)), "count": count,
    }  # fmt: skip
