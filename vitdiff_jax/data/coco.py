"""COCO: photographs with five captions each, or with 80 object categories, through TFDS.

captions: the 2014 images in Karpathy's split, 82,783 for training, as in U-ViT, 5,000 held out.
2017: 118,287 images for training, 5,000 held out; object categories only.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vitdiff_jax.data import embeddings, images, marks, records, tfds_images
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.data.records import NotPrepared
from vitdiff_jax.data.text import to_bytes

CATEGORIES = 80
HOME = "https://cocodataset.org/#download"


def _read(example):
    metadata = {"objects": sorted({int(label) for label in example["objects"]["label"]})}
    if "captions" in example:
        metadata["captions"] = [text.decode() for text in example["captions"]["text"]]
    return example["image"], metadata


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
    """COCO, conditioned on a caption, chosen at random from an image's five in each epoch.

    version: "captions", or "2017", which has object categories only.
    text: "bytes" for a jointly trained text encoder; "none"; or a frozen `transformers` encoder, by
    folder or name on the Hugging Face Hub, whose embeddings --mode=prepare computes once.
    length: the maximum length of a caption in bytes or embedding vectors. objects: also condition
    on the object categories in the image, as attributes; hide: see `celeba`. The other options are
    those of `imagenet`.
    """
    if version not in ("captions", "2017"):
        raise ValueError(f"version: {version!r} is not one of captions, 2017")
    if version == "2017":
        text, objects = "none", True
    if length < 4 or (text == "bytes" and length % 4):
        raise ValueError(f"length: {length} is not a positive multiple of 4")
    spec = OBJECTS if version == "2017" else CAPTIONS
    found = functools.partial(
        _conditions, text=text, length=length, hide=hide if objects else None, data_dir=data_dir
    )

    def conditions(builder):
        return {name: about for name, (about, _) in found(builder, spec.train).items()}

    def annotate(builder, split):
        made = found(builder, split)
        return lambda metadata, rng: {name: make(metadata, rng) for name, (_, make) in made.items()}

    known = {"attributes": range(CATEGORIES)} if objects else {}
    known |= {"text": length} if text == "bytes" else {}
    return tfds_images.dataset(
        spec,
        conditions=conditions,
        outline=known if text in ("bytes", "none") else None,
        annotate=annotate,
        shape=(size, size, 3),
        crop=images.make_crop(size, random_area, cache),
        crop_name="centre",
        data_dir=data_dir,
        flip=flip,
        cache=cache,
        max_broken=max_broken,
    )


def _conditions(builder, split: str, *, text: str, length: int, hide: float | None, data_dir):
    """{condition: (description, (metadata, rng) -> array)} of a split; hide None: no objects."""
    found: dict[str, tuple[Any, Callable[..., np.ndarray]]] = {}
    if hide is not None:
        drop = images.attribute_dropout(hide)
        names = tuple(builder.info.features["objects"]["label"].names)

        def present(metadata, rng):
            attributes = np.isin(np.arange(len(names)), metadata["objects"]).astype(np.int8)
            return drop(attributes, rng)

        found["attributes"] = names, present
    if text == "bytes":
        found["text"] = (
            length,
            lambda metadata, rng: to_bytes(images.choose(metadata["captions"], rng), length),
        )
    elif text != "none":
        store = _store(builder, split, text, data_dir)
        about = store.about | {"length": length}

        def embedding(metadata, rng):
            return embeddings.padded(images.choose(store[metadata["index"]], rng), about)

        found["embedding"] = about, embedding
    return found


def _store(builder, split: str, encoder: str, data_dir: str | None) -> embeddings.Store:
    """The embeddings of the captions by this encoder. Raises NotPrepared where they are missing."""
    mark = hashlib.sha256(encoder.encode()).hexdigest()[:8]
    name = f"coco_captions-{builder.version}-{split}-{pathlib.Path(encoder).name}-{mark}"
    folder = tfds_images.data_root(data_dir) / "vitdiff_jax" / name
    mark = marks.digest([records.mark_of_tfds(builder), embeddings.mark_of(encoder)])
    missing = f"{folder}: no caption embeddings"
    if (folder / "embeddings.json").is_file():
        store = embeddings.Store(folder)
        if store.mark == mark:
            return store
        missing = f"{folder}: embeddings of other captions, or by another encoder, than now"
    make = functools.partial(_write_embeddings, folder, encoder, builder, split, mark)
    raise NotPrepared(missing, make)


def _write_embeddings(folder, encoder, builder, split, mark, manual, say) -> None:
    def captions() -> Iterator[list[str]]:
        found = records.TfdsRecords(builder, split, _read)
        for i in range(len(found)):
            yield found[i][1]["captions"]

    say(f"writing caption embeddings to {folder}")
    embeddings.write(folder, encoder, captions(), mark)
