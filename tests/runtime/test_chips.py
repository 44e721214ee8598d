"""Chips and slices: what a topology's name means."""

import pytest

from vitdiff_jax.runtime import chips


@pytest.mark.parametrize(
    ("topology", "count", "platform"),
    [("v5e:4x4", 16, "tpu"), ("v6e:16x16", 256, "tpu"), ("v5p:2x2x4", 16, "tpu"),
     ("h100:8", 8, "cuda"), ("a100:1", 1, "cuda")],
)  # fmt: skip
def test_a_topology_is_so_many_chips(topology, count, platform):
    found = chips.parse(topology)
    assert (found.count, found.chip.platform) == (count, platform)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "unknown chip 'v9'; available: v5e, v5p, v6e, a100, h100, h200"),
        ("v4:2x2x1", "unknown chip 'v4'"),  # its compiler reports half chips
        ("v5e", "a slice of v5e is written as v5e:4x4"),
        ("v5e:4", "a slice of v5e is written as v5e:4x4"),
        ("v5e:4x0", "a slice of v5e is written as v5e:4x4"),
        ("v5p:2x2", "a slice of v5p is written as v5p:4x4x4"),
        ("h100:2x4", "a slice of h100 is written as h100:8"),
    ],
)
def test_a_topology_that_is_none_says_what_one_is(topology, message):
    with pytest.raises(ValueError, match=f"^'{topology}': {message}"):
        chips.parse(topology)


def test_links_count_by_axes_and_rings():
    one = chips.CHIPS["v5e"].link
    rates = [chips.parse(f"v5e:{shape}").bandwidth() for shape in ("1x4", "2x2", "4x16", "16x16")]
    assert rates == [one, 2 * one, 3 * one, 4 * one]
    assert chips.parse("h100:8").bandwidth() == chips.CHIPS["h100"].link


def test_peaks_are_found_by_jaxs_names():
    assert chips.peak_flops("TPU v5 lite") == 197e12
    assert chips.peak_flops("cpu") is None
