"""CelebA's 202,599 faces with 40 attributes each (Liu et al., 2015), through TFDS.

162,770 to train on; the 19,867 of its validation split are held out.
"""

import numpy as np

from vitdiff_jax.data import images, tfds_images, transforms
from vitdiff_jax.data.pipeline import Dataset

ATTRIBUTES = 40
BOXES = {  # left, top, right, bottom of the 178x218 picture
    "128": (25, 57, 153, 185),  # DDIM's and U-ViT's, for which their FID statistics are
    "140": (19, 39, 159, 179),  # the central square of score_sde (arXiv:2011.13456)
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
    """CelebA with its 40 attributes as a condition.

    crop: "128" as DDIM and U-ViT crop, "140" as score_sde does.
    hide: in this share of the examples a random part of the attributes is hidden, so that a model
    can be asked for a few attributes with the others left open.
    data_dir, size, flip, cache, max_broken: see `imagenet`.
    """
    if crop not in BOXES:
        raise ValueError(f"crop: {crop!r} is none of {', '.join(BOXES)}")
    hidden = images.hiding(hide)

    def annotate(facts, rng):
        attributes = np.array(facts["attributes"], np.int8)
        return {"attributes": hidden(attributes, rng)}

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
