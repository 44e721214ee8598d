"""TFDS data sets of images: opened where they are prepared, or prepared by TFDS's own builders."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from vitdiff_jax.data import records as records_lib
from vitdiff_jax.data.images import Annotate, Crop, Facts, Images
from vitdiff_jax.data.pipeline import DataError, Dataset
from vitdiff_jax.data.records import NotPrepared, Say, TfdsRecords
from vitdiff_jax.runtime import paths


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A TFDS data set and how an example of it becomes a picture with facts.

    name: TFDS's, such as "coco/2017". train, heldout: its splits.
    read: (TFDS example, the image still encoded) -> (picture, facts as JSON can hold them).
    archives: the files that the builder needs, by their official names. home: where they are.
    fetched: TFDS downloads what is missing; else a person has to.
    restore: makes official archives of what lies in the manual folder, see `fashion_mnist`.
    """

    name: str
    train: str
    heldout: str
    read: Callable[[dict[str, Any]], tuple[bytes, Facts]]
    archives: tuple[str, ...]
    home: str
    fetched: bool = True
    restore: Callable[[pathlib.Path, pathlib.Path], pathlib.Path] | None = None

    def open(self, data_dir: str | None):
        """TFDS's builder of the newest prepared version, which must be in array_record files."""
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
                f"{folder} is prepared as {known[0]}, which cannot be read in random order;"
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
        """Prepare the data set with TFDS's own builder; what is missing is a DataError."""
        if importlib.util.find_spec("tensorflow") is None:
            raise DataError(
                'preparing a TFDS data set needs TensorFlow: pip install "vitdiff_jax[prepare]"'
            )
        import tensorflow_datasets as tfds

        manual, advice = manual or root / "downloads" / "manual", ""
        try:
            builder = tfds.builder(self.name, data_dir=root, file_format="array_record")
            if pathlib.Path(builder.data_dir).exists():  # TFDS would take it for a whole one
                raise DataError(f"{builder.data_dir}: is not whole; delete it and prepare again")
            if self.restore:
                manual = self.restore(manual, root / "downloads" / "restored")
            advice = self._tell(builder, root, manual, say)
            for rest in (root / self.name).glob("incomplete.*"):  # of a run that was killed
                shutil.rmtree(rest)
            how = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
            builder.download_and_prepare(download_config=how)
        except DataError:
            raise
        except Exception as error:  # TFDS raises whatever its parts raise
            reason = _line(error).partition(" To debug, see")[0]
            raise DataError(f"{self.name}: TFDS cannot prepare it: {reason}{advice}") from error

    def _tell(self, builder, root: pathlib.Path, manual: pathlib.Path, say: Say) -> str:
        """Say what is needed, from where, how large, what is missing; stop if a person must act.

        Returns what to try if preparing fails.
        """
        sizes = {
            info.filename or url.rpartition("/")[2]: int(info.size)
            for url, info in builder.url_infos.items()
        }
        missing, odd, size = [], [], 0
        say(
            f"{self.name} {builder.version} will be prepared in {root}; it needs, from {self.home}:"
        )
        for name in self.archives:
            official, path = sizes.get(name, 0), manual / name
            size += official
            state = "there" if path.is_file() else "will be fetched" if self.fetched else "MISSING"
            if path.is_file() and path.stat().st_size != official:
                state += f", but of {path.stat().st_size:,} bytes"
                odd.append(name)
            if not path.is_file():
                missing.append(name)
            say(f"  {name}  {official:,} bytes: {state}")
        if missing and not self.fetched:
            raise DataError(
                f"{self.name}: put {', '.join(missing)} from {self.home} into {manual}, or name the"
                " folder that has them with --manual=FOLDER"
            )
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        say(f"  about {2 * size / 1e9:.1f} GB of space; {free / 1e9:.1f} GB are free")
        if odd:
            return f"; not of the official size: {', '.join(odd)}; fetch anew from {self.home}"
        return f"; archives fetched from {self.home} go into --manual=FOLDER" if missing else ""


def data_root(data_dir: str | None) -> pathlib.Path:
    """Where TFDS data sets are: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return paths.mounted(given, "data_dir, $TFDS_DATA_DIR")


def _line(error: Exception) -> str:
    """What an error says, as one line."""
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
    """Both splits of a TFDS data set, from its own files or from the cache.

    conditions, annotate: of TFDS's builder, which knows the names of classes; annotate also of the
    split. outline: the conditions as far as they are known before, see `NotPrepared`.
    crop_name: what the crop is called in the name of the cache.
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
            whole = records_lib.with_list(make, records, home / f"{title}.broken.json")
            if not cache:
                return whole, str(builder.data_dir)
            folder = home / f"{title}-{crop_name}-{shape[0]}x{shape[1]}x{shape[2]}"
            return make(records_lib.open_cache(folder, whole)), f"the cache {folder}"

        train, where = split(spec.train, flip=flip)
        heldout, _ = split(spec.heldout)
        origin = f"{train.name} ({len(train):,} images, {len(heldout):,} held out) from {where}"
        crop_line = f"{crop_name} to {shape[0]}x{shape[1]}"
        return Dataset(train, heldout, shape, conditions(builder), origin, crop_line)
