"""Drawing on four devices: the same images as on one, each device its own, nothing sent between.

This file is also the program that draws, see `main`; what XLA made of it is read from its dump.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.inference.test_sampling import SHAPE, VIT, settings, trained
from vitdiff_jax.interop import images as image_lib

UNET = dict(name="unet", width=16, multipliers=(1,), blocks=1, attention=(0,), head_width=8)
CASES = {  # (model, options): 5 images, which four devices cannot share evenly
    "guided in an interval": (VIT, dict(guidance=3.0, guidance_low=0.3, guidance_high=0.8)),
    "convolutions": (UNET, dict(guidance=3.0)),
}
pytestmark = pytest.mark.slow
LABELS = [0, 1, 0, 1, 1]


def main(path):
    """Draw in all ways, as floats, into an .npz file."""
    image_lib.to_uint8 = lambda x: x
    models = {name: (trained(settings(model)), options) for name, (model, options) in CASES.items()}
    np.savez(path, **{n: m.sample(label=LABELS, n=5, **o) for n, (m, o) in models.items()})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """({devices: images by name}, the text of each program for four devices)."""
    home, found = tmp_path_factory.mktemp("drawn"), {}
    for devices in (1, 4):
        environment = tiny.environment(devices)
        environment["XLA_FLAGS"] += (
            f" --xla_dump_to={home / str(devices)} --xla_dump_hlo_module_re=jit_sample_batch$"
        )
        path = home / f"{devices}.npz"
        command = [sys.executable, "-m", "tests.inference.test_sampling_devices", path]
        subprocess.run(command, cwd=tiny.REPOSITORY, env=environment, check=True, timeout=300)
        with np.load(path) as file:
            found[devices] = dict(file)
    texts = sorted((home / "4").glob("*jit_sample_batch*after_optimizations.txt"))
    assert len(texts) == len(CASES)
    return found, [path.read_text() for path in texts]


@pytest.mark.parametrize("name", CASES)
def test_four_devices_draw_what_one_draws(drawn, name):
    """In programs that are not optimised."""
    found, _ = drawn
    assert found[1][name].shape == (5, *SHAPE)
    assert np.ptp(found[1][name]) > 0.5
    np.testing.assert_allclose(found[4][name], found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_each_device_works_on_its_own_images(drawn, name):
    """Two of eight, where guidance doubles them four; only what comes out is put together."""
    text = drawn[1][list(CASES).index(name)]
    sent = re.findall(
        r"= (\S+) (?:all-\w+|collective-\w+|reduce-scatter|ragged-\S+)(?:-start)?\(", text
    )
    assert [array.partition("{")[0] for array in sent] == ["f32[8,4,4,3]", "pred[8]"]
    rows = {int(n) for n in re.findall(r"f32\[(\d+),4,4,3\]", text.replace("f32[8,4,4,3]", ""))}
    assert {2, 4} <= rows <= {1, 2, 4}


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main(sys.argv[1])
