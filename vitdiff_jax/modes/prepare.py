"""`--mode=prepare`: whatever the config's data set needs before it can be read, once.

Builds TFDS data sets, writes the lists of undecodable images, the cache (config.data.cache=True),
text embeddings, and latents (config.latent). It can be interrupted and run again: what is whole is
kept.
"""

import pathlib

import jax
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data.images import Images
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.data.records import NotPrepared, scan, write_list
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import codec
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.runtime import logs, parallel


def main(
    config: ConfigDict | None, workdir: epath.Path, *, manual: pathlib.Path | None = None
) -> None:
    """Prepare config.data. --manual: the folder with archives that a person has fetched.

    Process 0 prepares the pictures; of latents each process makes some.
    """
    if config is None:
        raise ConfigError("--config: needed to prepare its data")
    if manual is not None and not manual.is_dir():
        raise ConfigError(f"--manual: there is no folder {manual}")
    if jax.process_index() == 0:
        _prepare(config, manual)
    parallel.agree(0)  # the others wait
    dataset = experiment_lib.clean_dataset(config)
    if config.latent.factor > 1:
        with experiment_lib.named("config.latent."):
            codec.prepare(dataset, config, logs.say, jax.process_index(), jax.process_count())
    logs.say(f"ready: {dataset.origin}")


def _prepare(config: ConfigDict, manual: pathlib.Path | None) -> None:
    """All but the latents."""
    made = set()
    while True:
        try:
            dataset = experiment_lib.clean_dataset(config)
        except NotPrepared as error:
            if error.missing in made:
                raise DataError(f"{error.missing}, although it was prepared just now") from error
            made.add(error.missing)
            logs.say(error.missing)
            error.make(manual, logs.say)
            continue
        unlisted = [
            images
            for images in (dataset.train, dataset.heldout)
            if isinstance(images, Images) and images.list_missing
        ]
        for images in unlisted:
            logs.say(f"decoding {images.name} once, to list what cannot be decoded")
            write_list(images, scan(images, logs.say), logs.say)
        if not unlisted:
            return
