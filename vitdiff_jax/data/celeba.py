"""CelebA: 202,599 faces with 40 binary attributes (Liu et al., 2015), through TFDS.

162,770 training images; the 19,867 images of the validation split are held out.
"""

import numpy as np

from vitdiff_jax.data import images, tfds_images, transforms
from vitdiff_jax.data.pipeline import Dataset

ATTRIBUTES = 40
BOXES = {  # left, top, right, bottom in the 178x218 image
    "128": (25, 57, 153, 185),  # DDIM and U-ViT, whose FID statistics use it
    "140": (19, 39, 159, 179),  # score_sde (arXiv:2011.13456)
}


def _read(example):
    attributes = [int(value) for _, value in sorted(example["attributes"].items())]
    return example["image"], {"attributes": attributes}


TFDS = tfds_images.Tfds(
    name="celeb_a",
    train="train",
    heldout="validation",
    read=_read,
    archives=(
        "img_align_celeba.zip", "list_eval_partition.txt", "list_attr_celeba.txt",
        "list_landmarks_align_celeba.txt", "identity_CelebA.txt",
    ),
    home="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
)  # fmt: skip


def dataset(
    data_dir: str | None = None,
    size: int = 64,
    crop: str = "128",
    hide: float = 0.5,
    flip: bool = True,
    cache: bool = False,
    max_broken: float = 0.001,
) -> Dataset:
    """CelebA, conditioned on its 40 attributes.

    crop: "128" as in DDIM and U-ViT, or "140" as in score_sde.
    hide: the fraction of examples in which a random subset of the attributes is hidden, so that
    sampling can specify some attributes and leave the others open.
    data_dir, size, flip, cache, max_broken: see `imagenet`.
    """
    if crop not in BOXES:
        raise ValueError(f"crop: {crop!r} is not one of {', '.join(BOXES)}")
    drop = images.attribute_dropout(hide)

    def annotate(metadata, rng):
        attributes = np.array(metadata["attributes"], np.int8)
        return {"attributes": drop(attributes, rng)}

    return tfds_images.dataset(
        TFDS,
        conditions=lambda builder: {
            "attributes": tuple(sorted(builder.info.features["attributes"]))
        },
        outline={"attributes": range(ATTRIBUTES)},
        annotate=lambda builder, split: annotate,
        shape=(size, size, 3),
        crop=lambda image, rng: transforms.fixed_crop(image, size, BOXES[crop]),
        crop_name=f"crop{crop}",
        data_dir=data_dir,
        flip=flip,
        cache=cache,
        max_broken=max_broken,
    )  # fmt: skip
