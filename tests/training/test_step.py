"""One training step against NumPy: a model of three arrays, whose gradient is written out here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vitdiff_jax.diffusion import times
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.schedules import RectifiedFlow
from vitdiff_jax.experiment import ema as ema_lib
from vitdiff_jax.models import vit
from vitdiff_jax.training import objective
from vitdiff_jax.training import step as step_lib
from vitdiff_jax.training.objective import Denoising

SHAPE, CLASSES, BATCH, SEED = (2, 3, 1), 3, 8, 5
LEVELS = 4
POISONED = {"nan": 3, "inf": 4, "gradient": 5}
"""Labels of a network of six classes that spoil the loss; the last one its gradient alone."""
PROCESS = Process(RectifiedFlow(), prediction="x", loss_space="x")
RATE = dict(peak=0.05, warmup=2, steps=100)


@jax.custom_jvp
def cliff(x, slope):
    """0 for every x, with this slope."""
    return jnp.zeros_like(slope)


@cliff.defjvp
def cliff_jvp(primals, tangents):
    return cliff(*primals), primals[1] * tangents[0]


class Affine:
    """out = kernel * x_t + bias + embedding[label]; the last row of the embedding is for -1.

    poisonous: with the labels of POISONED.
    """

    def __init__(self, poisonous=False):
        self.poisonous, self.classes = poisonous, CLASSES + len(POISONED) * poisonous
        self.conditions = {"label": (self.classes,)}

    def init(self, key, image, time, cond):
        return {
            "params": {
                "kernel": jnp.float32(1.5),
                "bias": jnp.float32(0.3),
                "embedding": jnp.linspace(-1, 1, self.classes + 1),
            }
        }

    def apply(self, variables, x, time, cond, keys=None):
        p, label = variables["params"], cond["label"]
        shift = p["embedding"][label]
        if self.poisonous:
            shift += cliff(p["bias"], jnp.where(label == POISONED["gradient"], jnp.nan, 0))
            for name in ("nan", "inf"):
                shift += jnp.where(label == POISONED[name], float(name), 0)
        return p["kernel"] * x + p["bias"] + shift[:, None, None, None]


def make(model=None, *, decays=(0.9,), label_dropout=0.3, accumulate=1, **options):
    """(first state, compiled step)."""
    rate = step_lib.learning_rate(**RATE)
    optimizer = step_lib.adamw(rate, **options)
    names = map(ema_lib.decay_name, decays)
    init = step_lib.make_init(model or Affine(), optimizer, [*names], SEED, SHAPE)
    step = step_lib.make_train_step(
        Denoising(
            model or Affine(), PROCESS, times.uniform, batch_size=BATCH, label_dropout=label_dropout
        ),
        optimizer, rate, seed=SEED, accumulate=accumulate,
    )  # fmt: skip
    return jax.jit(init)(), jax.jit(step)


def batch(number, labels=None):
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, 2, BATCH).astype(np.int32) if labels is None else labels,
        "index": np.arange(BATCH, dtype=np.int32),
    }


@jax.jit
def drawn(data, number):
    """What the library draws in a step: (noise, times, label dropout)."""
    key = jax.random.fold_in(jax.random.key(SEED), number)
    _, eps, t, drop, _ = objective.sample_inputs(PROCESS, data, times.uniform, key, BATCH, True)
    return eps, t, jax.vmap(jax.random.uniform)(drop)


def gradient(p, data, number, label_dropout):
    """(loss, gradient) of the mean squared error of x, in float64; the draws are the library's."""
    eps, t, drop = (np.asarray(a, np.float64) for a in drawn(data, number))
    x = data["image"] / 127.5 - 1
    t = t[:, None, None, None]
    x_t = (1 - t) * x + t * eps
    label = np.where(drop < label_dropout, -1, data["label"])
    shift = p["embedding"][label][:, None, None, None]
    error = p["kernel"] * x_t + p["bias"] + shift - x
    embedding = np.zeros(CLASSES + 1)
    np.add.at(embedding, label, 2 * error.mean((1, 2, 3)) / BATCH)
    grad = {"kernel": 2 * (error * x_t).mean(), "bias": 2 * error.mean(), "embedding": embedding}
    return (error**2).mean(), grad


def reference(state, steps, *, decays=(0.9,), label_dropout=0.3, b1=0.9, b2=0.95, eps=1e-8,
              weight_decay=0.0, clip=0.0):  # fmt: skip
    """AdamW and the averages, written from the papers: (params, averages, losses, norms)."""
    p = {name: np.asarray(a, np.float64) for name, a in state.params.items()}
    average = {decay: dict(p) for decay in decays}
    m, v = ({name: np.zeros_like(a) for name, a in p.items()} for _ in "mv")
    losses, norms = [], []
    for number in range(steps):
        loss, grad = gradient(p, batch(number), number, label_dropout)
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        factor = min(1, clip / norm) if clip else 1
        rate = RATE["peak"] * min(1, number / RATE["warmup"])
        for name, g in grad.items():
            m[name] = b1 * m[name] + (1 - b1) * factor * g
            v[name] = b2 * v[name] + (1 - b2) * (factor * g) ** 2
            ratio = m[name] / (1 - b1 ** (number + 1))
            ratio = ratio / (np.sqrt(v[name] / (1 - b2 ** (number + 1))) + eps)
            decay = weight_decay if name == "kernel" else 0
            p[name] = p[name] - rate * (ratio + decay * p[name])
        for decay, mean in average.items():
            d = min(decay, (1 + number) / (10 + number))
            average[decay] = {name: d * mean[name] + (1 - d) * p[name] for name in p}
        losses.append(loss)
        norms.append(norm)
    return p, average, losses, norms


EVERY = dict(
    clip=0.2, weight_decay=0.5, b1=0.8, b2=0.99, eps=1e-2, label_dropout=0.0,
    decays=(0.05, 0.5, 0.9999),
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "accumulate"),
    [
        pytest.param({}, 1, marks=pytest.mark.slow),
        (EVERY, 4),
        pytest.param(EVERY, 1, marks=pytest.mark.slow),
        pytest.param(dict(label_dropout=1.0), 4, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_steps_are_adamw_on_the_mean_loss_and_its_averages(options, accumulate):
    first, step = make(accumulate=accumulate, **options)
    params, averages, losses, norms = reference(first, 6, **options)
    state, metrics = first, []
    for number in range(6):
        state, values = step(state, batch(number))
        metrics.append(values)
    np.testing.assert_allclose([m["loss"] for m in metrics], losses, rtol=2e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in metrics], norms, rtol=2e-5)
    assert [float(m["learning_rate"]) for m in metrics] == pytest.approx([0, 0.025] + 4 * [0.05])
    assert int(state.step) == 6
    for name, wanted in params.items():
        np.testing.assert_allclose(state.params[name], wanted, rtol=1e-4, atol=1e-6, err_msg=name)
    assert state.ema.keys() == {ema_lib.decay_name(decay) for decay in averages}
    for decay, mean in averages.items():
        for name, wanted in mean.items():
            found = state.ema[ema_lib.decay_name(decay)][name]
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_reference_would_notice():
    """The options above change the result by far more than the tolerance."""
    first, _ = make()
    plain = reference(first, 6)[0]["kernel"]
    for options in (dict(clip=0.2), dict(weight_decay=0.5), dict(label_dropout=1.0), dict(b2=0.5)):
        assert abs(reference(first, 6, **options)[0]["kernel"] / plain - 1) > 1e-3, options


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_step_changes_nothing_but_the_counters(accumulate):
    good = np.zeros(BATCH, np.int32)
    options = dict(accumulate=accumulate, label_dropout=0.0, decays=(0.5, 0.9))
    before, step = make(Affine(poisonous=True), **options)
    before, values = step(before, batch(0, good))
    assert int(values["bad_steps"]) == 0
    for name, label in POISONED.items():
        one_bad, state = good.copy(), before
        one_bad[3] = label
        for count in (1, 2):
            state, values = step(state, batch(count, one_bad))
            assert int(values["bad_steps"]) == int(state.bad_steps) == count, name
            assert np.isfinite(values["loss"]) == (name == "gradient")
        assert int(state.step) == 3
        for part in ("params", "opt_state", "ema"):
            tiny.assert_same(tiny.arrays(getattr(state, part)), tiny.arrays(getattr(before, part)))
        state, values = step(state, batch(3, good))  # without poison the same is a good step
        assert int(values["bad_steps"]) == int(state.bad_steps) == 0
        assert float(state.params["kernel"]) != float(before.params["kernel"])


def test_a_run_that_stays_bad_stops_with_one_line(tmp_path, capsys):
    """A rate of 1e38 makes finite parameters whose loss is not, from the second step on."""
    flag = tiny.write(
        tmp_path / "tiny.py",
        model=tiny.WIDE,
        diffusion=tiny.UNIFORM,
        optimizer=dict(learning_rate=1e38, warmup=0, clip=0.0),
        train=dict(max_bad_steps=3),
    )
    assert tiny.call(flag, f"--workdir={tmp_path / 'run'}") == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: non-finite loss or gradient for 3 consecutive steps, up")
    assert "finished" not in captured.out


@pytest.mark.parametrize(
    ("options", "points"),
    [
        (dict(), {0: 2, 1: 2, 10_000: 2}),
        (dict(warmup=10), {0: 0, 1: 0.2, 5: 1, 10: 2, 11: 2, 10_000: 2}),
        (dict(decay="cosine"), {0: 2, 100: 1 + 0.5**0.5, 200: 1, 300: 1 - 0.5**0.5, 400: 0}),
        (dict(decay="cosine", warmup=200), {0: 0, 100: 1, 200: 2, 300: 1, 400: 0, 500: 0}),
        (dict(decay="cosine", warmup=400), {0: 0, 200: 1, 400: 2}),  # no room to decay in
    ],
    ids=str,
)
def test_learning_rates_at_known_points(options, points):
    rate = step_lib.learning_rate(peak=2.0, steps=400, **options)
    for step, value in points.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_weight_decay_shrinks_matrices_only():
    """With no gradient, a step at rate 1 and decay 0.1 takes a tenth of each matrix."""
    options = dict(width=16, depth=1, heads=2, patch=4, bottleneck=4, class_tokens=2)
    model = vit.Model({"label": (CLASSES,)}, class_tokens_from=0, **options)
    optimizer = step_lib.adamw(lambda step: 1.0, weight_decay=0.1)
    shapes = jax.eval_shape(step_lib.make_init(model, optimizer, (), 0, (8, 8, 1))).params
    ones, zeros = (jax.tree.map(lambda a, n=n: np.full(a.shape, n), shapes) for n in (1.0, 0.0))
    update = jax.jit(lambda: optimizer.update(zeros, optimizer.init(ones), ones)[0])
    share = {name: -update for name, update in tiny.arrays(update()).items()}
    shrunk = {name for name, s in share.items() if np.allclose(s, 0.1)}
    kept = {name for name, s in share.items() if np.all(s == 0)}
    assert len(shrunk) + len(kept) == len(share)
    vectors = ("bias']", "norm", "scale']", "embedding']", "class_positions']")
    assert kept == {name for name in share if any(word in name for word in vectors)}
    assert len(shrunk) == 13  # 2 bottleneck, 2 time, 4 attention, 2 feed-forward, 2 mod, 1 head


class Matrix:
    """out = x_t kernel in bfloat16, plus a bias."""

    conditions = {"label": (CLASSES,)}  # noqa: RUF012

    def init(self, key, image, time, cond):
        return {"params": {"kernel": jax.random.normal(key, (6, 6)), "bias": jnp.zeros(6)}}

    def apply(self, variables, x, time, cond, keys=None):
        p = variables["params"]
        out = x.reshape(-1, 6).astype("bfloat16") @ p["kernel"].astype("bfloat16")
        return (out.astype("float32") + p["bias"]).reshape(x.shape)


VIT = vit.Model(
    conditions={"label": (CLASSES,)}, patch=1, width=16, depth=1, heads=2, bottleneck=4,
    class_tokens=0, dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize(
    "model", [Matrix(), pytest.param(VIT, marks=pytest.mark.slow)], ids=["matrix", "vit"]
)
def test_bfloat16_gradients_are_the_gradients_rounded(model):
    """The network casts its matrices anyway, so that only their gradients are rounded."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        init = step_lib.make_init(model, optax.sgd(1.0), (), SEED, SHAPE)
        step = step_lib.make_train_step(
            Denoising(model, PROCESS, times.uniform, batch_size=BATCH),
            optax.sgd(1.0), lambda step: 1.0, seed=SEED, gradient_dtype=dtype,
        )  # fmt: skip
        state = jax.jit(init)()
        state = state.replace(params=jax.tree.map(lambda a: np.asarray(a) + 0.1, state.params))
        new, metrics = jax.jit(step)(state, batch(0))
        assert {a.dtype for a in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
        found[dtype] = metrics["loss"], jax.tree.map(np.subtract, new.params, state.params)
    assert found["float32"][0] == found["bfloat16"][0]
    for exact, rounded in zip(*(jax.tree.leaves(found[d][1]) for d in found), strict=True):
        np.testing.assert_allclose(rounded, exact, rtol=2**-7, atol=2**-7 * np.abs(exact).max())


@pytest.mark.parametrize("stratified", [pytest.param(True, marks=pytest.mark.slow), False])
def test_an_examples_draws_do_not_depend_on_its_batch(stratified):
    whole, rows = batch(0), np.array([6, 1, 4])
    key = jax.random.key(3)
    args = (times.uniform, key, BATCH, stratified)
    every = objective.sample_inputs(PROCESS, whole, *args)
    some = objective.sample_inputs(PROCESS, {name: a[rows] for name, a in whole.items()}, *args)
    for a, b in zip(every, some, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a)[rows], np.asarray(b))


def test_draws_of_examples_and_steps_are_independent():
    """Of 8 examples at 2 steps no two draws are the same, nor are those within an example."""
    seen = []
    for number in range(2):
        key = jax.random.fold_in(jax.random.key(SEED), number)
        args = PROCESS, batch(0), times.uniform, key, BATCH, False
        _, eps, t, *keys = objective.sample_inputs(*args)
        normals = [jax.vmap(lambda k: jax.random.normal(k, SHAPE))(k) for k in keys]
        seen += [*np.ravel(eps), *np.ravel(t), *np.ravel(normals)]
    assert len(set(map(float, seen))) == len(seen)


def test_stratified_times_fall_one_into_each_part():
    for number in range(20):
        key = jax.random.key(number)
        _, _, t, _, _ = objective.sample_inputs(PROCESS, batch(0), times.uniform, key, BATCH, True)
        np.testing.assert_array_equal(np.floor(np.asarray(t) * BATCH), np.arange(BATCH))


@functools.cache
def heldout_step(seed):
    return jax.jit(objective.make_heldout_step(Affine(), PROCESS, times.uniform, LEVELS, seed=seed))


def heldout(params, data, seed=SEED):
    return np.asarray(heldout_step(seed)(params, data))


def test_heldout_losses_are_those_of_fixed_levels_and_noise():
    """out = x_t makes the error t (eps - x): the loss of the same noise grows as t^2."""
    params = {"kernel": 1.0, "bias": 0.0, "embedding": np.zeros(CLASSES + 1, np.float32)}
    found = heldout(params, batch(0))
    t = (np.arange(LEVELS) + 0.5) / LEVELS
    np.testing.assert_allclose(found / found[0], (t / t[0]) ** 2, rtol=1e-5)
    assert found[3] / t[3] ** 2 == pytest.approx(
        1 + np.mean((batch(0)["image"] / 127.5 - 1) ** 2), rel=0.4
    )
    np.testing.assert_array_equal(found, heldout(params, batch(0)))
    assert np.all(found != heldout(params, batch(0), seed=SEED + 1))
    halves = [np.tile(half, 2) for half in (np.arange(4), np.arange(4, 8))]  # each image twice
    means = [heldout(params, {name: a[h] for name, a in batch(0).items()}) for h in halves]
    np.testing.assert_allclose(np.mean(means, 0), found, rtol=1e-5)


def test_heldout_losses_are_given_the_labels():
    """out = embedding[label] = x exactly, where each image is of one colour, the class's own."""
    labels = np.arange(BATCH, dtype=np.int32) % CLASSES
    colours = np.array([0, 102, 255], np.uint8)
    data = batch(0, labels) | {"image": np.broadcast_to(
        colours[labels][:, None, None, None], (BATCH, *SHAPE))}  # fmt: skip
    table = np.array([-1, -0.2, 1, 7], np.float32)  # the last one, for no label, is far off
    params = {"kernel": 0.0, "bias": 0.0, "embedding": table}
    np.testing.assert_allclose(heldout(params, data), 0, atol=1e-12)
    assert np.all(heldout(params, data | {"label": labels[::-1]}) > 0.1)
