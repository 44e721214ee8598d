"""Two devices of one CPU, for training."""

import os
import subprocess
import sys

import pytest

from tests import tiny

CODE = """
import jax
from vitdiff_jax.runtime import logs, parallel

{before}
logs.say("a line")
parallel.halve_cpu(*{sizes})
print(jax.device_count())
"""


pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a single core")


@pytest.mark.parametrize(
    ("sizes", "before", "flags", "count"),
    [
        ([6, 4], "", "", 2),
        ([5], "", "", 1),
        ([6, 1], "", "", 1),
        ([6], "", "--xla_force_host_platform_device_count=3", 3),
        ([6], "jax.devices()", "", 1),  # too late
    ],
)
def test_even_batches_are_shared_by_two_devices_of_a_cpu(sizes, before, flags, count):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    code = CODE.format(sizes=sizes, before=before)
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["a", "line", str(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heldout", "line"),
    [(4, "devices: 2 x cpu; jit, data parallel"), (1, "devices: 1 x cpu; jit, no sharding")],
)
def test_the_command_trains_on_them_and_says_so(tmp_path, heldout, line):
    """Nothing starts JAX before. A single held-out image keeps one device."""
    held = dict(heldout_every=1, heldout_images=heldout)
    config = tiny.write(tmp_path / "tiny.py", train=dict(steps=1), log=held)
    command = ["-m", "vitdiff_jax.main", config, f"--workdir={tmp_path / 'run'}"]
    environment = tiny.environment() | {"XLA_FLAGS": ""}
    found = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
    )
    assert line in found.stdout.splitlines()
