"""Tiny archives in the official layouts of ImageNet, COCO and CelebA, and what lies in them.

Each function writes the archives of one data set into a folder and returns
{split: {file name: `Picture`}}, the truth that a test compares with.
"""

import dataclasses
import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image

BROKEN = b"\xff\xd8\xff\xe0 this is no picture"

CATEGORIES = (  # COCO's 80, with their numbers from 1 to 90
    "1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat,"
    "10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat,"
    "18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack,"
    "28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee, 35 skis, 36 snowboard,"
    "37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,"
    "43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl,"
    "52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza,"
    "60 donut, 61 cake, 62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet,"
    "72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven,"
    "80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear,"
    "89 hair drier, 90 toothbrush"
)
CATEGORIES = {
    name: int(number)
    for number, _, name in (item.strip().partition(" ") for item in CATEGORIES.split(","))
}
COLUMNS = (  # CelebA's 40 attributes, in the order of its file
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose"
    " Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee"
    " Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard"
    " Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair"
    " Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie"
    " Young"
)
ATTRIBUTES = COLUMNS.split()
LANDMARKS = (
    "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x"
    " rightmouth_y"
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """An encoded picture and what its data set says of it."""

    data: bytes
    label: str = ""
    objects: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    attributes: tuple[int, ...] = ()


def picture(seed, width=40, height=32, mode="RGB", kind="JPEG"):
    """An encoded picture of a few coloured squares, another one for each seed."""
    rng = np.random.default_rng(seed)
    squares = Image.frombytes(mode, (4, 4), rng.bytes(16 * len(mode)))
    file = io.BytesIO()
    squares.resize((width, height), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def tar_of(members):
    """A tar file of {name: bytes}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return file.getvalue()


def write_zip(path, members):
    """A zip file of {name: bytes, or what is to be JSON}."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data if isinstance(data, bytes) else json.dumps(data))


VALIDATION = (  # of the first of the 50,000 validation images: their classes, as published
    "n01751748", "n09193705", "n02105855", "n04263257", "n03125729",
)  # fmt: skip


def imagenet(folder, broken=0):
    """ImageNet with three pictures of each of a few classes; `broken` more that are none.

    With the one PNG and one of the CMYK pictures that the real training set has.
    """
    files = {
        "n01440764": ("n01440764_18.JPEG", "n01440764_36.JPEG", "n01440764_37.JPEG"),
        "n02105855": ("n02105855_2.JPEG", "n02105855_2933.JPEG", "n02105855_10000.JPEG"),
        "n02504458": ("n02504458_1.JPEG", "n02504458_22.JPEG", "n02504458_333.JPEG"),
        "n01739381": ("n01739381_1309.JPEG", "n01739381_4.JPEG", "n01739381_5.JPEG"),
        "n15075141": ("n15075141_54.JPEG", "n15075141_55.JPEG", "n15075141_56.JPEG"),
    }
    special = {
        "n02105855_2933.JPEG": dict(kind="PNG"),
        "n01739381_1309.JPEG": dict(mode="CMYK"),
        "n15075141_54.JPEG": dict(mode="L"),
    }
    train = {}
    for wnid, names in files.items():
        for name in names:
            seed = len(train)
            data = picture(seed, 40 + seed, 60 - seed, **special.get(name, {}))
            train[name] = Picture(data, wnid)
    for i in range(broken):
        train[f"n01440764_{900 + i}.JPEG"] = Picture(BROKEN, "n01440764")
    classes = {
        f"{wnid}.tar": tar_of({n: p.data for n, p in train.items() if p.label == wnid})
        for wnid in files
    }
    heldout = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": Picture(picture(100 + i), wnid)
        for i, wnid in enumerate(VALIDATION)
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    reversed_order = {name: heldout[name].data for name in reversed(heldout)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(reversed_order))
    return {"train": train, "validation": heldout}


OBJECTS = (("dog", "dog", "person"), (), ("toothbrush",), ("person", "traffic light"), ("cat",))


def _coco_part(name, first, count, prefix):
    """{file name: Picture} of a part, and its images and annotations as instances_*.json has them.

    The second picture has no objects, the first two of a kind.
    """
    pictures, images, annotations = {}, [], []
    for i in range(count):
        number, size = first + i, (64 + 4 * i, 48)
        file = f"{prefix}{number:012d}.jpg"
        objects = OBJECTS[i % len(OBJECTS)]
        captions = tuple(f"caption {k} of picture {number}, é\n" for k in range(5))
        pictures[file] = Picture(picture(number, *size), "", objects, captions)
        images.append(
            dict(id=number, file_name=file, width=size[0], height=size[1], license=1,
                 coco_url=f"http://images.cocodataset.org/{name}/{file}")
        )  # fmt: skip
        annotations += [
            dict(id=number * 10 + k, image_id=number, category_id=CATEGORIES[kind], iscrowd=0,
                 bbox=[1.5, 2.0, 20.25, 10.0], area=202.5, segmentation=[])
            for k, kind in enumerate(objects)
        ]  # fmt: skip
    return pictures, images, annotations


def _coco(folder, year, parts, tests):
    """Zip files of pictures, annotations and test parts; {part: {file name: Picture}}.

    parts: {name: (first number, count, file prefix)}; tests: {name: file prefix}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [dict(id=i, name=name, supercategory="") for name, i in CATEGORIES.items()]
    found, members = {}, {}
    for name, (first, count, prefix) in parts.items():
        found[name], images, annotations = _coco_part(name, first, count, prefix)
        write_zip(folder / f"{name}.zip", {f"{name}/{f}": p.data for f, p in found[name].items()})
        members[f"annotations/instances_{name}.json"] = dict(
            info={}, licenses=[], images=images, annotations=annotations, categories=kinds
        )
    write_zip(folder / f"annotations_trainval{year}.zip", members)
    for name, prefix in tests.items():
        pictures, images, _ = _coco_part(name, 990_000, 1, prefix)
        write_zip(folder / f"{name}.zip", {f"{name}/{f}": p.data for f, p in pictures.items()})
        about = dict(info={}, licenses=[], images=images, categories=kinds)
        write_zip(folder / f"image_info_{name}.zip", {f"annotations/image_info_{name}.json": about})
    return found


def coco_captions(folder):
    """COCO 2014 with Karpathy's split: 6 to train on; of the other 6 two held out."""
    found = _coco(
        folder, 2014,
        {"train2014": (9, 6, "COCO_train2014_"), "val2014": (400, 6, "COCO_val2014_")},
        {"test2014": "COCO_test2014_", "test2015": "COCO_test2015_"},
    )  # fmt: skip
    parts = {name: {} for name in ("train", "val", "test", "restval")}
    for name, pictures in found.items():
        where = ["train"] * 6 if name == "train2014" else 2 * ["val", "test", "restval"]
        for part, (file, about) in zip(where, pictures.items(), strict=True):
            parts[part][file] = about
    rows = [
        dict(
            filepath=file.split("_")[1], filename=file, split=part, cocoid=int(file[-16:-4]),
            sentences=[
                dict(raw=text, sentid=int(file[-16:-4]) * 10 + k, tokens=text.split())
                for k, text in enumerate(about.captions)
            ],
        )
        for part, pictures in parts.items() for file, about in pictures.items()
    ]  # fmt: skip
    write_zip(
        folder / "caption_datasets.zip",
        {"dataset_coco.json": {"images": rows, "dataset": "coco"}, "dataset_flickr8k.json": {}},
    )
    return parts


def coco_2017(folder):
    """COCO 2017: 6 to train on, 3 held out."""
    parts = {"train2017": (9, 6, ""), "val2017": (139, 3, "")}
    found = _coco(folder, 2017, parts, {"test2017": ""})
    return {"train": found["train2017"], "validation": found["val2017"]}


def celeb_a(folder):
    """CelebA: 8 to train on, 4 held out, one for test, with random attributes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    splits = ["train"] * 8 + ["validation"] * 4 + ["test"]
    found = {name: {} for name in ("train", "validation", "test")}
    for i, split in enumerate(splits):
        attributes = tuple(int(a) for a in rng.choice([-1, 1], len(ATTRIBUTES)))
        found[split][f"{i + 1:06d}.jpg"] = Picture(picture(i, 178, 218), attributes=attributes)
    everyone = {file: about for part in found.values() for file, about in part.items()}
    write_zip(
        folder / "img_align_celeba.zip",
        {f"img_align_celeba/{file}": about.data for file, about in everyone.items()},
    )
    head = f"{len(everyone)}\n"
    rows = {
        "list_eval_partition.txt": [
            f"{file} {list(found).index(split)}" for file, split in zip(everyone, splits)
        ],
        "list_attr_celeba.txt": [
            f"{head}{COLUMNS} ",
            *(
                f"{file} {' '.join(f'{a:2d}' for a in about.attributes)}"
                for file, about in everyone.items()
            ),
        ],
        "list_landmarks_align_celeba.txt": [
            f"{head}{LANDMARKS} ", *(f"{file} {' '.join(['69'] * 10)}" for file in everyone)
        ],
        "identity_CelebA.txt": [f"{file} {2880 + i}" for i, file in enumerate(everyone)],
    }  # fmt: skip
    for name, lines in rows.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return found
