"""One training step, however it is compiled and sharded: the parameters are the same.

Same means max|difference| / max|parameter| <= 1e-5 for each array, attention's key biases left out:
their true gradient is zero, so that Adam turns rounding into steps.
"""

import functools
import itertools
import pathlib
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.lib import xla_client

from tests import tiny
from tests.parts import quick
from vitdiff_jax.data import pipeline
from vitdiff_jax.inference import loading
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import muon, program
from vitdiff_jax.training import step as step_lib

TOLERANCE = 1e-5
STEPS = 5
SECTIONS = dict(train=dict(steps=STEPS, ema=(0.9, 0.5)))
MUON = tiny.CONFIG["optimizer"] | dict(name="muon")
PLAIN = dict(model=tiny.WIDE | dict(dropout=0.3), diffusion=tiny.UNIFORM, **SECTIONS)
VIT_MODEL = dict(width=32, depth=4, dropout=0.3, scan=True, class_tokens_from=0)
"""Wide enough that FSDP cuts; depth 4 is the least where a block drops out."""
AVERAGE = dict(average_velocity=dict(share=0.5, guidance=2.0))
NETWORKS = {  # name -> (config, how many arrays parameters and EMAs have at least)
    "plain": (tiny.config(**PLAIN), 3 * 5),
    "muon": (tiny.config(**PLAIN, optimizer=MUON), 3 * 5),
    "vit": (tiny.config(model=VIT_MODEL, **SECTIONS), 3 * 10),
    "average": (
        tiny.config(model=VIT_MODEL | dict(interval=True), diffusion=AVERAGE, **SECTIONS),
        40,
    ),
    "vit, muon": (tiny.config(model=VIT_MODEL, optimizer=MUON, **SECTIONS), 3 * 10),
}
VARIANTS = {  # name -> (config.parallel, parts of a batch)
    "data parallel": (dict(), 1),
    "fsdp 4": (dict(fsdp=4), 1),
    "fsdp 2x2, accumulated": (dict(fsdp=2), 2),
    "zero1": (dict(zero1=True), 1),
    "zero1, accumulated": (dict(zero1=True), 2),
    "pmap": (dict(compiler="pmap"), 1),
    "pmap, accumulated": (dict(compiler="pmap"), 2),
}
QUICK = ("fsdp 2x2, accumulated", "zero1, accumulated", "pmap")
VIT = ("data parallel", "fsdp 4", "zero1, accumulated", "pmap")
CASES = quick(
    [("plain", name) for name in QUICK],
    [
        *itertools.product(("plain", "muon"), VARIANTS),
        *(("vit", name) for name in VIT),
        *(("average", name) for name in VIT),
        ("vit, muon", "fsdp 4"),
        ("vit, muon", "zero1, accumulated"),
    ],
)


@functools.cache
def four():
    """Four devices of a client of their own: the tests' process keeps its one device."""
    return xla_client.make_cpu_client(num_devices=4).devices()


def on_four(settings, workdir):
    """The `train.Run` of a config on these, which begins with no parameter at zero."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_mesh", functools.partial(parallel.make_mesh, devices=four()))
        run = tiny.run(settings, workdir)
    run.init = awake(run.init)
    return run


@pytest.fixture(scope="module", autouse=True)
def _all_hidden():
    """So that the plain network's two matrices, its first and its last, are Muon's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muon, "NOT_HIDDEN", ())
        yield


def test_fsdp_shards_the_largest_dimension_and_zero1_the_first():
    """Of those that the devices divide; small arrays and indivisible ones are replicated."""
    mesh = jax.sharding.AbstractMesh((1, 4), ("data", "fsdp"))
    sizes = {"tall": (128, 64), "wide": (64, 128), "odd": (66, 128), "none": (99, 99), "one": (8,)}
    shapes = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}
    for zero, axes, wanted in (
        (False, ("fsdp",), {"tall": 0, "wide": 1, "odd": 1}),
        (True, ("data", "fsdp"), {"tall": 0, "wide": 0, "odd": 1}),
    ):
        for name, found in parallel.state_shardings(mesh, shapes, zero=zero).items():
            spec = (*[None] * wanted[name], axes) if name in wanted else ()
            assert found.spec == jax.sharding.PartitionSpec(*spec), (zero, name)


def settings(network, variant="data parallel"):
    options, accumulate = VARIANTS[variant]
    config = NETWORKS[network][0]
    train = config["train"] | dict(accumulate=accumulate)
    return config | dict(train=train, parallel=options)


def batches(run):
    return itertools.islice(pipeline.batches(run.dataset.train, 8, seed=0), run.config.train.steps)


def awake(init):
    """The first state with no parameter at zero: closed gates would hide what is behind them."""

    def changed(a):
        return a + 0.1 * jnp.sin(jnp.arange(a.size) + a.ndim).reshape(a.shape)

    def init_awake():
        state = init()
        params = jax.tree.map(changed, state.params)
        return state.replace(params=params, ema=dict.fromkeys(state.ema, params))

    return init_awake


def taken(run, state):
    """The states before and after the last step of a run."""
    old = state
    for batch in batches(run):
        old = state
        state, _ = run.step(state, parallel.put_batch(run.mesh, batch))
    return old, state


def on_one_device(run, change=lambda number, batch: batch):
    """The step itself, compiled by plain jit: no mesh, no shardings, no donation."""
    optimizer, rate = program._optimizer(run.config)
    experiment = run.experiment
    step = jax.jit(step_lib.make_train_step(
        program.objective(run.config, experiment), optimizer, rate, seed=0,
    ))  # fmt: skip
    state = jax.jit(awake(run.init))()
    for number, batch in enumerate(batches(run)):
        state, _ = step(state, change(number, batch))
    return tiny.arrays(state)


def shard_shapes(state):
    """{path: [shape, shape of the part on each device]}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): [leaf.shape, *(s.data.shape for s in leaf.addressable_shards)]
        for path, leaf in leaves
    }


def assert_equal(found, wanted, least=30):
    """By the definition above; least: so many arrays."""
    assert found.keys() == wanted.keys()
    worst = {
        name: np.abs(found[name] - wanted[name]).max() / max(np.abs(wanted[name]).max(), 1e-30)
        for name in wanted
        if name.startswith((".params", ".ema")) and "k_bias" not in name
    }
    assert len(worst) >= least
    assert max(worst.values()) <= TOLERANCE, max(worst, key=worst.get)


@pytest.fixture(scope="module", params=CASES, ids=": ".join)
def created(request, tmp_path_factory):
    """What four devices have: a run and its first state."""
    network, variant = request.param
    run = on_four(settings(network, variant), tmp_path_factory.mktemp("four"))
    state = run.state()
    return types.SimpleNamespace(
        network=network, variant=variant, run=run, state=state, shapes=shard_shapes(state)
    )


@pytest.fixture(scope="module")
def trained(created):
    """What five steps make of it."""
    old, state = taken(created.run, created.state)
    donated = all(a.is_deleted() for a in jax.tree.leaves((old.params, old.opt_state, old.ema)))
    later = dict(state=state, shapes=shard_shapes(state), donated=donated)
    return types.SimpleNamespace(**vars(created) | later)


@functools.cache
def alone(network, dropout=0.3):
    """The same of one device."""
    config = settings(network)
    config["model"] = config["model"] | dict(dropout=dropout)
    with tempfile.TemporaryDirectory() as place:
        return on_one_device(tiny.run(config, pathlib.Path(place)))


def assert_shared(found):
    """FSDP and ZeRO-1 leave each device its share of every large array."""
    options = VARIANTS[found.variant][0]
    n = 4 if options.get("zero1") else options.get("fsdp", 1)
    cut, shapes = [], found.shapes
    for path, (whole, *parts) in shapes.items():
        large = np.prod(whole) >= 4096 and any(size % n == 0 for size in whole)
        share = n if large else 1
        assert len(parts) == 4
        assert all(np.prod(part) == np.prod(whole) / share for part in parts), path
        cut += [path] if share > 1 else []
    for part in (".params", ".opt_state", ".ema['0.9']", ".ema['0.5']"):
        assert any(path.startswith(part) for path in cut) == (n > 1), part
    held = sum(np.prod(parts[0]) for _, *parts in shapes.values())
    total = sum(np.prod(whole) for whole, *_ in shapes.values())
    assert held / total < {1: 1.01, 2: 0.7, 4: 0.55}[n]


def test_who_holds_what_from_the_first_on(created):
    assert_shared(created)


def test_who_holds_what_later(trained):
    assert_shared(trained)


def test_the_same_parameters(trained):
    least = NETWORKS[trained.network][1]
    assert_equal(tiny.arrays(trained.state), alone(trained.network), least)


def test_dropout_is_at_work(trained):
    """Else the comparison would not show that each example draws its own, wherever it is."""
    with pytest.raises(AssertionError):
        assert_equal(tiny.arrays(trained.state), alone(trained.network, 0.0), 0)


def test_the_old_state_is_donated(trained):
    assert trained.donated


@pytest.mark.slow
def test_other_devices_read_what_four_saved(trained):
    """One, and four on another mesh."""
    fsdp = 2 if VARIANTS[trained.variant][0].get("fsdp") == 4 else 4
    other = settings(trained.network) | dict(parallel=dict(fsdp=fsdp))
    run, wanted, workdir = trained.run, tiny.arrays(trained.state), trained.run.workdir
    run.checkpoints.save(STEPS, trained.state, loading.meta_of(run.dataset))
    run.checkpoints.close()
    tiny.assert_same(tiny.saved(settings(trained.network), workdir), wanted)
    tiny.assert_same(tiny.arrays(on_four(other, workdir).state()), wanted)


def test_fsdp_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="fsdp: 3 does not divide the 1 devices"):
        parallel.make_mesh(3)
