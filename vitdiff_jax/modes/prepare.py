"""`--mode=prepare`: prepares the config's dataset, once.

Builds TFDS datasets, and writes lists of undecodable images, the cache (config.data.cache=True),
text embeddings and latents (config.latent). It can be interrupted and rerun: complete files of the
same data are kept.
"""

import pathlib

import jax
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import card
from vitdiff_jax.data.images import Images
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.data.records import NotPrepared, scan, write_broken_list
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import codec
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.runtime import logs, parallel


def main(
    config: ConfigDict | None, workdir: epath.Path, *, manual: pathlib.Path | None = None
) -> None:
    """Prepare config.data. --manual: folder of archives that were downloaded by hand.

    Process 0 prepares the images; latents are divided among the processes.
    """
    if config is None:
        raise ConfigError("--config: required, for its data")
    if manual is not None and not manual.is_dir():
        raise ConfigError(f"--manual: there is no folder {manual}")
    if jax.process_index() == 0:
        _prepare(config, manual)
    parallel.broadcast(0)  # barrier
    dataset = experiment_lib.clean_dataset(config)
    for line in card.lines(dataset):
        logs.say(line)
    if config.latent.factor > 1:
        with experiment_lib.config_errors("config.latent."):
            codec.prepare(dataset, config, logs.say, jax.process_index(), jax.process_count())
    logs.say(f"ready: {dataset.origin}")


def _prepare(config: ConfigDict, manual: pathlib.Path | None) -> None:
    """Everything except the latents."""
    made = set()
    while True:
        try:
            dataset = experiment_lib.clean_dataset(config)
        except NotPrepared as error:
            if error.missing in made:
                raise DataError(f"{error.missing}, although it has just been prepared") from error
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
            logs.say(f"decoding {images.name} once, to list undecodable images")
            write_broken_list(images, scan(images, logs.say), logs.say)
        if not unlisted:
            return
