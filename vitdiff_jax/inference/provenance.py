"""How a result was made, recorded with it; and names under which no other result is overwritten.

A record is JSON: mode, step, settings, seed, conditions. It is in a text chunk of a PNG file, and
in a .json file beside an .npz file. The same command writes the same files again; where another
result has the name already, a digest of the settings is appended.
"""

import functools
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from PIL import Image

import vitdiff_jax
from vitdiff_jax.data import marks
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import codec
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.runtime import paths, tables

KEY = "vitdiff_jax_made"
"""The keyword of the text chunk."""
INCIDENTAL = ("version", "shows")
"""Of a record: what two files of one result may differ in."""
COMPONENTS = ("sampler", "grid")
"""Of config.sample."""

Record = dict[str, Any]


def record(mode: str, step: int | None, **settings: Any) -> Record:
    """The record of a result; settings: all that decides it, besides the code."""
    return {"version": vitdiff_jax.__version__, "mode": mode, "step": step, **settings}


def of_sampling(config: ConfigDict) -> dict[str, Any]:
    """What decides the samples of a model, besides its parameters and its seed."""
    other = ("batch", "ema", "ema_width")
    sample = {key: value for key, value in config.sample.to_dict().items() if key not in other}
    sample["guide_with"] = _name(sample["guide_with"])
    return {
        "sample": sample, "ema": experiment_lib.sampled_ema(config),
        "dtype": config.model.get("dtype"), "autoencoder": _weights(config.latent.autoencoder),
    }  # fmt: skip


def of_data(config: ConfigDict) -> dict[str, Any]:
    """What decides which images a data set has."""
    known = config.data.to_dict()
    return {k: _name(v) if k == "path" else v for k, v in known.items()
            if k not in ("data_dir", "cache")}  # fmt: skip


def _weights(path: str | None) -> list[str] | None:
    """The name of a file of weights, and the mark of its contents."""
    if not path:
        return None
    file = codec.file_of(path)
    return [file.name, _mark(file, file.stat().st_mtime_ns) if file.is_file() else ""]


@functools.cache
def _mark(file: pathlib.Path, changed: int) -> str:
    """Of a large file, which every record asks for; changed: its time."""
    return marks.of_file(file)


def _name(path: str | None) -> str | None:
    """The last part of a path: the others are nobody's business but the owner's."""
    return path and pathlib.PurePath(path).name


def chunk(made: Record, **more: Any) -> dict[str, str]:
    """The record as the text chunk of a PNG file; more: of this file."""
    return {KEY: _text(made | more)}


def digest(made: Record) -> str:
    """Eight letters that differ where results do."""
    same = {key: value for key, value in made.items() if key not in INCIDENTAL}
    return hashlib.sha256(_text(same).encode()).hexdigest()[:8]


def digest_of_bytes(data: bytes) -> str:
    """Of the contents of an input file."""
    return hashlib.sha256(data).hexdigest()[:16]


def read(path: epath.Path) -> Record:
    """The record of a .png, .npz or .json file, {} for those that have none."""
    try:
        if path.suffix == ".png":
            return of_bytes(path.read_bytes())
        found = tables.read(path.with_suffix(".json")).get("made", {})
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):  # damaged
        return {}


def of_bytes(data: bytes) -> Record:
    """The record of a PNG file, {} for other files."""
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads what is before the pixels
            found = json.loads(image.info.get(KEY, "{}"))
        return found if isinstance(found, dict) else {}
    except Exception:  # Pillow raises all kinds of errors for damaged files
        return {}


def free(path: epath.Path, made: Record, *more: str) -> epath.Path:
    """`path`, if it holds no other result; else the name with a digest of the record appended.

    more: endings of further files whose names start with the path's stem.
    """
    if not path.parent.exists():  # in a bucket each file takes a request
        return path
    files = [path, *(path.with_name(f"{path.stem}{ending}") for ending in more)]
    if any(holds_other(file, made) for file in files):
        return path.with_name(f"{path.stem}-{digest(made)}{path.suffix}")
    return path


def free_folder(folder: epath.Path, files: Mapping[str, Record], made: Record) -> epath.Path:
    """`folder`, if none of these files in it is of another result; else one named by a digest.

    files: {path in the folder: record}. made: the record of all of them.
    """
    if not folder.exists():
        return folder
    if any(holds_other(folder / name, of_file) for name, of_file in files.items()):
        return folder.with_name(f"{folder.name}-{digest(made)}")
    return folder


def holds_other(path: epath.Path, made: Record) -> bool:
    """Whether there is such a file, or a begun .npz file, and its record is not this."""
    there = path.exists() or (path.suffix == ".npz" and path.with_suffix(".json").exists())
    return there and digest(read(path)) != digest(made)


def write_beside(path: epath.Path, made: Record) -> None:
    """Write the record of an .npz file into the .json file beside it."""
    tables.write(path.with_suffix(".json"), {"made": made})


def set_aside(path: epath.Path, made: Record) -> None:
    """Before a report, PATH.json, is written: rename one of another result, and its picture.

    An older one of this result, that was renamed so, is deleted.
    """
    if not path.exists() or digest(known := read(path)) == digest(made):
        return
    mark = digest(known or {"bytes": digest_of_bytes(path.read_bytes())})
    for file in (path, path.with_suffix(".png")):
        file.with_name(f"{path.stem}-{digest(made)}{file.suffix}").unlink(missing_ok=True)
        if file.exists():
            paths.write(file.with_name(f"{path.stem}-{mark}{file.suffix}"), file.read_bytes())
            file.unlink()


def differences(config: ConfigDict, trained: Mapping[str, Any]) -> list[str]:
    """Settings of sampling that are not those of the workdir, short, for file names.

    trained: the workdir's config.json, of which no code is run.
    """
    given, found = json.loads(json.dumps(config.to_dict())), []  # as read back: without tuples
    for section, key in (("model", "dtype"), ("latent", "autoencoder")):
        value = given[section].get(key)
        if value != trained.get(section, {}).get(key, value):
            found.append(_short(key, _name(value)))
    before = trained.get("sample", {})
    for key, value in given["sample"].items():
        if key in COMPONENTS:
            found += _of_component(f"sample.{key}", value, before.get(key, {}))
        elif key != "batch" and value != before.get(key, value):
            found.append(_short(key, _name(value) if isinstance(value, str) else value))
    return found


def _of_component(key: str, given: dict[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The name of another component, and options that are not those of before, or its defaults."""
    name, found = given["name"], []
    if name != before.get("name"):
        make = config_lib.find(config_lib.COMPONENTS[key], f"config.{key}.name", name)
        before, found = config_lib.options(make), [name]
    changed = {k: v for k, v in given.items() if k != "name" and v != before.get(k, v)}
    return [*found, *(_short(k, v) for k, v in changed.items())]


def _short(key: str, value: Any) -> str:
    """A setting as part of a file name: "guidance2", "threshold-dynamic", "no-guide_with"."""
    if value in (None, ""):
        return f"no-{key}"
    key = f"{key}-" if isinstance(value, str) else key
    return re.sub(r"[^\w,.+-]+", "_", f"{key}{value}".removesuffix(".0"))


def _text(made: Record) -> str:
    return json.dumps(tables.finite(made), sort_keys=True, allow_nan=False)
