"""TFDS image data sets: read where prepared, else prepared with TFDS's own builders."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitdiff_jax.data import marks
from vitdiff_jax.data import records as records_lib
from vitdiff_jax.data.images import Annotate, Crop, Images, Metadata
from vitdiff_jax.data.pipeline import DataError, Dataset
from vitdiff_jax.data.records import NotPrepared, Say, TfdsRecords
from vitdiff_jax.runtime import paths, pictures


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A TFDS data set and how its examples are read.

    name: TFDS's, such as "coco/2017". train, heldout: its splits.
    read: TFDS example, with the image still encoded -> (image, JSON-serialisable metadata).
    archives: the official names of the files that the builder needs. home: the page they are on.
    fetched: whether TFDS can download them; otherwise the user must.
    restore: makes the official archives from the files in the manual folder, see `fashion_mnist`.
    """

    name: str
    train: str
    heldout: str
    read: Callable[[dict[str, Any]], tuple[bytes, Metadata]]
    archives: tuple[str, ...]
    home: str
    fetched: bool = True
    restore: Callable[[pathlib.Path, pathlib.Path], pathlib.Path] | None = None

    def open(self, data_dir: str | None):
        """TFDS's builder for the newest prepared version, which must be in array_record format."""
        import tensorflow_datasets as tfds

        root = data_root(data_dir)
        found = sorted((root / self.name).glob("[0-9]*/dataset_info.json"), key=_version)
        if not found:
            raise NotPrepared(
                f"{self.name} is not prepared in {root}", functools.partial(self.build, root)
            )
        folder = found[-1].parent
        try:
            formats = json.loads(found[-1].read_text())
            known = [formats["fileFormat"], *formats.get("alternativeFileFormats", [])]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{found[-1]}: damaged; delete {folder} and prepare again") from error
        if "array_record" not in known:
            raise DataError(
                f"{folder} is prepared as {known[0]}, which has no random access;"
                " convert it: pip install tensorflow-cpu apache-beam mlcroissant && tfds"
                f" convert_format --dataset_version_dir={folder} --out_file_format=array_record"
            )
        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:  # TFDS raises whatever its parts raise
            raise DataError(
                f"{folder}: damaged ({_line(error)}); delete it and prepare again"
            ) from error

    def build(self, root: pathlib.Path, manual: pathlib.Path | None, say: Say) -> None:
        """Prepare the data set with TFDS's builder. Raises DataError if anything is missing."""
        if importlib.util.find_spec("tensorflow") is None:
            raise DataError(
                'preparing a TFDS data set needs TensorFlow: pip install "vitdiff_jax[prepare]"'
            )
        import tensorflow_datasets as tfds

        manual, advice = manual or root / "downloads" / "manual", ""
        try:
            builder = tfds.builder(self.name, data_dir=root, file_format="array_record")
            if pathlib.Path(builder.data_dir).exists():  # TFDS would take it as complete
                raise DataError(f"{builder.data_dir}: incomplete; delete it and prepare again")
            if self.restore:
                manual = self.restore(manual, root / "downloads" / "restored")
            advice = self._announce(builder, root, manual, say)
            for rest in (root / self.name).glob("incomplete.*"):  # left by an interrupted run
                shutil.rmtree(rest)
            config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
            builder.download_and_prepare(download_config=config)
        except DataError:
            raise
        except Exception as error:  # TFDS raises whatever its parts raise
            reason = _line(error).partition(" To debug, see")[0]
            raise DataError(f"{self.name}: TFDS cannot prepare it: {reason}{advice}") from error

    def _announce(self, builder, root: pathlib.Path, manual: pathlib.Path, say: Say) -> str:
        """Log which files are needed and their state. Raises DataError if the user must act.

        Returns advice for the case that preparing fails.
        """
        sizes = {
            info.filename or url.rpartition("/")[2]: int(info.size)
            for url, info in builder.url_infos.items()
        }
        missing, odd, size = [], [], 0
        say(f"preparing {self.name} {builder.version} in {root}; files from {self.home}:")
        for name in self.archives:
            official, path = sizes.get(name, 0), manual / name
            size += official
            state = "found" if path.is_file() else "to download" if self.fetched else "MISSING"
            if path.is_file() and path.stat().st_size != official:
                state += f", but with {path.stat().st_size:,} bytes"
                odd.append(name)
            if not path.is_file():
                missing.append(name)
            say(f"  {name}  {official:,} bytes: {state}")
        if missing and not self.fetched:
            raise DataError(
                f"{self.name}: put {', '.join(missing)} from {self.home} into {manual}, or give the"
                " folder that has them by --manual=FOLDER"
            )
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        say(f"  needs about {2 * size / 1e9:.1f} GB of disk space; {free / 1e9:.1f} GB are free")
        if odd:
            return f"; not of the official size: {', '.join(odd)}; download again from {self.home}"
        return (
            f"; or download the archives from {self.home} into --manual=FOLDER" if missing else ""
        )


def data_root(data_dir: str | None) -> pathlib.Path:
    """The folder of TFDS data sets: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return paths.require_local(given, "data_dir, $TFDS_DATA_DIR")


def _line(error: Exception) -> str:
    """The message of an error as one line."""
    return " ".join(f"{error}".split())[:500] or type(error).__name__


def _version(path: pathlib.Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.parent.name.split(".") if part.isdigit())


def dataset(
    spec: Tfds,
    *,
    conditions: Callable[[Any], Mapping[str, Any]],
    outline: Mapping[str, Any] | None,
    annotate: Callable[[Any, str], Annotate],
    shape: tuple[int, int, int],
    crop: Crop,
    crop_name: str,
    data_dir: str | None,
    flip: bool,
    cache: bool,
    max_broken: float,
) -> Dataset:
    """Both splits of a TFDS data set, from TFDS's files or from the cache.

    conditions, annotate: functions of TFDS's builder, which knows the class names, and annotate of
    the split too. outline: the conditions known in advance, see `NotPrepared`.
    crop_name: of the crop in the name of the cache.
    """
    with records_lib.outlined(shape, outline):
        builder = spec.open(data_dir)
        home = data_root(data_dir) / "vitdiff_jax"

        def split(name, **options):
            title = f"{spec.name.replace('/', '-')}-{builder.version}-{name}"
            make = functools.partial(
                Images, name=title, channels=shape[2], crop=crop, annotate=annotate(builder, name),
                max_broken=max_broken, **options,
            )  # fmt: skip
            records = TfdsRecords(builder, name, spec.read)
            make = functools.partial(make, mark=functools.partial(_mark, records.mark, name))
            images = records_lib.without_broken(make, records, home / f"{title}.broken.json")
            if not cache:
                return images, str(builder.data_dir)
            folder = home / f"{title}-{crop_name}-{shape[0]}x{shape[1]}x{shape[2]}"
            found = records_lib.open_cache(folder, images, records.mark)
            return make(found, mark=images.mark), f"the cache {folder}"

        train, where = split(spec.train, flip=flip)
        heldout, _ = split(spec.heldout)
        origin = f"{train.name} ({len(train):,} images, {len(heldout):,} held out) from {where}"
        crop_line = f"{crop_name} to {shape[0]}x{shape[1]}"
        mark = marks.digest(part.mark(range(len(part))) for part in (train, heldout))
        return Dataset(train, heldout, shape, conditions(builder), origin, crop_line, mark)


def _mark(files: str, split: str, which: Sequence[int]) -> str:
    """The mark of records of a split, of files with a mark."""
    numbers = hashlib.sha256(np.array(which, np.int64).tobytes()).hexdigest()
    return marks.digest([pictures.VERSION, files, split, numbers])
