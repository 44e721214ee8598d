"""Latents of pictures, made once by an autoencoder (`--mode=prepare`), so that training has none.

A record is the mean and log-variance of a picture, those of its mirror image too where the data
are mirrored in training, and the facts as JSON. They lie in shards, each written whole or not at
all, so that little is lost when a long preparation stops.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vitdiff_jax.data.images import Facts, Images
from vitdiff_jax.data.pipeline import DataError, Example
from vitdiff_jax.data.records import Say, read_record, scan, written

SHARD = 16_384
"""Pictures of a shard: of Stable Diffusion's latents of 256 px, mirrored too, 540 MB."""
BATCH = 64
"""Pictures that are encoded at once."""
FILES = ("latents.array_record", "latents.json")

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8 [N, H, W, 3] -> mean and log-variance [N, h, w, 2C] of their latents."""


class Latents:
    """A `Source` of latents float32 [h, w, C], drawn anew by each rng; None: their means.

    images: the pictures whose latents they are. encoder: what must have made them, in words; None:
    whatever it was. shape: (1 or 2, h, w, 2C).
    """

    def __init__(self, folder: pathlib.Path, images: Images, encoder: str | None):
        self.folder, self.images = folder, images
        self._shards = [self._open(first, encoder) for first in range(0, len(images), SHARD)]

    def _open(self, first: int, encoder: str | None) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        shard, wanted = _shard(self.folder, first), _about(self.images, first, encoder)
        if not (shard / FILES[1]).is_file():
            raise DataError(f"{shard}: no latents here: run the same config with --mode=prepare")
        try:
            about = json.loads((shard / FILES[1]).read_text())
            self.shape = tuple(about.pop("shape"))
            if encoder is None:
                wanted["encoder"] = about["encoder"]
            source = ArrayRecordDataSource(str(shard / FILES[0]))
            if len(source) != wanted["count"]:
                raise ValueError(f"{len(source)} records instead of {wanted['count']}")
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(
                f"{shard}: damaged latents ({error}); delete it and prepare again"
            ) from error
        if about != wanted:
            wrong = next(key for key in wanted if about.get(key) != wanted[key])
            raise DataError(
                f"{shard}: latents of other data: {wrong} is {about.get(wrong)!r} there and"
                f" {wanted[wrong]!r} here; use another config.latent.path"
            )
        return source

    def __len__(self):
        return len(self.images)

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """See `pipeline.Source`."""
        record = read_record(self._shards[index // SHARD], index % SHARD)
        size = 2 * int(np.prod(self.shape))
        moments = np.frombuffer(record[:size], np.float16).reshape(self.shape)
        mirrored = len(moments) > 1 and rng is not None and rng.random() < 0.5
        mean, log_variance = np.split(moments[int(mirrored)].astype(np.float32), 2, -1)
        if rng is not None:
            noise = rng.standard_normal(mean.shape, np.float32)
            mean = mean + np.exp(log_variance / 2) * noise
        return {"image": mean} | self.images.annotate(json.loads(record[size:]), rng)


def write(folder: pathlib.Path, images: Images, encode: Encode, encoder: str, say: Say) -> None:
    """Write the latents of all good pictures; shards that are there already stay."""
    for first in range(0, len(images), SHARD):
        shard = _shard(folder, first)
        if not (shard / FILES[1]).is_file():
            say(f"{images.name}: latents {first:,} of {len(images):,}, into {shard}")
            _write_shard(shard, images, first, encode, encoder, say)


def _write_shard(
    shard: pathlib.Path, images: Images, first: int, encode: Encode, encoder: str, say: Say
) -> None:
    waiting: list[tuple[np.ndarray, Facts]] = []
    shard.parent.mkdir(parents=True, exist_ok=True)
    with written(shard, *FILES, "group_size:1,uncompressed") as (write_record, about):

        def flush():
            if not waiting:
                return
            pixels = np.stack([image for image, _ in waiting])  # [N, H, W, 3]
            both = [pixels, pixels[:, :, ::-1]] if images.flip else [pixels]
            moments = np.stack([encode(a) for a in both], 1).astype(np.float16)
            about["shape"] = moments.shape[1:]
            for found, (_, facts) in zip(moments, waiting):
                write_record(found.tobytes() + json.dumps(facts).encode())
            waiting.clear()

        def use(pixels, facts):
            waiting.append((pixels, facts))
            if len(waiting) == BATCH:
                flush()

        about.update(_about(images, first, encoder))
        which = range(first, min(first + SHARD, len(images)))
        if broken := scan(images, say, use, which):
            number, reason = next(iter(broken.items()))
            raise DataError(f"{images.name}: image {number} cannot be decoded any more: {reason}")
        flush()


def _shard(folder: pathlib.Path, first: int) -> pathlib.Path:
    return folder / f"{first // SHARD:05d}"


def _about(images: Images, first: int, encoder: str | None) -> dict[str, Any]:
    """What the latents of a shard must be of."""
    count = min(SHARD, len(images) - first)
    return {"images": images.name, "count": count, "mirrored": images.flip, "encoder": encoder}
