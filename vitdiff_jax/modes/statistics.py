"""`--mode=statistics`: reference statistics of the config's dataset, computed once.

One file per published network used by config.evaluate.metrics (Inception by default), in ADM's
format, see `evaluation.references`. Use a file with --config.evaluate.reference=FILE.
"""

import jax
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.evaluation import references
from vitdiff_jax.evaluation.networks import Network
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import provenance
from vitdiff_jax.inference.evaluator import OTHER, SPLIT, Evaluator, about_data, versions
from vitdiff_jax.runtime import logs, parallel


def main(
    config: ConfigDict | None,
    workdir: epath.Path,
    *,
    split: str = "train",
    n: int | None = None,
) -> None:
    """Write statistics/. --split: train or heldout. --n: size of a random subset."""
    if config is None:
        raise ConfigError("--config: required, for its data")
    if split not in OTHER:
        raise ConfigError(f"--split: {split!r} is not one of {', '.join(OTHER)}")
    if n is not None and n < 2:
        raise ConfigError(f"--n: {n} is less than 2")
    config = config.copy_and_resolve_references()
    config.evaluate.metrics = config.evaluate.metrics or ("fid",)
    evaluator = Evaluator(config, workdir, parallel.make_mesh())
    found = dict.fromkeys(part.extractor for part in evaluator.parts)
    networks = [e for e in found if isinstance(e, Network) and not e.pairs]
    if not networks:
        raise ConfigError("config.evaluate.metrics: none of them uses a published network")
    dataset = evaluator.setting.dataset
    parts = [part for network in networks for part in references.parts_of(network)]
    measured = evaluator.real(split, n, parts)
    for network in networks:
        about = about_data(config, dataset) | {
            "split": split, "count": measured.count, "resize": network.resize,
        }  # fmt: skip
        made = provenance.record("statistics", None, network=network.name, **about)
        path = workdir / "statistics" / f"{split}-{network.name}.npz"
        path = provenance.free(path, made)
        if jax.process_index() == 0:
            provenance.write_beside(path, made)
            references.write(path, network, measured, about | {"versions": versions()})
        logs.say(f"statistics of {measured.count:,} {SPLIT[split]} images in {path}")
