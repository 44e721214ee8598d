"""Batches as a function of (seed, step) alone, for any number of processes."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tests.parts import only
from vitdiff_jax.data import images, pipeline
from vitdiff_jax.data.pipeline import InMemory
from vitdiff_jax.data.text import to_bytes

SIZE, BATCH, STEPS = 22, 8, 7  # 56 examples: two epochs and a half, which no batch divides


@pytest.fixture(scope="module")
def source():
    """Examples that tell who they are: every pixel is the number, the label another one."""
    number = np.arange(SIZE)
    images = np.broadcast_to(number[:, None, None, None], (SIZE, 2, 3, 1)).astype(np.uint8)
    return InMemory(images, (100 + number).astype(np.int32))


def taken(source, steps=STEPS, **options):
    """The first `steps` batches of one process."""
    options = dict(batch=BATCH, seed=5) | options
    return list(itertools.islice(pipeline.batches(source, **options), steps))


def test_index_is_the_place_in_the_global_batch(source):
    """Noise is drawn from (step, index), so that it belongs to the example, not to the device."""
    for batch in taken(source):
        np.testing.assert_array_equal(batch["index"], np.arange(BATCH))
        assert batch["index"].dtype == np.int32


@pytest.mark.parametrize("batch", [1, 8, 22, 30])
def test_every_epoch_is_a_new_permutation(source, batch):
    """Also where the batch does not divide the data, or is larger: no example is left out."""
    stream = [b["label"] for b in taken(source, -(-3 * SIZE // batch), batch=batch)]
    epochs = np.concatenate(stream)[: 3 * SIZE].reshape(3, SIZE) - 100
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(SIZE), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_image_and_label_stay_together(source):
    for batch in taken(source):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] + 100, batch["label"])
        assert batch["image"].shape == (BATCH, 2, 3, 1)
        assert batch["image"].dtype == np.uint8


class Augmented(InMemory):
    """Each example says what was drawn for it; -1 for an example as it is."""

    def example(self, index, rng=None):
        drawn = -1.0 if rng is None else rng.random()
        return super().example(index) | {"drawn": np.float64(drawn)}


def test_the_seed_decides_the_order_and_what_is_drawn(source):
    """And no number is drawn twice."""
    source = Augmented(source.images, source.labels)
    first, again, other = (
        np.array([[b["label"], b["drawn"]] for b in taken(source, seed=seed)]) for seed in (5, 5, 6)
    )
    assert (first == again).all()
    assert (first[:, 0] != other[:, 0]).any()
    assert (first[:, 1] != other[:, 1]).all()
    assert len(np.unique(first[:, 1])) == STEPS * BATCH


def test_examples_to_measure_with_are_as_they_are(source):
    source = Augmented(source.images, source.labels)
    parts = pipeline.ordered_batches(source, range(8), 4)
    assert all((part["drawn"] == -1).all() for part in parts)
    assert (pipeline.stacked(source)["drawn"] == -1).all()
    np.testing.assert_array_equal(pipeline.stacked(source, range(3, 5))["label"], [103, 104])


@pytest.mark.parametrize("threads", [1, 3])
def test_in_order_is_exactly_what_was_asked_for(source, threads):
    """The last batch is smaller: a metric that lost some images would be of another set."""
    which = [5, 3, 3, 21, 0, 7, 1]
    found = list(pipeline.ordered_batches(source, which, 3, threads))
    assert [len(b["image"]) for b in found] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in found]) - 100, which)
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in found]), range(7))
    assert {b["index"].dtype for b in found} == {np.dtype(np.int32)}
    assert list(pipeline.ordered_batches(source, [], 4)) == []


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8])
def test_processes_share_each_batch(source, processes):
    """Side by side their parts are the batch; what is too much stands at its end."""
    which = [5, 1, 4, 0, 7, 2, 6, 3]
    shares = [
        list(pipeline.ordered_batches(source, which, 5, 1, process, processes))
        for process in range(processes)
    ]
    whole = list(pipeline.ordered_batches(source, which, 5))
    assert [len(share) for share in shares] == [len(whole)] * processes
    for batch, *parts in zip(whole, *shares):
        count = len(batch["index"])
        assert len({len(part["index"]) for part in parts}) == 1
        assert sum(len(part["index"]) for part in parts) < count + processes
        for name in batch:
            side_by_side = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(side_by_side[:count], batch[name])


def test_stacked_is_everything_in_order(source):
    found = pipeline.stacked(source)
    np.testing.assert_array_equal(found["image"], source.images)
    np.testing.assert_array_equal(found["label"], source.labels)


def test_classes_are_counted_from_their_names(source):
    assert pipeline.Dataset(source, source, (2, 3, 1), {"label": ("a", "b")}).classes == 2
    assert pipeline.Dataset(source, source, (2, 3, 1), {}).classes is None


class Photographs:
    """Ten pictures with three captions each, one of them cut off."""

    def __init__(self):
        rng, self.encoded = np.random.default_rng(0), []
        for i in range(10):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(file, "PNG")
            self.encoded.append(file.getvalue()[: 300 if i == 6 else None])

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, index):
        return self.encoded[index], {"label": index, "captions": [f"{index} {c}" for c in "abc"]}


def photographs():
    """As they are trained on: cropped, mirrored, with a caption and attributes by chance."""

    def annotate(facts, rng):
        texts = facts["captions"]
        chosen = texts[0 if rng is None else rng.integers(len(texts))]
        attributes = images.attribute_dropout(0.5)(np.ones(5, np.int8), rng)
        return images.label_only(facts, rng) | {
            "text": to_bytes(chosen, 4), "attributes": attributes,
        }  # fmt: skip

    return images.Images(
        Photographs(), name="photographs", channels=3, crop=images.make_crop(6, 0.3, False),
        annotate=annotate, flip=True, max_broken=0.1,
    )  # fmt: skip


def as_bytes(batches):
    return [{name: (a.dtype, a.shape, a.tobytes()) for name, a in b.items()} for b in batches]


@pytest.fixture(scope="module")
def eight():
    """Eight batches of four, which is three epochs of ten and a bit: they end within batches."""
    return taken(photographs(), 8, batch=4)


@pytest.mark.parametrize(
    ("processes", "threads"), only([(1, 1), (4, 4)], itertools.product([1, 2, 4], [1, 4]))
)
def test_augmented_batches_are_the_same_wherever_and_whenever(eight, processes, threads):
    """Byte for byte, from every start on, in a process that has met no broken picture yet."""
    wanted = as_bytes(eight)
    for start in range(8):
        shares = [
            taken(
                photographs(), min(3, 8 - start), batch=4, start=start, threads=threads,
                process=p, processes=processes,
            )
            for p in range(processes)
        ]  # fmt: skip
        found = [
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*shares, strict=True)
        ]
        assert as_bytes(found) == wanted[start : start + 3]


def test_no_photograph_twice_or_missing_in_an_epoch(eight):
    """But that the one after the broken one stands in for it."""
    labels = np.concatenate([batch["label"] for batch in eight])[:30].reshape(3, 10)
    wanted = [0, 1, 2, 3, 4, 5, 7, 7, 8, 9]
    assert [sorted(epoch) for epoch in labels.tolist()] == [wanted] * 3


def test_photographs_are_augmented_anew_in_each_epoch():
    source, epochs = photographs(), 20
    batches = taken(source, 10 * epochs // 4, batch=4)
    every = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    for i in (0, 3, 9):
        mine = np.flatnonzero(every["label"] == i)
        assert len(mine) == epochs
        assert len({every["image"][j].tobytes() for j in mine}) > epochs - 3
        captions = {bytes(every["text"][j][:3].astype(np.uint8)).decode() for j in mine}
        assert captions == {f"{i} {c}" for c in "abc"}
        assert len({every["attributes"][j].tobytes() for j in mine}) > 1
