"""COCO's photographs with five captions each, or with their 80 kinds of objects, through TFDS.

captions: the 2014 images in Karpathy's split: 82,783 to train on, as U-ViT's, 5,000 held out.
2017: 118,287 to train on, 5,000 held out; objects only.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vitdiff_jax.data import embeddings, images, tfds_images
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.data.records import NotPrepared
from vitdiff_jax.data.text import to_bytes

OBJECT_KINDS = 80
HOME = "https://cocodataset.org/#download"


def _read(example):
    facts = {"objects": sorted({int(label) for label in example["objects"]["label"]})}
    if "captions" in example:
        facts["captions"] = [text.decode() for text in example["captions"]["text"]]
    return example["image"], facts


CAPTIONS = tfds_images.Tfds(
    name="coco_captions/2014",
    train="train",
    heldout="val",
    read=_read,
    archives=(
        "train2014.zip", "val2014.zip", "test2014.zip", "test2015.zip",
        "annotations_trainval2014.zip", "image_info_test2014.zip", "image_info_test2015.zip",
        "caption_datasets.zip",
    ),
    home=HOME,
)  # fmt: skip
OBJECTS = tfds_images.Tfds(
    name="coco/2017",
    train="train",
    heldout="validation",
    read=_read,
    archives=(
        "train2017.zip", "val2017.zip", "test2017.zip",
        "annotations_trainval2017.zip", "image_info_test2017.zip",
    ),
    home=HOME,
)  # fmt: skip


def dataset(
    data_dir: str | None = None,
    version: str = "captions",
    size: int = 256,
    text: str = "bytes",
    length: int = 128,
    objects: bool = False,
    hide: float = 0.5,
    random_area: float = 0.0,
    flip: bool = False,
    cache: bool = False,
    max_broken: float = 0.001,
) -> Dataset:
    """COCO with one of each image's captions, drawn anew each epoch, and with its objects.

    version: "captions", or "2017", which has objects alone.
    text: "bytes" for a text encoder that is trained along; "none"; or a `transformers` encoder, a
    folder or a name on the hub, whose embeddings --mode=prepare computes once.
    length: the most bytes, or embedding vectors, of a caption. objects: the kinds that are in the
    image as attributes; hide: see `celeba`. The other options are those of `imagenet`.
    """
    if version not in ("captions", "2017"):
        raise ValueError(f"version: {version!r} is none of captions, 2017")
    if version == "2017":
        text, objects = "none", True
    if length < 4 or (text == "bytes" and length % 4):
        raise ValueError(f"length: {length} is not a multiple of 4 from 4 on")
    spec = OBJECTS if version == "2017" else CAPTIONS
    parts = functools.partial(
        _parts, text=text, length=length, hide=hide if objects else None, data_dir=data_dir
    )

    def conditions(builder):
        return {name: about for name, (about, _) in parts(builder, spec.train).items()}

    def annotate(builder, split):
        made = parts(builder, split)
        return lambda facts, rng: {name: make(facts, rng) for name, (_, make) in made.items()}

    known = {"attributes": range(OBJECT_KINDS)} if objects else {}
    known |= {"text": length} if text == "bytes" else {}
    return tfds_images.dataset(
        spec,
        conditions=conditions,
        outline=known if text in ("bytes", "none") else None,
        annotate=annotate,
        shape=(size, size, 3),
        crop=images.crop_of(size, random_area, cache),
        crop_name="centre",
        data_dir=data_dir,
        flip=flip,
        cache=cache,
        max_broken=max_broken,
    )


def _parts(builder, split: str, *, text: str, length: int, hide: float | None, data_dir):
    """{condition: (what it is, (facts, rng) -> its array)} of a split; hide None: no objects."""
    parts: dict[str, tuple[Any, Callable[..., np.ndarray]]] = {}
    if hide is not None:
        hidden = images.hiding(hide)
        names = tuple(builder.info.features["objects"]["label"].names)

        def present(facts, rng):
            found = np.isin(np.arange(len(names)), facts["objects"]).astype(np.int8)
            return hidden(found, rng)

        parts["attributes"] = names, present
    if text == "bytes":
        parts["text"] = (
            length,
            lambda facts, rng: to_bytes(images.one_of(facts["captions"], rng), length),
        )
    elif text != "none":
        store = _store(builder, split, text, data_dir)
        about = store.about | {"length": length}
        parts["embedding"] = (
            about,
            lambda facts, rng: embeddings.padded(images.one_of(store[facts["index"]], rng), about),
        )
    return parts


def _store(builder, split: str, encoder: str, data_dir: str | None) -> embeddings.Store:
    """The captions' embeddings by this encoder; NotPrepared where they are not there."""
    mark = hashlib.sha256(encoder.encode()).hexdigest()[:8]
    name = f"coco_captions-{builder.version}-{split}-{pathlib.Path(encoder).name}-{mark}"
    folder = tfds_images.data_root(data_dir) / "vitdiff_jax" / name
    if not (folder / "embeddings.json").is_file():
        raise NotPrepared(
            f"there are no embeddings {folder}",
            functools.partial(_write_embeddings, folder, encoder, builder, split),
        )
    return embeddings.Store(folder)


def _write_embeddings(folder, encoder, builder, split, manual, say) -> None:
    def captions() -> Iterator[list[str]]:
        records = tfds_images.TfdsRecords(builder, split, _read)
        for i in range(len(records)):
            yield records[i][1]["captions"]

    say(f"writing the embeddings {folder}")
    embeddings.write(folder, encoder, captions())
