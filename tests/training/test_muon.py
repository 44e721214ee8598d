"""Muon against NumPy, where the iterations act on the singular values of an SVD alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.models import tiny_models
from tests.runtime.test_parallel import batches, four
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import loading
from vitdiff_jax.modes import plan
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import muon, program, summary

HIDDEN = {  # layer -> shape of its kernel
    "wide": (4, 6), "tall": (7, 3), "convolution": (3, 3, 2, 5), "blocks_0_to_1": (2, 4, 3),
}  # fmt: skip
OPTIONS = dict(b1=0.8, b2=0.9, eps=1e-2, weight_decay=0.5)
RATE, STEPS = 0.1, 3
MUON = dict(optimizer=tiny.CONFIG["optimizer"] | dict(name="muon"))


def parameters(seed):
    random = np.random.default_rng(seed)
    shapes = {name: {"kernel": shape, "bias": shape[-1:]} for name, shape in HIDDEN.items()}
    shapes["head"] = {"kernel": (5, 2)}
    return {
        name: {what: random.standard_normal(shape) for what, shape in arrays.items()}
        for name, arrays in shapes.items()
    }


def as_float32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def orthogonal(a):
    """Five times p(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5 of the singular values of a / |a|."""
    u, s, v = np.linalg.svd(a / np.linalg.norm(a), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def by_muon(p, grads, stacked):
    if stacked:
        parts = [by_muon(p[i], [g[i] for g in grads], False) for i in range(len(p))]
        return np.stack(parts)
    shape, p, m = p.shape, p.reshape(-1, p.shape[-1]), 0
    for g in grads:
        g = g.reshape(p.shape)
        m = 0.95 * m + g
        step = 0.2 * max(p.shape) ** 0.5 * orthogonal(g + 0.95 * m)
        p = p - RATE * (step + OPTIONS["weight_decay"] * p)
    return p.reshape(shape)


def by_adamw(p, grads, decay):
    b1, b2, m, v = OPTIONS["b1"], OPTIONS["b2"], 0, 0
    for i, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = m / (1 - b1**i) / (np.sqrt(v / (1 - b2**i)) + OPTIONS["eps"])
        p = p - RATE * (step + decay * p)
    return p


def taken(optimizer, params, gradients, compiled=jax.jit):
    """Parameters and optimiser state after a step with each of these gradients."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    step, params = compiled(step), as_float32(params)
    state = optimizer.init(params)
    for grads in gradients:
        params, state = step(params, state, as_float32(grads))
    return params, state


def test_steps_are_muons_and_adamws():
    params, grads = parameters(0), [parameters(i) for i in range(1, STEPS + 1)]
    found, _ = taken(muon.muon(lambda step: RATE, **OPTIONS), params, grads)
    for layer, arrays in params.items():
        for name, p in arrays.items():
            of_each = [g[layer][name] for g in grads]
            if name == "kernel" and layer in HIDDEN:
                wanted = by_muon(p, of_each, stacked="blocks" in layer)
            else:
                wanted = by_adamw(p, of_each, OPTIONS["weight_decay"] * (name == "kernel"))
            np.testing.assert_allclose(found[layer][name], wanted, rtol=1e-4, atol=1e-5)


def test_a_first_step_is_almost_orthogonal_and_of_adamws_size():
    """Whatever the size of the gradient; the coefficients' band is 0.68 to 1.21."""
    weight = {"block_0": {"kernel": np.zeros((40, 60))}}
    grads = {"block_0": {"kernel": 1e-3 * np.random.default_rng(0).standard_normal((40, 60))}}
    found, _ = taken(muon.muon(lambda step: RATE), weight, [grads])
    step = np.asarray(found["block_0"]["kernel"], np.float64)
    singular = np.linalg.svd(step / (0.2 * RATE * 60**0.5), compute_uv=False)
    assert 0.67 < singular.min() < singular.max() < 1.21
    assert np.sqrt(np.mean(step**2)) == pytest.approx(0.2 * RATE, rel=0.2)


def test_the_gradient_is_clipped_before():
    """Of momentum the size matters only from the second step on."""
    params, *grads = ({"wide": parameters(i)["wide"]} for i in range(3))
    norms = [np.sqrt(sum((a**2).sum() for a in jax.tree.leaves(g))) for g in grads]
    clipped = [
        jax.tree.map(lambda a, n=n: 0.5 * a / n, g) for g, n in zip(grads, norms, strict=True)
    ]
    found, _ = taken(muon.muon(lambda step: RATE, clip=0.5), params, grads)
    wanted, _ = taken(muon.muon(lambda step: RATE), params, clipped)
    assert_close(found, wanted)


def assert_close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


ENDS = {  # network -> its weight matrices that are not hidden
    "vit": {"bottleneck_in", "time/in", "head"},
    "dit": {"patches", "time/in", "head"},
    "uvit": {"patches", "head", "final_conv"},
    "unet": {"in", "time/in", "head"},
}


@pytest.mark.parametrize("name", ENDS)
def test_hidden_matrices_are_muons(name):
    model = tiny_models.denoiser(name, "all")
    shapes = tiny_models.param_shapes(model, tiny_models.shape_of(model))
    leaves, _ = jax.tree_util.tree_flatten_with_path(muon.labels(shapes))
    owner = {"/".join(key.key for key in path): label for path, label in leaves}
    layers = {path.rpartition("/")[0] for path in owner if path.endswith("kernel")}
    ends = ENDS[name] | {"conditions/embedding_out"}
    assert ends <= layers
    for path, label in owner.items():
        layer, _, what = path.rpartition("/")
        hidden = what.endswith("kernel") and layer not in ends
        assert label == ("muon" if hidden else "adamw"), path


@pytest.mark.parametrize(
    ("fsdp", "zero", "shape"),
    [
        (4, False, (64, 128)),
        pytest.param(2, False, (256, 64), marks=pytest.mark.slow),
        pytest.param(1, True, (3, 64, 64), marks=pytest.mark.slow),
        (1, True, (64, 128)),
    ],
)
def test_sharded_moments_make_the_same_steps(fsdp, zero, shape):
    shapes = {"blocks_0_to_2" if len(shape) == 3 else "block_0": shape, "head": (64, 64)}
    random = np.random.default_rng(0)
    trees = [
        {k: {"kernel": random.standard_normal(s)} for k, s in shapes.items()} for _ in range(3)
    ]
    optimizer = muon.muon(lambda step: RATE, weight_decay=0.1)
    mesh = parallel.make_mesh(fsdp, four())
    like = jax.eval_shape(lambda p: (p, optimizer.init(p)), as_float32(trees[0]))
    of_params, of_state = parallel.state_shardings(mesh, like, zero=zero)

    def compiled(step):
        given, made = (of_params, of_state, of_params), (of_params, of_state)
        return parallel.WithMesh(mesh, jax.jit(step, in_shardings=given, out_shardings=made))

    found, state = taken(optimizer, trees[0], trees[1:], compiled)
    assert_close(found, taken(optimizer, trees[0], trees[1:])[0])
    cut = [a for a in jax.tree.leaves(state) if a.size > a.addressable_shards[0].data.size]
    assert len(cut) == 1 + 2  # a moment of Muon's matrix, two of the head


@pytest.fixture
def all_hidden(monkeypatch):
    """So that the plain network's two matrices, its first and its last, are Muon's."""
    monkeypatch.setattr(muon, "NOT_HIDDEN", ())
    with tiny.plain_network():
        yield


@pytest.mark.usefixtures("all_hidden")
def test_a_resumed_run_goes_on_bitwise(tmp_path):
    settings = tiny.config(model=tiny.PLAIN, diffusion=tiny.UNIFORM, train=dict(steps=4), **MUON)

    def goes_on(run, state, steps):
        for batch in [*batches(run)][steps]:
            state, _ = run.step(state, parallel.put_batch(run.mesh, batch))
        return state

    run = tiny.run(settings, tmp_path)
    half = goes_on(run, run.state(), slice(2))
    run.checkpoints.save(2, half, loading.meta_of(run.dataset))
    run.checkpoints.close()
    again = tiny.run(settings, tmp_path)
    found = goes_on(again, again.state(), slice(2, 4))
    wanted = tiny.arrays(goes_on(run, half, slice(2, 4)))
    tiny.assert_same(tiny.arrays(found), wanted)
    moments = [name for name in wanted if "muon" in name and ".trace" in name]
    assert len(moments) == 2
    assert all(np.any(wanted[name]) for name in moments)


@pytest.mark.usefixtures("all_hidden")
def test_a_plan_counts_one_moment_and_the_products(tmp_path):
    """Per matrix [m, n], m <= n, five times: X X^T, its square, and a matrix [m, m] times X."""
    run = tiny.run(tiny.config(model=tiny.PLAIN, **MUON), tmp_path)
    params = run.experiment.param_shapes()
    (inputs, width), (_, pixels) = (params[name]["kernel"].shape for name in ("in", "head"))
    others = sum(a.size for a in jax.tree.leaves(params)) - inputs * width - width * pixels
    found = plan.state_bytes(run.config, run.experiment, 1)["optimiser"]
    counters = 4 * 3  # AdamW's, and those of both schedules
    assert found == 4 * (inputs * width + width * pixels + 2 * others) + counters
    products = sum(5 * (4 * width**2 * n + 2 * width**3) for n in (inputs, pixels))
    assert program.optimizer_flops(run.config, run.experiment) == products
    assert f"Muon for 2 arrays of {width * (inputs + pixels):,} parameters, AdamW for the" in (
        "".join(summary.lines(run.config, tmp_path, run.dataset, run.experiment))
    )


def test_adamw_needs_no_products(tmp_path):
    with tiny.plain_network():
        run = tiny.run(tiny.config(model=tiny.PLAIN), tmp_path)
    assert program.optimizer_flops(run.config, run.experiment) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="moun"), "config.optimizer.name: 'moun' is not one of adamw, muon"),
        (dict(name="muon", b3=0.5), "config.optimizer.b3: no such key; did you mean config.opt"),
        (dict(name="muon", b2=1.0), r"config.optimizer.b2: 1.0 is not in \[0, 1\)"),
    ],
    ids=str,
)
def test_what_is_no_optimizer_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.complete(tiny.config(optimizer=options))


def test_a_name_on_the_command_line_leaves_the_other_options():
    given = config_lib.complete(tiny.config(), ["--config.optimizer.name=muon"]).optimizer
    assert given.to_dict() == config_lib.complete(tiny.config(**MUON)).optimizer.to_dict()


def test_a_resumed_run_cannot_change_its_optimizer():
    """Their states differ. A config.json from before there were two is of AdamW."""
    old = config_lib.complete(tiny.config())
    new = config_lib.complete(tiny.config(optimizer=dict(name="muon", clip=0.0)))
    assert config_lib.differences(old, new) == ["optimizer.name: 'adamw' -> 'muon'"]


def test_no_array_of_the_state_depends_on_the_options():
    params = as_float32(parameters(0))

    def shapes(**options):
        found = jax.eval_shape(muon.muon(lambda step: RATE, **options).init, params)
        return jax.tree_util.tree_flatten_with_path(found)

    assert shapes() == shapes(clip=1.0) == shapes(weight_decay=0.1, b1=0.0)
