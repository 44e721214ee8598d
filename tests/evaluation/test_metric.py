"""Adding up: however the batches come, and over an interruption, the same numbers."""

import collections
import json

import numpy as np
import pytest

from vitdiff_jax.evaluation import metric
from vitdiff_jax.evaluation.frechet import Moments
from vitdiff_jax.evaluation.inception_score import Scores
from vitdiff_jax.evaluation.metric import Batch, Mean, Measured, Part, Vectors

IMAGES = np.random.default_rng(0).integers(0, 256, (43, 2, 3, 1), np.uint8)
ABOUT = {"of": "some images", "extractors": ["fake"], "sizes": (2, 3)}


class Fake:
    """Gives the pixels as vectors, and their means; counts what it is asked."""

    name = "fake"

    def __init__(self):
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        pixels = batch.images.reshape(len(batch.images), -1) / np.float32(255)
        return {"pixels": pixels.astype(np.float32), "mean": pixels.mean(1)}


@pytest.fixture
def parts():
    """One part of every kind, and two outputs of one extractor."""
    fake = Fake()
    kinds = (Moments, Vectors, Scores)
    return [Part(fake, "mean", Mean), *(Part(fake, "pixels", kind) for kind in kinds)]


def add(measured, images, size):
    for i in range(0, len(images), size):
        measured.update(Batch(images[i : i + size]))
    return measured


def numbers(measured):
    mean, moments, vectors, scores = measured.found.values()
    found = [np.array([mean.mean, mean.error]), *moments.gaussian(), scores.scores()]
    return [*found, vectors.vectors]


def assert_same(found, wanted):
    assert found.done == wanted.done
    *found, vectors = numbers(found)
    *wanted, wanted_vectors = numbers(wanted)
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(vectors, wanted_vectors)


def test_all_at_once_is_numpys(parts):
    """Moments: `test_frechet`."""
    found, each = add(Measured(parts, 43), IMAGES, 10).found[parts[0]], IMAGES.mean((1, 2, 3)) / 255
    assert found.mean == pytest.approx(each.mean(), rel=1e-6)
    assert found.error == pytest.approx(each.std(ddof=1) / 43**0.5, rel=1e-5)


def test_the_order_of_images_changes_no_mean(parts):
    """Moments and means; vectors come in the order of the images."""
    order = np.random.default_rng(1).permutation(43)
    first, second = (add(Measured(parts, 43), images, 9) for images in (IMAGES, IMAGES[order]))
    for a, b in zip(numbers(first)[:3], numbers(second)[:3]):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(numbers(first)[-1][order], numbers(second)[-1])


@pytest.mark.parametrize("keep", [20, 10**6])
@pytest.mark.parametrize("cut", [0, 1, 30, 43])
def test_goes_on_after_an_interruption(monkeypatch, tmp_path, parts, cut, keep):
    """From a file, with other batches behind it: what one go gives, also of a part of vectors."""
    monkeypatch.setattr(metric, "KEEP", keep)
    first = add(Measured(parts, 43), IMAGES[:cut], 10)
    first.save(tmp_path / "new" / "kept.npz", ABOUT)
    second = Measured(parts, 43)
    assert second.load(tmp_path / "new" / "kept.npz", ABOUT)
    assert second.done == cut
    add(second, IMAGES[cut:], 7)
    assert_same(second, add(Measured(parts, 43), IMAGES, 43))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept.npz"]


def test_what_was_kept_of_something_else_is_not_used(tmp_path, parts):
    """Of another `about`, another number of images, or nothing: it starts anew."""
    path = tmp_path / "kept.npz"
    fresh = Measured(parts, 43)
    assert not fresh.load(path, ABOUT)
    add(Measured(parts, 43), IMAGES[:20], 10).save(path, ABOUT)
    assert not fresh.load(path, ABOUT | {"of": "others"})
    assert not fresh.load(path, ABOUT | {"more": 1})
    assert not Measured(parts, 44).load(path, ABOUT)
    assert fresh.done == 0
    assert_same(add(fresh, IMAGES, 10), add(Measured(parts, 43), IMAGES, 10))


def test_a_damaged_file_is_nothing(tmp_path, parts):
    """It is measured again then; the accumulators are as new."""
    path = tmp_path / "kept.npz"
    add(Measured(parts, 43), IMAGES[:20], 10).save(path, ABOUT)
    whole = path.read_bytes()
    for data in (whole[:-100], whole[:100], b""):
        path.write_bytes(data)
        measured = Measured(parts, 43)
        assert not measured.load(path, ABOUT)
        assert_same(add(measured, IMAGES, 10), add(Measured(parts, 43), IMAGES, 10))


def test_an_interruption_while_saving_keeps_the_last_file(tmp_path, monkeypatch, parts):
    path = tmp_path / "kept.npz"
    measured = add(Measured(parts, 43), IMAGES[:20], 10)
    measured.save(path, ABOUT)
    before = path.read_bytes()

    def cut(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", cut)
    with pytest.raises(KeyboardInterrupt):
        measured.save(path, ABOUT)
    assert path.read_bytes() == before


def test_a_shared_extractor_looks_once(parts):
    """And a part that two metrics name is added up once, and given to both."""
    metrics = [collections.namedtuple("Metric", "parts")(p) for p in (parts[:3], parts[1:2])]
    measured = Measured([part for metric in metrics for part in metric.parts], 43)
    add(measured, IMAGES, 10)
    assert parts[0].extractor.calls == 5
    assert len(measured.found) == 3
    (moments,) = measured.of(metrics[1])
    assert moments is measured.of(metrics[0])[1]
    assert moments.count == 43


def test_what_is_shared_is_made_once():
    """By its maker or by a key; the data set too, and not before it is needed."""
    made = []
    setting = metric.Setting(lambda: made.append("dataset") or "read", None)
    assert made == []
    assert (setting.dataset, setting.dataset) == ("read", "read")

    def one(given):
        assert given is setting
        made.append("one")
        return object()

    assert setting.shared(one) is setting.shared(one)
    assert setting.shared(lambda s: object(), "key") is setting.shared(lambda s: object(), "key")
    assert made == ["dataset", "one"]


@pytest.mark.parametrize("size", [7, 100, 250])
def test_of_more_vectors_a_part_is_kept(monkeypatch, size):
    """Of a fixed size, in their order, the same however they come; float32."""
    monkeypatch.setattr(metric, "KEEP", 50)
    rows = np.arange(250.0)[:, None]
    vectors, whole = Vectors(250), Vectors(250)
    whole.update(rows)
    for i in range(0, 250, size):
        vectors.update(rows[i : i + size])
    np.testing.assert_array_equal(vectors.vectors, whole.vectors)
    assert vectors.vectors.shape == (50, 1)
    assert vectors.vectors.dtype == np.float32
    assert (np.diff(vectors.vectors[:, 0]) > 0).all()


def test_the_kept_part_is_unbiased():
    """Any place is as likely: its mean and each tenth of it, within five standard errors."""
    count = 4 * metric.KEEP
    chosen = Vectors(count).which
    assert len(np.unique(chosen)) == metric.KEEP
    error = count / 12**0.5 * (0.75 / metric.KEEP) ** 0.5
    assert abs(chosen.mean() - (count - 1) / 2) < 5 * error
    tenths = np.histogram(chosen, 10, (0, count))[0]
    expected = metric.KEEP / 10
    assert abs(tenths - expected).max() < 5 * (expected * 0.9 * 0.75) ** 0.5


def test_one_number_has_no_error_and_equal_ones_neither():
    """Rounding must not make a root of something below zero of it."""
    for count in range(1, 50):
        mean = Mean()
        mean.update(np.full(count, 0.1))
        assert mean.mean == pytest.approx(0.1)
        assert mean.error == pytest.approx(0, abs=1e-9)


def test_a_header_is_json(tmp_path, parts):
    """That a person can read, and that says how far it came."""
    add(Measured(parts, 43), IMAGES[:20], 10).save(tmp_path / "a.npz", ABOUT)
    header = json.loads(str(np.load(tmp_path / "a.npz")["about"]))
    assert header == {**ABOUT, "sizes": [2, 3], "done": 20, "count": 43}
