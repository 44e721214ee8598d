"""--mode=plan: what it says of a step, with a stand-in for compilers, and with a real one."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from tests import tiny
from tests.parts import quick
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.modes import plan
from vitdiff_jax.planning import aot
from vitdiff_jax.planning.aot import Compiled
from vitdiff_jax.runtime import chips

GIB = 2**30


def compiler(room):
    """A stand-in: 1 s a block, `room(config)` bytes for each; remembers what it was asked."""
    asked = []

    def compile_all(requests):
        asked.extend(requests)
        found = []
        for request in requests:
            count = sum(request.blocks.values()) if request.blocks else 2
            size = room(request.config) * count
            found.append(Compiled(
                {"arguments": size}, {f"block_{i}/mod": 1.0 for i in range(count)},
                {"all-reduce": 2.0**20 * count}, 0.5 * count, 0.25 * count,
            ))  # fmt: skip
        return found

    compile_all.asked = asked
    return compile_all


@pytest.fixture
def planned(monkeypatch, tmp_path, capsys):
    """A function that plans the tiny config with these flags: (plan.json, what was printed)."""

    def run(*flags, room=lambda config: 4 * GIB, config=()):
        monkeypatch.setattr(aot, "compile_all", compiler(room))
        file = tiny.write(tmp_path / "tiny.py", **dict(config))
        assert tiny.call(file, f"--workdir={tmp_path / 'run'}", "--mode=plan", *flags) == 0
        return json.loads((tmp_path / "run" / "plan.json").read_text()), capsys.readouterr().out

    return run


def test_a_plan_says_what_it_takes(planned):
    found, shown = planned("--topology=v5e:2x2", "--price_per_chip_hour=2", "--full")
    seconds = 2 * 1.0 + 2 * 0.5 - 2 * 0.25
    assert found["seconds_per_step"] == pytest.approx(seconds)
    assert found["hours"] == pytest.approx(30 * seconds / 3600)
    assert found["price"] == pytest.approx(30 * seconds / 3600 * 4 * 2)
    fastest = found["flops_per_image"] * 8 / (4 * 197e12)
    assert found["estimated_mfu"] == pytest.approx(fastest / 2)  # of the operations alone
    assert found["estimated_mfu_with_communication"] == pytest.approx(fastest / seconds)
    assert found["fits"]
    assert found["bytes_per_device"]["total"] == 8 * GIB
    assert found["collectives"]["bytes"] == {"all-reduce": 2 * 2.0**20}
    assert [o["share"] for o in found["operations"]] == pytest.approx([0.5] * 2)
    assert "8.00 of 16 GiB" in shown
    assert "costs 0" in shown


def test_what_does_not_fit_says_so(planned):
    found, shown = planned("--topology=v5e:2x2", room=lambda config: 9 * GIB)
    assert not found["fits"]
    assert "NO: --search looks for a layout that does" in shown


@pytest.mark.slow
def test_a_search_names_the_fastest_that_fits(planned):
    """Here only the state cut by FSDP does; each layout saves memory until it fits or ends."""
    found, shown = planned(
        "--topology=v5e:2x2", "--search",
        room=lambda config: (1 if config["parallel"]["fsdp"] == 4 else 100) * GIB,
        config=dict(model=dict(depth=1, class_tokens=0)),
    )  # fmt: skip
    assert found["fits"]
    assert found["changes"]["parallel.fsdp"] == 4
    assert [plan["fits"] for plan in found["tried"]].count(True) == 1
    assert shown.count("does not fit") > 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--topology: required, such as v5e:4x4"),
        (["--topology=v5e:9"], "--topology: 'v5e:9': a slice of v5e is written as v5e:4x4"),
        (["--topology=v5e:4x4"], "config.train.batch: 8 is not divisible by 16 chips"),
        (
            ["--topology=v5e:2x2", "--price_per_chip_hour=-1"],
            "--price_per_chip_hour: -1.0 is less than 0",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, capsys, flags, message):
    file = tiny.write(tmp_path / "tiny.py")
    assert tiny.call(file, f"--workdir={tmp_path / 'run'}", "--mode=plan", *flags) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", quick(["coco"], ["coco", "digits", "imagenet", "celeba", "dit", "restorer"])
)
def test_no_data_are_needed_for_shapes_and_conditions(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = config_lib.load(f"configs/{name}.py")
    shape, conditions = experiment_lib.outline(config)
    experiment = experiment_lib.build(config, shape, conditions)
    assert experiment.forward_flops() > 0


@pytest.mark.slow
def test_operations_do_not_depend_on_what_computes_attention():
    """What a kernel computes in each of its steps would be counted once, and cuDNN's not at all."""
    counts = []
    for by in ("xla", "pallas"):
        config = plan.changed(config_lib.load("configs/imagenet.py"), {"model.attention": by})
        shape, conditions = experiment_lib.outline(config)
        counts.append(experiment_lib.build(config, shape, conditions).forward_flops())
    assert len(set(counts)) == 1


@pytest.mark.usefixtures("plain")
def test_state_bytes_are_those_of_the_arrays(tmp_path):
    run = tiny.run(tiny.config(model=tiny.PLAIN), tmp_path / "run")
    found = plan.state_bytes(run.config, run.experiment, 1)
    state = jax.jit(run.init)()
    sizes = [sum(a.nbytes for a in jax.tree.leaves(tree))
             for tree in (state.params, state.opt_state, state.ema)]  # fmt: skip
    assert [*found.values()] == sizes


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason='needs pip install "vitdiff_jax[plan]"'
)
def test_extrapolation_is_what_compiling_all_says(tmp_path):
    """A model of eight blocks on v5e: time, bytes and messages within 5 %."""
    config = config_lib.load(
        "configs/digits.py",
        ["--config.model.width=128", "--config.model.depth=8", "--config.model.class_tokens_from=3",
         "--config.train.batch=64", "--config.model.dtype=bfloat16"],
    )  # fmt: skip
    found, whole = (
        plan.Planner(config, chips.parse("v5e:2x2"), full, None).plan(config)
        for full in (False, True)
    )
    assert found["how"] == "extrapolated from 2+2 and 3+2 and 2+3 of 3+5 blocks"
    assert whole["how"] == "compiled in full"
    for key in ("seconds_per_step", "hours"):
        assert found[key] == pytest.approx(whole[key], rel=0.05)
    total = [p["bytes_per_device"]["total"] for p in (found, whole)]
    assert total[0] == pytest.approx(total[1], rel=0.05)
    sent = [np.sum([*p["collectives"]["bytes"].values()]) for p in (found, whole)]
    assert sent[0] == pytest.approx(sent[1], rel=0.05)
