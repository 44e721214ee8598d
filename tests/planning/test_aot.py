"""Compiling for chips that are not there: by the real compilers where they are installed."""

import dataclasses
import importlib.util
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

TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "h100:4")
SMALL = ("train.batch=8", "model.width=128", "model.heads=2", "model.bottleneck=32")
"""The configs' networks with fewer numbers of the same kind, a head of 64 of them as before."""
PMAP = ("parallel.compiler=pmap", "parallel.zero1=False")
COMPILED = {  # (config, chips, compiler) -> changes: each platform, jit and pmap, ZeRO-1 and FSDP
    ("imagenet", "v5e:2x2", "jit"): (),  # ZeRO-1 is in it
    ("celeba", "v5e:2x2", "pmap"): PMAP,
    ("coco", "v6e:2x2", "jit"): ("parallel.fsdp=4",),
    ("imagenet", "h100:4", "jit"): (),
    ("coco", "h100:4", "pmap"): PMAP,
    ("imagenet:one_step", "v5e:2x2", "jit"): (),
    ("imagenet:one_step", "h100:4", "jit"): (),
}
LOWERED = {  # v6e's program is v5e's until it is compiled
    ("imagenet", "v5e:2x2", "pmap"): PMAP,
    ("imagenet", "h100:4", "pmap"): PMAP,
    ("celeba", "v5e:2x2", "jit"): ("parallel.zero1=True",),
    ("celeba", "h100:4", "jit"): ("parallel.fsdp=2",),
    ("celeba", "h100:4", "pmap"): PMAP,
    ("coco", "v5e:2x2", "jit"): (),
    ("coco", "v5e:2x2", "pmap"): PMAP,
    ("coco", "h100:4", "jit"): (),
    ("digits:one_step", "v5e:2x2", "jit"): (),
    ("digits:one_step", "h100:4", "jit"): (),
    ("fashion_mnist:one_step", "v5e:2x2", "jit"): (),
    ("fashion_mnist:one_step", "h100:4", "jit"): (),
}
installed = {
    "tpu": importlib.util.find_spec("libtpu"),
    "cuda": importlib.util.find_spec("jax_cuda12_plugin"),
}


def request(path, topology, overrides=(), blocks=None):
    """Of a config file of the project, with few images on each chip."""
    config = config_lib.load(path, [f"--config.{key}" for key in overrides])
    shape, conditions = experiment_lib.outline(config)
    conditions = {name: list(v) if isinstance(v, range) else v for name, v in conditions.items()}
    return Request(config.to_dict(), shape, conditions, topology, blocks)


def few(name, topology, overrides):
    """The same, small, with one block of each kind."""
    name, colon, variant = name.partition(":")
    asked = request(f"configs/{name}.py{colon}{variant}", topology, [*SMALL, *overrides])
    model = experiment_of(asked).model
    return dataclasses.replace(asked, blocks=dict.fromkeys(model.block_counts(), 1))


def experiment_of(asked):
    config = config_lib.complete(asked.config)
    return experiment_lib.build(config, asked.shape, asked.conditions)


def test_growth_is_linear_in_the_blocks_of_each_kind():
    def model(a, b):
        return Compiled(
            bytes={"arguments": 100 + 7 * a + 5 * b},
            operations={"head": 1.0, **{f"block_{i}/mod": 2.0 for i in range(a)},
                        **({"late": 3.0 * b} if b else {})},
            communication={"all-reduce": 10.0 * (a + b)},
            communication_seconds=0.5 + 0.1 * a, hidden=0.2 * b,
        )  # fmt: skip

    found = aot.extrapolate(
        model(1, 1), {"a": (model(2, 1), 1), "b": (model(1, 3), 2)}, {"a": 4, "b": 6}
    )
    assert found.bytes == {"arguments": pytest.approx(100 + 7 * 5 + 5 * 7)}
    assert found.operations == pytest.approx({"head": 1.0, "block/mod": 10.0, "late": 21.0})
    assert found.communication == pytest.approx({"all-reduce": 120.0})
    assert (found.communication_seconds, found.hidden) == pytest.approx((1.0, 1.4))


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


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Whoever is to compile does these lines of a shell instead, after the request."""

    def write(*lines):
        (tmp_path / "python").write_text("\n".join(["#!/bin/sh", "read request", *lines]))
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(aot, "check", lambda platform: None)
        monkeypatch.setattr(aot.sys, "executable", str(tmp_path / "python"))

    return write


def test_the_last_line_of_a_process_is_its_answer(child):
    wanted = Compiled({"arguments": 5.0}, {"head": 1.0}, {"all-reduce": 2.0}, 0.5, 0.25, True)
    child("echo from its libraries", f"echo '{json.dumps(dataclasses.asdict(wanted))}'")
    given = request("configs/digits.py", "v5e:2x2")
    assert aot.compile_all([given, given]) == [wanted, wanted]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [(["echo noise >&2", "echo config.seed: no >&2", "exit 2"], "config.seed: no"),
     (["exit 7"], "exit code 7")],
)  # fmt: skip
def test_the_last_complaint_of_a_process_that_fails_is_the_reason(child, lines, reason):
    child(*lines)
    with pytest.raises(aot.CompileError, match=f"^compiling for v5e:2x2 failed: {reason}$"):
        aot.compile_all([request("configs/digits.py", "v5e:2x2")])


@pytest.mark.slow
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
    """One block of each kind of the configs in COMPILED, all at once."""
    asked = {
        (name, topology, compiler): few(name, topology, changes)
        for (name, topology, compiler), changes in COMPILED.items()
        if installed[chips.parse(topology).chip.platform]
    }
    return dict(zip(asked, zip(asked.values(), aot.compile_all([*asked.values()])), strict=True))


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.parametrize("case", COMPILED, ids=" ".join)
def test_the_configs_compile_for_tpus_and_gpus(compiled, case):
    """What is compiled is the step that training runs; on TPUs with the attention kernel.

    But for average velocities, which need a forward-mode derivative. Each chip of v5e sends its
    gradients, plain: all-reduced, 2 x 3/4 of them leave it; ZeRO-1: cut, and parameters gathered.
    Muon gathers more.
    """
    if case not in compiled:
        pytest.skip('needs pip install "vitdiff_jax[plan]"')
    asked, found = compiled[case]
    assert not found.out_of_memory
    assert sum(found.operations.values()) > 0
    sent = sum(found.communication.values())
    assert sent > 0
    on_kernel = any("attention_backward" in operation for operation in found.operations)
    assert on_kernel == (case[1].startswith("v") and "one_step" not in case[0])
    if case[1].startswith("v5e") and asked.config["optimizer"]["name"] == "adamw":
        model = experiment_of(asked).model.with_block_counts(asked.blocks)
        experiment = dataclasses.replace(experiment_of(asked), model=model)
        size = sum(np.prod(a.shape) for a in jax.tree.leaves(experiment.param_shapes()))
        assert 0.9 * 1.5 * 2 * size < sent < 1.1 * 1.5 * 4 * size  # in bfloat16 or float32
        assert ("all-gather" in found.communication) == (case[2] == "jit")


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.parametrize("case", LOWERED, ids=" ".join)
def test_the_configs_are_lowered_for_tpus_and_gpus(monkeypatch, case):
    """The others, as far as that."""
    platform = chips.parse(case[1]).chip.platform
    if not installed[platform]:
        pytest.skip('needs pip install "vitdiff_jax[plan]"')
    for name, value in aot.environment(platform).items():
        monkeypatch.setenv(name, value)
    text = aot.lower(few(*case[:2], LOWERED[case])).as_text()
    assert ("attention_backward" in text) == (platform == "tpu" and "one_step" not in case[0])
    assert "num_partitions = 4" in text or "num_replicas = 4" in text
