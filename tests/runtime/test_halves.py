"""Two devices of one CPU, for training."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax
from vitdiff_jax.runtime import logs, parallel

{before}
logs.say("a line")
parallel.halve_cpu({images})
print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("images", "before", "flags", "count"),
    [
        (6, "", "", 2),
        (5, "", "", 1),
        (6, "", "--xla_force_host_platform_device_count=3", 3),
        (6, "jax.devices()", "", 1),  # too late
    ],
)
def test_even_batches_are_shared_by_two_devices_of_a_cpu(images, before, flags, count):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a single core")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    code = CODE.format(images=images, before=before)
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["a", "line", str(count)]
