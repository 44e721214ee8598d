"""`--mode=import`: creates a workdir from published weights, to sample, restore, fine-tune etc.

    --mode=import --source=DiT-XL-2-256x256.pt --family=dit --workdir=runs/dit
    --mode=import --source=model.safetensors --workdir=runs/again      a file from --mode=export

No code in a file is executed. The licence of the weights is copied to LICENCE.txt, and the source
is recorded in imported.json.
"""

import collections
import hashlib
import json
import pathlib
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitdiff_jax.data import imagenet
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import loading
from vitdiff_jax.interop import exported, families, torch_files
from vitdiff_jax.interop.rules import NetworkSpec, preview
from vitdiff_jax.interop.state_dicts import StateDict, left_unread
from vitdiff_jax.interop.tensors import Tensor
from vitdiff_jax.interop.weights import WeightsError
from vitdiff_jax.operators import parsing
from vitdiff_jax.runtime import logs, parallel, paths
from vitdiff_jax.runtime.checkpoint import Checkpoints
from vitdiff_jax.training import summary
from vitdiff_jax.training.step import TrainState


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


OPTIONS = {  # type of an option of --family -> its syntax, for messages, and its parser
    int: ("an integer", int),
    bool: ("True or False", {"True": True, "False": False}.__getitem__),
    str: ("a string", str),
    tuple[int, int]: ("HEIGHTxWIDTH", _size),
}


def main(
    config: None,
    workdir: epath.Path,
    *,
    source: pathlib.Path | None = None,
    family: str | None = None,
) -> None:
    """Create the workdir. --source: a safetensors, .pt or .pth file, or one from --mode=export;
    for a file in shards its index, or the folder.

    --family: the model family of the weights: dit, sit, uvit or jit, with options that cannot be
    inferred from tensor shapes, as in sit:path=gvp or dit:heads=8,size=32x16.
    """
    if source is None:
        raise ConfigError("--source: required: the file of published weights")
    source = _file(source)
    # An import into a bucket was interrupted during the final move if `.partial` still exists.
    cut_off = (workdir / "checkpoints.partial").exists()
    for name in ("config.json",) if cut_off else ("config.json", "checkpoints"):
        if (workdir / name).exists():
            raise ConfigError(f"{workdir}: already has {name}; import into another --workdir")
    described, about, params = _exported(source) if family is None else _published(source, family)
    known = experiment_lib.build(described, tuple(about["shape"]), about["conditions"])
    for found in params.values():
        _check(known, found, source)
    _write(workdir, described, params, about)
    logs.say(f"model: {summary.model(known)}")
    if about["licence"]:
        logs.say(f"licence of the weights: {about['licence'].partition(chr(10))[0]}")
    logs.say(f"imported into {workdir}: ready for --mode=sample, evaluate, restore and export")


def _file(source: pathlib.Path) -> pathlib.Path:
    """The file of weights; of a folder, the index of its shards. Raises ConfigError."""
    if source.is_dir():
        indices = list(source.glob(f"*{torch_files.INDEX}"))
        if len(indices) == 1:
            return indices[0]
        endings = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", torch_files.INDEX)
        found = sorted(p for p in source.glob("**/*") if p.name.endswith(endings))
        names = preview(str(path.relative_to(source)) for path in found)
        raise ConfigError(
            f"--source: {source} is a folder; give one file of weights: {names or 'it has none'}"
        )
    if not source.is_file():
        raise ConfigError(f"--source: there is no file {source}")
    return source


def family_of(text: str) -> tuple[ModuleType, str, dict[str, Any]]:
    """Parse --family into (module, name, options); see `OPTIONS`."""
    with experiment_lib.config_errors("--family: "):
        options = parsing.parse(text)
        name = options.pop("name")
        if name not in families.available():
            raise ValueError(f"{name!r} is not one of {', '.join(families.available())}")
        module = families.find(name)
        hints = typing.get_type_hints(module.read)
        for key, value in options.items():
            if key not in hints:
                continue  # reported by `families.from_torch`
            kinds = [kind for kind in typing.get_args(hints[key]) if kind in OPTIONS]
            how, read = OPTIONS[kinds[0] if kinds else hints[key]]
            try:
                options[key] = read(str(value))
            except (ValueError, KeyError) as error:
                raise ValueError(f"{key}={value} is not {how}") from error
    return module, name, options


def _exported(source: pathlib.Path) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """(config, metadata, {EMA name: parameters}) of a file from --mode=export."""
    try:
        about = exported.about(source)
        if about is None or about["family"] is not None:
            whose = ", ".join(families.available()) if about is None else about["family"]
            raise ConfigError(f"--family: required for {source}, one of {whose}")
        params = exported.load(source)
    except ConfigError:
        raise
    except ValueError as error:
        raise WeightsError(str(error)) from error
    found, name = about.pop("config"), about["ema"]
    decay = float(name) if name[0].isdigit() else 0.0
    found["train"] |= {"ema": (decay,), "ema_widths": ()}
    found["sample"] |= {"ema": None, "ema_width": None}
    try:
        config = config_lib.stored(found, f"{source}: its config")
    except ConfigError as error:
        raise WeightsError(str(error)) from error
    return config, about, {ema_lib.decay_name(decay): params}


def _published(
    source: pathlib.Path, text: str
) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """The same for a file of published weights, with all EMAs that it contains."""
    module, family, options = family_of(text)
    if family == "autoencoder":
        raise ConfigError("--family: autoencoder is not a denoiser; see config.latent.autoencoder")
    params, found = {}, None
    try:
        contents, ours = torch_files.read(source), exported.about(source)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    try:
        states = families.state_dicts(family, contents)
        known = families.ema_decays(family)
        first: dict[str, StateDict] = {}  # of each entry, the best comes first
        for state in states:
            first.setdefault(state.entry, state)
        taken = [state for entry, state in first.items() if entry in known] or states[:1]
        for state in taken:
            found, of_state = families.from_torch(family, state, **options)
            params[ema_lib.decay_name(known.get(state.entry, 0.0))] = of_state
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from error
    assert found is not None
    for line in _remarks(contents, states, taken):
        logs.say(line)
    config, conditions = _described(found)
    config["train"] = {"ema": tuple(map(float, params))}
    licence = f"{module.LICENCE}\n\nFrom {module.SOURCE}\n" if ours is None else ours["licence"]
    about = {
        "shape": found.shape, "conditions": conditions, "family": text, "licence": licence,
        "prefix": found.prefix, "sha256": _digest(source),
    }  # fmt: skip
    return config_lib.complete(config), about, params


def _remarks(contents: Any, states: list[StateDict], taken: list[StateDict]) -> Iterator[str]:
    """What was chosen, left and converted, where a file gives the choice."""
    if len(states) > 1:
        kept = list(map(id, taken))
        chosen, others = (
            [s.name or "the tensors outside" for s in states if (id(s) in kept) == was_taken]
            for was_taken in (True, False)
        )
        yield f"weights: {', '.join(chosen)}" + (f", not {preview(others)}" if others else "")
    if left := left_unread(contents, taken):
        yield f"left unread: {preview(left, 8)}"
    kinds = collections.Counter(
        t.kind if isinstance(t, Tensor) else t.dtype.name
        for state in taken
        for t in state.tensors.values()
    )
    if kinds.keys() - {"float32"}:
        count = ", ".join(f"{kind} ({n})" for kind, n in kinds.items())
        yield f"tensors in the file: {count}; imported as float32"


def _digest(source: pathlib.Path) -> str:
    """SHA-256 of the file, or of the index and its shards one after another."""
    digest = hashlib.sha256()
    for path in torch_files.files(source):
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _described(found: NetworkSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and conditions of a published network; 1000 classes imply ImageNet."""
    config, conditions = {**found.config}, dict(found.conditions)
    factor = config.get("latent", {}).get("factor", 1)
    if len(conditions.get("label", ())) == imagenet.CLASSES:
        config["data"] = dict(name="imagenet", size=found.shape[0] * factor)
        conditions["label"] = imagenet.class_names()
    return config, conditions


def _check(known: experiment_lib.Experiment, params: Any, source: pathlib.Path) -> None:
    """Raise WeightsError if the parameters do not match the network of the config."""
    shapes = jax.tree.map(lambda a: tuple(a.shape), known.param_shapes())
    if jax.tree.map(lambda a: tuple(a.shape), params) != shapes:
        raise WeightsError(f"{source}: its parameters do not match the network of its config")


def _write(workdir: epath.Path, config: Any, params: dict[str, Any], about: dict) -> None:
    """Write a checkpoint of EMAs only, then the files that make the folder a workdir.

    config.json comes last: an interrupted import is not a workdir, and can be repeated.
    """
    partial, first = workdir / "checkpoints.partial", jax.process_index() == 0
    if first:
        (workdir / "checkpoints").rmtree(missing_ok=True)
        partial.rmtree(missing_ok=True)
    checkpoints = Checkpoints(partial, report=logs.say)
    replicated = parallel.replicated(parallel.make_mesh())
    emas = jax.device_put(jax.tree.map(np.asarray, params), replicated)
    state = TrainState(jnp.int32(0), jnp.int32(0), {}, {}, emas)
    checkpoints.save(0, state, {"shape": about.pop("shape"), "conditions": about.pop("conditions")})
    checkpoints.close()
    if not first:
        return
    paths.move(partial, workdir / "checkpoints")
    if about["licence"]:
        (workdir / loading.LICENCE).write_text(about["licence"])
    (workdir / loading.IMPORTED).write_text(json.dumps(about, indent=2) + "\n")
    config_lib.save(config, workdir / "config.json")
