"""Patches of bundled photographs: split by scene, drawn at many scales, the same for everyone."""

import itertools
import pathlib

import numpy as np
import pytest
import skimage.data
from sklearn.datasets import load_sample_image

from vitdiff_jax.data import scenes
from vitdiff_jax.data.pipeline import DataError

SIZE = 32
CODES = {name: 20 * i + 10 for i, name in enumerate(scenes.FILES)}
VIEWS = {name: scene for scene, names in enumerate(scenes.TRAIN) for name in names}


@pytest.fixture(scope="module")
def dataset():
    return scenes.dataset()


def ramps(name):
    """A scene that tells which it is (red), and of each pixel its row (green) and column (blue)."""
    rows, columns = np.mgrid[:200, :250]
    return np.stack([np.full_like(rows, CODES[name]), rows, columns], -1).astype(np.uint8)


def paint(size):
    """The data set of such scenes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "photograph", ramps)
        return scenes.dataset(size)


@pytest.fixture(scope="module")
def painted():
    return paint(SIZE)


@pytest.fixture(scope="module")
def drawn(painted):
    """Two thousand training examples of painted scenes, [N, S, S, 3]."""
    rng = np.random.default_rng(1)
    return np.stack([painted.train.example(i, rng)["image"] for i in range(2100)]).astype(int)


def names_in(images):
    """The views that painted patches come from, one for each."""
    codes = {code: name for name, code in CODES.items()}
    assert (images[..., 0] == images[:, :1, :1, 0]).all()
    return [codes[int(code)] for code in images[:, 0, 0, 0]]


def test_shapes_and_types(dataset):
    assert dataset.shape == (SIZE, SIZE, 3)
    assert dataset.conditions == {}
    assert dataset.classes is None
    assert len(dataset.train) == 20_000
    for source in (dataset.train, dataset.heldout):
        for i in (0, 5, len(source) - 1):
            example = source.example(i)
            assert example.keys() == {"image"}
            assert (example["image"].shape, example["image"].dtype) == (dataset.shape, np.uint8)


def test_photographs_are_those_of_the_packages():
    wanted = {
        "astronaut": skimage.data.astronaut(), "chelsea": skimage.data.chelsea(),
        "china": load_sample_image("china.jpg"), "coffee": skimage.data.coffee(),
        "flower": load_sample_image("flower.jpg"), "hubble": skimage.data.hubble_deep_field(),
        "immunohistochemistry": skimage.data.immunohistochemistry(),
        "motorcycle_left": skimage.data.stereo_motorcycle()[0],
        "motorcycle_right": skimage.data.stereo_motorcycle()[1],
        "retina": skimage.data.retina(), "rocket": skimage.data.rocket(),
    }  # fmt: skip
    assert wanted.keys() == scenes.FILES.keys()
    for name, pixels in wanted.items():
        np.testing.assert_array_equal(scenes.photograph(name), pixels)


def test_no_heldout_scene_is_trained_on(painted, drawn):
    """Nor is a scene named twice, and the two views of the stereo pair stay together."""
    trained, heldout = set(names_in(drawn)), set(names_in(painted.heldout.images))
    assert trained == set(VIEWS)
    assert heldout == {"astronaut", "chelsea", "retina"}
    assert trained | heldout == set(scenes.FILES)
    assert not trained & heldout
    assert VIEWS["motorcycle_left"] == VIEWS["motorcycle_right"]
    files = [scenes.FILES[name] for name in (*VIEWS, *scenes.HELDOUT)]
    assert len(set(files)) == len(files)


def test_scenes_come_equally_often(painted, drawn):
    """By their number; both views of a scene too, in the mean."""
    names = names_in(drawn)
    assert [VIEWS[name] for name in names] == [i % len(scenes.TRAIN) for i in range(len(names))]
    left, right = names.count("motorcycle_left"), names.count("motorcycle_right")
    assert left + right == 300
    assert abs(left - right) < 80  # 4.6 standard deviations


def steps_of(images):
    """How many pixels of the photograph lie between neighbours in a patch, along both axes."""
    inside = images[:, 2:-2, 2:-2]  # ramps end at the border, where averages bend
    span = inside.shape[1] - 1
    down = np.abs(inside[:, -1, 0, 1:] - inside[:, 0, 0, 1:])
    across = np.abs(inside[:, 0, -1, 1:] - inside[:, 0, 0, 1:])
    return down.max(-1) / span, across.max(-1) / span


def test_patches_are_reduced_up_to_four_times(drawn):
    """By five factors, equally often; the same one along both sides."""
    down, across = steps_of(drawn)
    np.testing.assert_allclose(down, across, atol=0.12)
    nearest = np.abs(down[:, None] - np.array([1, 2**0.5, 2, 8**0.5, 4])).argmin(1)
    np.testing.assert_allclose(down, np.array([1, 2**0.5, 2, 8**0.5, 4])[nearest], atol=0.12)
    share = np.bincount(nearest, minlength=5) / len(drawn)
    assert (abs(share - 0.2) < 0.045).all()  # 5 standard deviations


def test_patches_lie_anywhere(drawn):
    down, _ = steps_of(drawn)
    whole = drawn[down < 1.2]  # not reduced: 200 x 250 pixels
    for channel, side in ((1, 200), (2, 250)):
        first = whole[..., channel].min((1, 2))
        last = side - SIZE
        assert first.min() <= 4
        assert first.max() >= last - 4
        assert abs(first.mean() - last / 2) < 0.09 * last  # 6 standard deviations


def test_patches_come_in_all_eight_orientations(drawn):
    """Which way rows and columns grow, and whether they are exchanged: equally often."""
    middle = drawn[:, 2:-2, 2:-2]
    down = middle[:, -1, 0, 1:] - middle[:, 0, 0, 1:]
    across = middle[:, 0, -1, 1:] - middle[:, 0, 0, 1:]
    exchanged = abs(down[:, 0]) < abs(down[:, 1])
    row, column = np.where(exchanged, (across[:, 0], down[:, 1]), (down[:, 0], across[:, 1]))
    counts = np.bincount(4 * exchanged + 2 * (row < 0) + (column < 0), minlength=8)
    assert (abs(counts / len(drawn) - 1 / 8) < 0.037).all()  # 5 standard deviations


def test_orientations_are_those_of_the_square():
    patch = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    found = {scenes.oriented(patch, which).tobytes() for which in range(8)}
    turned = [np.rot90(p, k) for p in (patch, patch[:, ::-1]) for k in range(4)]
    assert found == {p.tobytes() for p in turned}
    np.testing.assert_array_equal(scenes.oriented(patch, 0), patch)


def test_reducing_keeps_means_and_makes_no_patterns():
    """A chessboard finer than the new pixels becomes grey; taking every second pixel would not."""
    board = (255 * (np.indices((120, 160)).sum(0) % 2)).astype(np.uint8)
    board = np.repeat(board[..., None], 3, -1)
    for factor in (2, 8**0.5, 4):
        found = scenes.reduced(board, factor).astype(float)
        assert found.shape == (round(120 / factor), round(160 / factor), 3)
        assert abs(found[2:-2, 2:-2].mean() - 127.5) < 1
        assert found[2:-2, 2:-2].std() < 12  # 127.5 before
    np.testing.assert_array_equal(scenes.reduced(board, 1), board)


def test_an_example_follows_from_its_random_numbers(dataset):
    source, again = dataset.train, scenes.dataset().train

    def example(source, index, seed):
        rng = None if seed is None else np.random.default_rng(seed)
        return source.example(index, rng)["image"].tobytes()

    for index, seed in itertools.product((0, 11), (70, 71, None)):
        assert example(source, index, seed) == example(again, index, seed)
    every = {example(source, index, seed) for index in range(5) for seed in (70, 71, None)}
    assert len(every) == 15


def test_heldout_patches_are_a_fixed_grid(dataset):
    """At most 8 x 8 of each scene at each of two scales, from corner to corner."""
    images = dataset.heldout.images
    np.testing.assert_array_equal(images, scenes.dataset().heldout.images)
    found = {patch.tobytes() for patch in images}
    photograph = skimage.data.astronaut()
    for whole in (photograph, scenes.reduced(photograph, 2)):
        for rows, columns in itertools.product((slice(SIZE), slice(-SIZE, None)), repeat=2):
            assert whole[rows, columns].tobytes() in found
    assert images.std((1, 2)).max(1).min() >= 2  # of no contrast, PSNR says nothing
    assert 250 < len(images) < 6 * 64


def test_heldout_scenes_weigh_alike():
    """But for those that hold fewer patches: 200 x 250 pixels, also at 1/2; or at 1/2 and 1/4."""
    for size, natural, retina in ((SIZE, 6 * 7 + 3 * 3, 3 * 3 + 1), (8, 2 * 64, 64 + 6 * 7)):
        names = names_in(paint(size).heldout.images)
        found = [names.count(name) for name in ("astronaut", "chelsea", "retina")]
        assert found == [natural, natural, retina]


def test_a_patch_may_be_as_large_as_a_scene():
    patches = paint(200).train
    firsts = {int(patches.example(i)["image"][..., 2].min()) for i in range(700)}
    assert firsts == set(range(51))  # columns 0 to 50 of 250


@pytest.mark.parametrize("size", [8, 128, 300])
def test_other_sizes(size):
    dataset = scenes.dataset(size)
    assert dataset.shape == (size, size, 3)
    assert dataset.heldout.example(0)["image"].shape == dataset.shape
    for i in range(40):
        assert dataset.train.example(i)["image"].shape == dataset.shape


@pytest.mark.parametrize("size", [-1, 0, 7, 301])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"^size: {size} is not between 8 and 300"):
        scenes.dataset(size)


def test_missing_photographs_are_named(tmp_path, monkeypatch):
    package = tmp_path / "photographs_package"
    package.mkdir()
    (package / "__init__.py").touch()
    data = (pathlib.Path(skimage.data.__file__).parent / "rocket.jpg").read_bytes()
    (package / "cut.jpg").write_bytes(data[: len(data) // 2])
    monkeypatch.syspath_prepend(tmp_path)
    for file, said in {"none.jpg": "No such file", "cut.jpg": "truncated"}.items():
        monkeypatch.setitem(scenes.FILES, "rocket", (package.name, file))
        with pytest.raises(DataError) as error:
            scenes.dataset()
        assert str(error.value).startswith(f"{package / file}: cannot be read: ")
        assert said in str(error.value)
    monkeypatch.setattr(scenes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^skimage is not installed.* install scikit-image$"):
        scenes.photograph("astronaut")
