"""Prepared latents: what an encoder made of each picture, drawn anew, whole or refused.

The encoder is arithmetic here; the real one and the command: `tests/experiment/test_codec.py`.
"""

import json
import re
import shutil

import numpy as np
import pytest

from vitdiff_jax.data import images as images_lib
from vitdiff_jax.data import latents as latents_lib
from vitdiff_jax.data.latents import Latents
from vitdiff_jax.data.pipeline import DataError

FLOAT16 = 2.0**-11
"""The largest relative error of a rounded number."""
CROP = "centre to 8x6"
WEIGHTS = np.random.default_rng(5).standard_normal((2, 2, 3, 8)) / 4


def means_and_log_variances(pixels):
    """float64 [N, 4, 3, 8] of uint8 [N, 8, 6, 3]: each 2x2 block is mixed, left is not right."""
    x = pixels.reshape(-1, 4, 2, 3, 2, 3) / 127.5 - 1
    return np.einsum("nhiwjc,ijcd->nhwd", x, WEIGHTS)


def certain(pixels):
    """Latents of hardly any variance."""
    mean = means_and_log_variances(pixels)[..., :4]
    return np.concatenate([mean, np.full_like(mean, -40)], -1)


class Pixels:
    """Records that are pixels already, of three classes; `broken` ones cannot be decoded."""

    def __init__(self, count, broken=(), seed=0):
        self.images = np.random.default_rng(seed).integers(0, 256, (count, 8, 6, 3), np.uint8)
        self.broken = broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise ValueError("no picture")
        return self.images[index], {"label": index % 3, "index": index}


def pictures(count=10, *, name="/photos/cats (train)", flip=False, listed=(), broken=(), seed=0):
    return images_lib.Images(
        Pixels(count, broken, seed), name=name, channels=3, crop=lambda image, rng: image,
        annotate=images_lib.label_only, flip=flip, listed=listed,
    )  # fmt: skip


def write(folder, images, encode=means_and_log_variances, *, crop=CROP, encoder="one", say=print):
    latents_lib.write(folder, images, crop, encode, encoder, say)


def prepared(folder, images, encode=means_and_log_variances):
    write(folder, images, encode)
    return Latents(folder, images, CROP, "one")


def refused(action, *arguments, **options):
    """The one line that says why."""
    with pytest.raises(DataError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def means(source):
    return np.stack([source.example(i)["image"] for i in range(len(source))])


def drawn(source, index, count):
    """float32 [count, 4, 3, 4]: a latent as training sees it."""
    rng = np.random.default_rng(1)
    return np.stack([source.example(index, rng)["image"] for _ in range(count)])


def test_without_random_numbers_it_is_the_mean_with_what_is_known(tmp_path, monkeypatch):
    """Of good pictures only, encoded a few at a time; the last batch is smaller."""
    monkeypatch.setattr(latents_lib, "BATCH", 4)
    counts, images = [], pictures(12, listed=(0, 7), flip=True)

    def encode(pixels):
        counts.append(len(pixels))
        return means_and_log_variances(pixels)

    found = prepared(tmp_path, images, encode)
    assert counts == [4, 4, 4, 4, 2, 2]  # each and its mirror image
    assert len(found) == 10
    assert found.shape == (2, 4, 3, 8)
    wanted = means_and_log_variances(images.records.images[images.good])[..., :4]
    np.testing.assert_allclose(means(found), wanted, rtol=FLOAT16, atol=1e-7)
    assert found.example(0)["image"].dtype == np.float32
    labels = [found.example(i)["label"] for i in range(10)]
    assert labels == [i % 3 for i in images.good]
    assert labels[0].dtype == np.int32


def test_a_latent_has_the_moments_that_the_encoder_gave(tmp_path):
    images, n = pictures(3), 4000
    found = drawn(prepared(tmp_path, images), 1, n).astype(np.float64)
    assert found.dtype == np.float64
    mean, log_variance = np.split(means_and_log_variances(images.records.images[1:2])[0], 2, -1)
    variance = np.exp(log_variance)
    assert np.ptp(log_variance) > 1
    assert (abs(found.mean(0) - mean) < 5 * np.sqrt(variance / n)).all()
    assert (abs(found.var(0) / variance - 1) < 5 * np.sqrt(2 / n)).all()
    apart = (found - mean).reshape(n, -1) / np.sqrt(variance).ravel()
    assert abs(np.corrcoef(apart.T) - np.eye(48)).max() < 6 / np.sqrt(n)  # each has its own noise


def test_half_of_them_are_of_the_mirrored_picture(tmp_path):
    images = pictures(2, flip=True)
    found = drawn(prepared(tmp_path, images, certain), 0, 400)
    pixels = images.records.images[:1]
    plain, mirrored = (certain(a)[0, ..., :4] for a in (pixels, pixels[:, :, ::-1]))
    assert abs(plain - mirrored[:, ::-1]).max() > 0.1  # mirroring the latent were something else
    close = [abs(found - wanted).max((1, 2, 3)) < 1e-3 for wanted in (plain, mirrored)]
    assert (close[0] ^ close[1]).all()
    assert abs(close[0].mean() - 0.5) < 5 * 0.5 / np.sqrt(400)
    still = prepared(tmp_path / "still", pictures(2), certain)
    assert still.shape == (1, 4, 3, 8)
    assert abs(drawn(still, 0, 20) - plain).max() < 1e-3


def test_processes_share_the_shards(tmp_path, monkeypatch):
    """Each makes its own; together they are the one shard of one process."""
    images = pictures()
    wanted, made = means(prepared(tmp_path / "one", images)), []
    monkeypatch.setattr(latents_lib, "SHARD", 4)
    for process in range(2):
        shared = (tmp_path / "two", images, CROP, means_and_log_variances, "one", print)
        latents_lib.write(*shared, process, 2)
        made.append(sorted(path.name for path in (tmp_path / "two").iterdir()))
    assert made == [["00000", "00002"], ["00000", "00001", "00002"]]
    found = Latents(tmp_path / "two", images, CROP, "one")
    np.testing.assert_array_equal(means(found), wanted)
    assert [int(found.example(i)["label"]) for i in range(10)] == [i % 3 for i in range(10)]


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_preparation_goes_on_at_the_first_missing_shard(
    tmp_path, monkeypatch, killed
):
    monkeypatch.setattr(latents_lib, "SHARD", 4)
    monkeypatch.setattr(latents_lib, "BATCH", 2)
    images, seen, said = pictures(), [], []

    def stopping(pixels):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(pixels)
        return means_and_log_variances(pixels)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, images, stopping)
    assert [path.name for path in tmp_path.iterdir()] == ["00000"]
    if killed:  # nobody could clear up
        (tmp_path / "00001.partial").mkdir()
        (tmp_path / "00001.partial" / "latents.array_record").write_bytes(b"half")
    line = refused(Latents, tmp_path, images, CROP, "one")
    assert line == (
        f"{tmp_path}/00001: no latents: run the same config with --mode=prepare"
    )  # fmt: skip
    seen.clear()

    def going_on(pixels):
        seen.append(pixels)
        return means_and_log_variances(pixels)

    write(tmp_path, images, going_on, say=said.append)
    np.testing.assert_array_equal(np.concatenate(seen), images.records.images[4:])
    assert said == [
        f"/photos/cats (train): writing latents {first} of 10 to {tmp_path}/0000{first // 4}"
        for first in (4, 8)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000", "00001", "00002"]
    wanted = means_and_log_variances(images.records.images)[..., :4]
    np.testing.assert_allclose(
        means(Latents(tmp_path, images, CROP, "one")), wanted, rtol=FLOAT16, atol=1e-7
    )
    write(tmp_path, images, None)  # all is there: nothing is encoded


def change(path, damage):
    """One of the ways in which a shard may be broken."""
    about, records = path / "latents.json", path / "latents.array_record"
    if damage == "not JSON":
        about.write_text("{")
    elif damage in ("[]", '"text"', "3", '{"shape": 5}', '{"shape": [1, 4, 3, 8]}'):
        about.write_text(damage)
    elif damage == "no records":
        records.unlink()
    elif damage == "empty":
        records.write_bytes(b"")
    elif damage == "half of it":
        records.write_bytes(records.read_bytes()[: records.stat().st_size // 2])
    elif damage == "fewer":
        shutil.copy(path.with_name("00001") / records.name, records)


@pytest.mark.parametrize(
    "damage",
    ["not JSON", "[]", '"text"', "3", '{"shape": 5}', '{"shape": [1, 4, 3, 8]}', "no records",
     "empty", "half of it", "fewer"],
)  # fmt: skip
def test_damaged_latents(tmp_path, monkeypatch, damage):
    """To be read, and to be prepared again; deleting the shard helps."""
    monkeypatch.setattr(latents_lib, "SHARD", 6)
    images = pictures()
    wanted = means(prepared(tmp_path, images))
    change(tmp_path / "00000", damage)
    for line in (refused(Latents, tmp_path, images, CROP, "one"), refused(write, tmp_path, images)):
        assert re.fullmatch(
            f"{tmp_path}/00000: damaged latents \\(.+\\); delete it and prepare again", line
        )
    shutil.rmtree(tmp_path / "00000")
    np.testing.assert_array_equal(means(prepared(tmp_path, images)), wanted)


def test_a_damaged_record_is_no_latent(tmp_path):
    """Array_record's own sums notice; the places of the others do not shift."""
    images = pictures()
    found = prepared(tmp_path, images)
    path = tmp_path / "00000" / "latents.array_record"
    data = bytearray(path.read_bytes())
    place = data.index(means_and_log_variances(images.records.images)[3].astype(np.float16))
    data[place + 9] ^= 1
    path.write_bytes(data)
    found = Latents(tmp_path, images, CROP, "one")
    line = refused(found.example, 3)
    assert re.fullmatch(f"{tmp_path}/00000: damaged latents \\(.* hash mismatch .*\\); .*", line)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            dict(name="/photos/dogs (train)", seed=1),
            "images is 'cats (train)', not 'dogs (train)'",
        ),
        (dict(flip=True), "mirrored is False, not True"),
        (dict(crop="centre to 16x16"), "crop is 'centre to 8x6', not 'centre to 16x16'"),
        (dict(encoder="two"), "encoder is 'one', not 'two'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_latents_of_something_else(tmp_path, other, message):
    write(tmp_path, pictures())
    options = dict(crop=CROP, encoder="one") | other
    about = {key: options.pop(key) for key in ("crop", "encoder")}
    images = pictures(**options)
    line = f"{tmp_path}/00000: latents of different data: {message}; use another config.latent.path"
    assert refused(Latents, tmp_path, images, *about.values()) == line
    assert refused(write, tmp_path, images, None, **about) == line


def test_whichever_encoder_it_was_and_wherever_the_pictures_lie(tmp_path):
    """Training needs neither the autoencoder nor the place where the latents were made."""
    write(tmp_path / "here", pictures(), encoder="any")
    moved = shutil.move(tmp_path / "here", tmp_path / "there")
    found = Latents(moved, pictures(name="/elsewhere/cats (train)"), CROP, None)
    assert len(means(found)) == 10
    assert json.loads((moved / "00000" / "latents.json").read_text())["encoder"] == "any"


def test_a_picture_that_broke_meanwhile(tmp_path):
    """Its latent cannot be left out: the places of all others would shift."""
    line = refused(write, tmp_path, pictures(broken=(6,)))
    assert line == "/photos/cats (train): image 6 can no longer be decoded: no picture"
    assert list(tmp_path.iterdir()) == []
