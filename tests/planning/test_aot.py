"""Compiling for chips that are not there: by the real compilers where they are installed."""

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import tiny
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.planning import aot
from vitdiff_jax.planning.aot import Compiled, Request
from vitdiff_jax.runtime import chips

CONFIGS = ("imagenet", "coco", "celeba")
TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "h100:4")
COMPILERS = ("jit", "pmap")
installed = {
    "tpu": importlib.util.find_spec("libtpu"),
    "cuda": importlib.util.find_spec("jax_cuda12_plugin"),
}
needs = {
    platform: pytest.mark.skipif(not found, reason='needs pip install "vitdiff_jax[plan]"')
    for platform, found in installed.items()
}


def request(path, topology, overrides=(), blocks=None):
    """Of a config file of the project, with few images on each chip."""
    config = config_lib.load(path, [f"--config.{key}" for key in overrides])
    shape, conditions = experiment_lib.outline(config)
    conditions = {name: list(v) if isinstance(v, range) else v for name, v in conditions.items()}
    return Request(config.to_dict(), shape, conditions, topology, blocks)


def few(path, topology, overrides):
    """The same with one block of each kind."""
    asked = request(path, topology, overrides)
    config = config_lib.complete(asked.config)
    model = experiment_lib.build(config, asked.shape, asked.conditions).model
    return dataclasses.replace(asked, blocks=dict.fromkeys(model.block_counts(), 1))


def test_growth_is_linear_in_the_blocks_of_each_kind():
    def model(a, b):
        return Compiled(
            bytes={"arguments": 100 + 7 * a + 5 * b},
            operations={"head": 1.0, **{f"block_{i}/mod": 2.0 for i in range(a)},
                        **({"late": 3.0 * b} if b else {})},
            messages={"all-reduce": 10.0 * (a + b)},
            message_seconds=0.5 + 0.1 * a, hidden=0.2 * b,
        )  # fmt: skip

    found = aot.extrapolate(
        model(1, 1), {"a": (model(2, 1), 1), "b": (model(1, 3), 2)}, {"a": 4, "b": 6}
    )
    assert found.bytes == {"arguments": pytest.approx(100 + 7 * 5 + 5 * 7)}
    assert found.operations == pytest.approx({"head": 1.0, "block/mod": 10.0, "late": 21.0})
    assert found.messages == pytest.approx({"all-reduce": 120.0})
    assert (found.message_seconds, found.hidden) == pytest.approx((1.0, 1.4))


@pytest.mark.parametrize(
    "text",  # of libtpu 0.0.42.1
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (20.50G) exceeds available HBM (15.75G).",
    ],
)
def test_a_compiler_that_finds_no_room_says_how_much_it_needs(text):
    assert aot._needed(RuntimeError(text)) == 20.5 * 2**30
    with pytest.raises(RuntimeError, match="something else"):
        aot._needed(RuntimeError("something else"))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_without_a_compiler_one_line_names_the_extra(monkeypatch, topology):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(aot.CompileError, match=r'pip install "vitdiff_jax\[plan\]"$'):
        aot.compile_all([request("configs/digits.py", topology)])


def test_a_process_that_fails_is_one_line(monkeypatch):
    monkeypatch.setattr(aot, "check", lambda platform: None)
    given = request("configs/digits.py", "v5e:2x2", ["train.batch=64"])
    broken = Request(given.config | {"seed": "x"}, given.shape, given.conditions, given.topology)
    with pytest.raises(aot.CompileError, match=r"^compiling for v5e:2x2 failed: .*config.seed"):
        aot.compile_all([broken])


def test_a_process_ends_with_the_one_that_asked():
    """A compilation of minutes, whose asker is gone, is over in the time that Python needs."""
    asked = request("configs/dit.py", "v5e:2x2", ["train.batch=4"])
    child = subprocess.run(
        [sys.executable, "-m", "vitdiff_jax.planning.aot"], cwd=tiny.REPOSITORY, check=False,
        input=json.dumps(dataclasses.asdict(asked)) + "\n", text=True, capture_output=True,
        env=os.environ | aot.environment("tpu"), timeout=60,
    )  # fmt: skip
    assert (child.returncode, child.stdout, child.stderr) == (1, "", "")


@pytest.fixture(scope="module")
def compiled():
    """One block of each kind of every config, for every machine, by both compilers: all at once."""
    asked = {}
    for name, topology, compiler in itertools.product(CONFIGS, TOPOLOGIES, COMPILERS):
        if installed[chips.parse(topology).chip.platform]:
            overrides = ["train.batch=32", f"parallel.compiler={compiler}"]
            overrides += ["parallel.zero1=False"] if compiler == "pmap" else []
            asked[name, topology, compiler] = few(f"configs/{name}.py", topology, overrides)
    return dict(zip(asked, aot.compile_all([*asked.values()]), strict=True))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_compile_for_tpus_and_gpus(compiled, name, topology, compiler):
    """What is compiled is the step that training runs; on TPUs with the attention kernel."""
    if (name, topology, compiler) not in compiled:
        pytest.skip('needs pip install "vitdiff_jax[plan]"')
    found = compiled[name, topology, compiler]
    assert not found.too_large
    assert sum(found.operations.values()) > 0
    assert sum(found.messages.values()) > 0
    on_kernel = any("attention_backward" in operation for operation in found.operations)
    assert on_kernel == topology.startswith("v")


@needs["tpu"]
@pytest.mark.parametrize("zero1", [False, True])
def test_what_a_tpu_step_sends_is_its_gradients(zero1):
    """Plain: all-reduced, 2 x 3/4 of them leave each chip; ZeRO-1: cut, and parameters gathered."""
    overrides = ["train.batch=64", f"parallel.zero1={zero1}", "model.width=256"]
    asked = request("configs/digits.py", "v5e:2x2", overrides)
    experiment = experiment_lib.build(
        config_lib.complete(asked.config), asked.shape, asked.conditions
    )
    size = sum(np.prod(a.shape) for a in jax.tree.leaves(experiment.param_shapes()))
    (found,) = aot.compile_all([asked])
    sent = sum(found.messages.values())
    assert 0.9 * 1.5 * 2 * size < sent < 1.1 * 1.5 * 4 * size  # in bfloat16 or float32
    assert ("all-gather" in found.messages) == zero1
