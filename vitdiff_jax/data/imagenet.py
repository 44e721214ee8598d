"""ImageNet: 1,281,167 photographs in 1,000 classes (ILSVRC 2012), through TFDS.

The archives must be downloaded manually with an account; 50,000 validation images are held out.
"""

import pathlib

from vitdiff_jax.data import images, tfds_images
from vitdiff_jax.data.pipeline import Dataset

TFDS = tfds_images.Tfds(
    name="imagenet2012",
    train="train",
    heldout="validation",
    read=lambda example: (example["image"], {"label": int(example["label"])}),
    archives=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    home="https://image-net.org/download-images",
    fetched=False,
)


CLASSES = 1000


def class_names() -> tuple[str, ...]:
    """The WordNet IDs of the classes, in the usual order, which is TFDS's."""
    import tensorflow_datasets as tfds

    home = pathlib.Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    return tuple(home.read_text().split())


def dataset(
    data_dir: str | None = None,
    size: int = 256,
    random_area: float = 0.0,
    flip: bool = True,
    cache: bool = False,
    max_broken: float = 0.001,
) -> Dataset:
    """ImageNet with class labels, named by their WordNet IDs.

    data_dir: TFDS's; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    size: height and width. random_area: 0 for ADM's centre crop, else the minimum fraction of the
    area in a random crop. flip: random horizontal flips in training.
    cache: read resized pixels written by --mode=prepare. max_broken: the fraction of images that
    may fail to decode before training stops.
    """
    return tfds_images.dataset(
        TFDS,
        conditions=lambda builder: {"label": tuple(builder.info.features["label"].names)},
        outline={"label": range(CLASSES)},
        annotate=lambda builder, split: images.label_only,
        shape=(size, size, 3),
        crop=images.make_crop(size, random_area, cache),
        crop_name="centre",
        data_dir=data_dir,
        flip=flip,
        cache=cache,
        max_broken=max_broken,
    )
