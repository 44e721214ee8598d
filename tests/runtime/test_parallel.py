"""One training step, however it is compiled and cut: the parameters are the same.

Same means max|difference| / max|parameter| <= 1e-5 for each array, attention's key biases left out:
their true gradient is zero, so that Adam turns rounding into steps.

This file is also the program that takes these steps on four devices, see `main`.
"""

import itertools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vitdiff_jax.data import pipeline
from vitdiff_jax.inference import model as model_lib
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import step as step_lib

TOLERANCE = 1e-5
STEPS = 5
MODEL = dict(width=32, depth=4, dropout=0.3, scan=True, class_tokens_from=0)
"""Wide enough that FSDP cuts; depth 4 is the least where a block drops out, scan compiles fast."""
VARIANTS = {  # name -> (config.parallel, parts of a batch)
    "data parallel": (dict(), 1),
    "fsdp 4": (dict(fsdp=4), 1),
    "fsdp 2x2, accumulated": (dict(fsdp=2), 2),
    "zero1": (dict(zero1=True), 1),
    "zero1, accumulated": (dict(zero1=True), 2),
    "pmap": (dict(compiler="pmap"), 1),
    "pmap, accumulated": (dict(compiler="pmap"), 2),
}


def settings(options, accumulate=1, **changes):
    train = dict(steps=STEPS, accumulate=accumulate, ema=(0.9, 0.5))
    return tiny.config(model=MODEL | changes, train=train, parallel=options)


def batches(dataset):
    return itertools.islice(pipeline.batches(dataset.train, 8, seed=0), STEPS)


def main(place):
    """On four devices: five steps of each variant, what they leave saved in `place`."""
    assert jax.device_count() == 4
    for name, changes in {"one device": {}, "no dropout": dict(dropout=0.0)}.items():
        run = tiny.run(settings({}, **changes), place / name)
        np.savez(place / f"{name}.npz", **on_one_device(run))
    facts = {}
    for name, (options, accumulate) in VARIANTS.items():
        run = tiny.run(settings(options, accumulate), place / name)
        run.init = awake(run.init)
        state = run.state()
        facts[name] = {"created": shard_shapes(state)}
        for batch in batches(run.dataset):
            old = state
            state, _ = run.step(state, parallel.put_batch(run.mesh, batch))
        deleted = [
            leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state, old.ema))
        ]
        facts[name] |= {"trained": shard_shapes(state), "donated": all(deleted)}
        np.savez(place / f"{name}.npz", **tiny.arrays(state))
        run.checkpoints.save(STEPS, state, model_lib.meta_of(run.dataset))
        run.checkpoints.close()
    # What four devices cut in four saved, two times two read.
    run = tiny.run(settings(dict(fsdp=2)), place / "fsdp 4")
    np.savez(place / "read by 2x2.npz", **tiny.arrays(run.state()))
    (place / "facts.json").write_text(json.dumps(facts))


def awake(init):
    """The first state with no parameter at zero: closed gates would hide what is behind them."""

    def changed(a):
        return a + 0.1 * jnp.sin(jnp.arange(a.size) + a.ndim).reshape(a.shape)

    def init_awake():
        state = init()
        params = jax.tree.map(changed, state.params)
        return state.replace(params=params, ema=dict.fromkeys(state.ema, params))

    return init_awake


def on_one_device(run):
    """The step itself, compiled by plain jit: no mesh, no shardings, no donation."""
    options = run.config.optimizer.to_dict()
    rate = step_lib.learning_rate(
        peak=options.pop("learning_rate"), warmup=options.pop("warmup"),
        decay=options.pop("decay"), steps=STEPS,
    )  # fmt: skip
    experiment = run.experiment
    step = jax.jit(step_lib.make_train_step(
        experiment.model, experiment.process, experiment.time_distribution,
        step_lib.adamw(rate, **options), rate, seed=0, batch_size=8,
    ))  # fmt: skip
    state = jax.jit(awake(run.init))()
    for batch in batches(run.dataset):
        state, _ = step(state, batch)
    return tiny.arrays(state)


def shard_shapes(state):
    """{path: [shape, shape of the part on each device]}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): [leaf.shape, *(s.data.shape for s in leaf.addressable_shards)]
        for path, leaf in leaves
    }


def assert_equal(found, wanted):
    """By the definition above."""
    assert found.keys() == wanted.keys()
    worst = {
        name: np.abs(found[name] - wanted[name]).max() / max(np.abs(wanted[name]).max(), 1e-30)
        for name in wanted
        if name.startswith((".params", ".ema")) and "k_bias" not in name
    }
    assert len(worst) > 3 * 10
    assert max(worst.values()) <= TOLERANCE, max(worst, key=worst.get)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("parallel")
    with tiny.started("-m", "tests.runtime.test_parallel", place, devices=4) as process:
        _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return place


@pytest.fixture(scope="module")
def facts(place):
    return json.loads((place / "facts.json").read_text())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_parameters(place, name):
    assert_equal(np.load(place / f"{name}.npz"), np.load(place / "one device.npz"))


def test_dropout_is_at_work(place):
    """Else the comparison would not show that each example draws its own, wherever it is."""
    found, wanted = (np.load(place / f"{name}.npz") for name in ("no dropout", "one device"))
    with pytest.raises(AssertionError):
        assert_equal(found, wanted)


@pytest.mark.parametrize("when", ["created", "trained"])
@pytest.mark.parametrize("name", VARIANTS)
def test_who_holds_what(facts, name, when):
    """FSDP and ZeRO-1 leave each device its share of every large array, from the first on."""
    options = VARIANTS[name][0]
    n = 4 if options.get("zero1") else options.get("fsdp", 1)
    cut = []
    for path, (whole, *parts) in facts[name][when].items():
        large = np.prod(whole) >= 4096 and any(size % n == 0 for size in whole)
        share = n if large else 1
        assert len(parts) == 4
        assert all(np.prod(part) == np.prod(whole) / share for part in parts), path
        cut += [path] if share > 1 else []
    for part in (".params", ".opt_state", ".ema['0.9']", ".ema['0.5']"):
        assert any(path.startswith(part) for path in cut) == (n > 1), part
    held = sum(np.prod(parts[0]) for _, *parts in facts[name][when].values())
    total = sum(np.prod(whole) for whole, *_ in facts[name][when].values())
    assert held / total < {1: 1.01, 2: 0.7, 4: 0.55}[n]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_old_state_is_donated(facts, name):
    assert facts[name]["donated"]


@pytest.mark.parametrize("name", VARIANTS)
def test_one_device_reads_what_four_saved(place, name):
    found = tiny.saved(settings({}), place / name)
    tiny.assert_same(found, dict(np.load(place / f"{name}.npz")))


def test_another_mesh_reads_what_four_saved(place):
    found, wanted = (dict(np.load(place / f"{name}.npz")) for name in ("read by 2x2", "fsdp 4"))
    tiny.assert_same(found, wanted)


def test_fsdp_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="fsdp: 3 does not divide the 1 devices"):
        parallel.make_mesh(3)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
