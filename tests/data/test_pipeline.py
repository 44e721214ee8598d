"""Batches as a function of (seed, step) alone, for any number of processes."""

import itertools

import numpy as np
import pytest

from vitdiff_jax.data import pipeline
from vitdiff_jax.data.digits import InMemory

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


def global_batches(source, processes, start=0, steps=STEPS):
    """What all processes see, put together in their order."""
    shares = [
        taken(source, steps, start=start, process=p, processes=processes) for p in range(processes)
    ]
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]


def assert_same(found, wanted):
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted):
        assert one.keys() == other.keys() == {"image", "label", "index"}
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_global_batches_do_not_depend_on_processes_or_the_start(source, processes, start):
    """Image, label, order and index: a run that resumes on other machines sees the same."""
    wanted = taken(source)[start:]
    assert_same(global_batches(source, processes, start, STEPS - start), wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_order_does_not_depend_on_threads(source, threads):
    assert_same(taken(source, threads=threads), taken(source))


def test_index_is_the_place_in_the_global_batch(source):
    """Noise is drawn from (step, index), so that it belongs to the example, not to the device."""
    for batch in global_batches(source, 4):
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


def test_the_seed_decides_the_order(source):
    first, again, other = (
        np.concatenate([b["label"] for b in taken(source, seed=seed)]) for seed in (5, 5, 6)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_in_order_leaves_out_the_incomplete_batch(source):
    """Held-out losses are means over whole batches, so that all of them compile once."""
    found = list(pipeline.in_order(source, 4, 11))
    np.testing.assert_array_equal([b["label"] - 100 for b in found], np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal([b["index"] for b in found], np.arange(8).reshape(2, 4))
    assert list(pipeline.in_order(source, 4, 3)) == []


def test_stacked_is_everything_in_order(source):
    found = pipeline.stacked(source)
    np.testing.assert_array_equal(found["image"], source.images)
    np.testing.assert_array_equal(found["label"], source.labels)


def test_classes_are_counted_from_their_names(source):
    """No names, no classes: an unconditional model."""
    assert pipeline.Dataset(source, source, (2, 3, 1), ("a", "b")).classes == 2
    assert pipeline.Dataset(source, source, (2, 3, 1), None).classes is None
