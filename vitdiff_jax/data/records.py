"""Images by index from files with random access: TFDS's array_record, and the cache.

The cache holds the cropped and resized uint8 pixels of every good image, so that small machines
need not decode full photographs every epoch. A record is the pixels, then the metadata as JSON.
"""

import contextlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from vitdiff_jax.data import marks
from vitdiff_jax.data.images import Images, Metadata, Records
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.runtime import paths

Say = Callable[[str], None]


class NotPrepared(DataError):
    """Data that is not prepared yet; `--mode=prepare` does so by `make(manual_dir, say)`.

    outline: the (shape, conditions) that it will have, with numbers in place of class and attribute
    names; None where they are not known in advance.
    """

    outline: tuple[tuple[int, int, int], Mapping[str, Any]] | None = None

    def __init__(self, missing: str, make: Callable[[pathlib.Path | None, Say], None]):
        super().__init__(f"{missing}: run the same config once with --mode=prepare")
        self.missing, self.make = missing, make


@contextlib.contextmanager
def outlined(shape: tuple[int, int, int], conditions: Mapping[str, Any] | None) -> Iterator[None]:
    """Set the outline of a NotPrepared raised inside; conditions None: not known in advance."""
    try:
        yield
    except NotPrepared as error:
        error.outline = None if conditions is None else (shape, conditions)
        raise


class TfdsRecords:
    """A split of a TFDS data set prepared as array_record, read without TensorFlow.

    builder: from `tfds.builder_from_directory`. read: TFDS example -> (encoded image, metadata).
    """

    def __init__(self, builder, split: str, read: Callable[[dict], tuple[bytes, Metadata]]):
        import tensorflow_datasets as tfds

        if split not in builder.info.splits:
            raise DataError(
                f"{builder.data_dir}: has no split {split}; delete it and prepare again"
            )
        decoders: Any = {"image": tfds.decode.SkipDecoding()}
        self._source = builder.as_data_source(split, decoders=decoders, file_format="array_record")
        self._read = read
        self.mark = mark_of_tfds(builder)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        image, metadata = self._read(read_record(self._source, index))
        return image, metadata | {"index": index}


class CachedRecords:
    """The images of a cache folder: `images.array_record` and `cache.json`."""

    def __init__(self, folder: pathlib.Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            about = json.loads((folder / "cache.json").read_text())
            self._source = ArrayRecordDataSource(str(folder / "images.array_record"))
            self._shape, self._count = tuple(about["shape"]), about["count"]
            self.mark = about.get("mark")
            if len(self._source) != self._count:
                raise ValueError(f"{len(self._source)} images instead of {self._count}")
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: damaged cache ({error}); delete it and prepare again"
            ) from error
        self._bytes = int(np.prod(self._shape))

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        record = read_record(self._source, index)
        pixels = np.frombuffer(record, np.uint8, self._bytes).reshape(self._shape)
        return pixels, json.loads(record[self._bytes :])


def read_record(source: Any, index: int) -> Any:
    """A record of an array_record file. Raises OSError if it is damaged, as for a broken image."""
    try:
        return source[index]
    except RuntimeError as error:
        raise OSError(str(error)) from error


def without_broken(make: Callable[..., Images], records: Records, path: pathlib.Path) -> Images:
    """The images of these records without the broken ones listed at `path`.

    Raises DataError if these are more than the fraction `max_broken`.
    """
    if not path.is_file():
        return make(records, list_missing=path)
    try:
        listed = set(map(int, json.loads(path.read_text())["broken"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and prepare again") from error
    images = make(records)
    if len(listed) > images.max_broken * len(records):
        raise DataError(
            f"{images.name}: {len(listed)} of {len(records)} images cannot be decoded, more than"
            f" the fraction config.data.max_broken={images.max_broken}; for the reasons see {path};"
            " repair the data, delete this list and prepare again"
        )
    return make(records, listed=listed)


def mark_of_tfds(builder) -> str:
    """The mark of a prepared TFDS data set: its version, and names and sizes of its files."""
    folder = pathlib.Path(builder.data_dir)
    files = sorted(path for path in folder.iterdir() if ".array_record" in path.name)
    return marks.digest([str(builder.version), *([f.name, f.stat().st_size] for f in files)])


def open_cache(folder: pathlib.Path, images: Images, mark: str) -> "CachedRecords":
    """The cache of `images`, of records with this mark. Raises NotPrepared where there is none."""
    missing = f"{folder}: no such cache"
    if (folder / "cache.json").is_file():
        found = CachedRecords(folder)
        if found.mark == mark:
            return found
        missing = f"{folder}: a cache of other files than those of {images.name} now"

    def make(manual, say):
        say(f"writing the cache {folder}")
        write_cache(folder, images, say, mark)

    raise NotPrepared(missing, make)


def write_cache(folder: pathlib.Path, images: Images, say: Say, mark: str = "") -> None:
    """Write the good images to a cache folder, atomically. mark: of their records.

    Raises DataError if one that was good can no longer be read.
    """
    # Groups of one, uncompressed: records are read one by one, and pixels hardly compress.
    files = ("images.array_record", "cache.json")
    with atomic_folder(folder, *files, "group_size:1,uncompressed") as (write, about):

        def use(pixels, metadata):
            write(pixels.tobytes() + json.dumps(metadata).encode())
            about.update(shape=pixels.shape, count=about["count"] + 1)

        about.update(images=images.name, mark=mark, shape=None, count=0)
        broken = scan(images, say, use)
        if broken and not images.list_missing:
            number, reason = next(iter(broken.items()))
            raise DataError(f"{images.name}: image {number} can no longer be decoded: {reason}")
        write_broken_list(images, broken, say)


@contextlib.contextmanager
def atomic_folder(
    folder: pathlib.Path, records: str, about: str, options: str
) -> Iterator[tuple[Callable[[bytes], None], dict[str, Any]]]:
    """Write a folder with an array_record file and a JSON file, atomically.

    Yields a function that writes a record, and the dict for the JSON file, to be filled.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    def attempt(action, *arguments):
        try:
            return action(*arguments)
        except RuntimeError as error:  # array_record's error for a full disk
            raise DataError(f"{folder}: cannot be written: {error}") from error

    partial = paths.partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted preparation
    partial.mkdir(parents=True)
    try:
        writer = attempt(ArrayRecordWriter, str(partial / records), options)
        content: dict[str, Any] = {}
        yield lambda record: attempt(writer.write, record), content
        attempt(writer.close)
        (partial / about).write_text(json.dumps(content))
        shutil.rmtree(folder, ignore_errors=True)  # incomplete: it has no JSON file
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def scan(
    images: Images,
    say: Say,
    use: Callable[[np.ndarray, Metadata], None] = lambda *_: None,
    which: range | None = None,
) -> dict[int, str]:
    """Decode every image once, in order, on all cores: {index: reason} of the broken ones.

    use: called with the pixels and metadata of each good one. which: a range of `images.good`.
    """
    which, said = range(len(images)) if which is None else which, time.monotonic()

    def decode(i):
        try:
            return images.pixels(int(images.good[i]))
        except (ValueError, OSError) as error:
            return " ".join(str(error).split())

    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 * threads)
    found = grain.MapDataset.source(which).map(decode).to_iter_dataset(options)
    broken = {}
    for i, result in zip(which, found):
        if time.monotonic() > said + 10:
            said = time.monotonic()
            say(f"{images.name}: {i:,} of {len(images):,}")
        if isinstance(result, str):
            broken[int(images.good[i])] = result
        else:
            use(*result)
    return broken


def write_broken_list(images: Images, broken: dict[int, str], say: Say) -> None:
    """Write the list of broken images atomically, if there is none yet."""
    path = images.list_missing
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"broken": list(broken), "reasons": list(broken.values())}))
        os.replace(partial, path)
        if broken:
            counts = f"{len(broken):,} of {len(images):,} images"
            say(f"{counts} cannot be decoded and are left out; for the reasons see {path}")
