"""What each method declares of itself holds, and what it does not declare is seen not to hold."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import make
from tests.parts import covering, only, quick
from tests.restoration import recursions
from tests.restoration.gaussians import (
    METHODS,
    OPERATORS,
    SHAPE,
    SIZE,
    draw,
    moments,
    noise,
    problem,
)
from tests.restoration.test_exact import EXACT
from tests.samplers.known import FOUR_SCHEDULES, keys
from vitdiff_jax import restoration
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, Cosine, RectifiedFlow
from vitdiff_jax.operators.mask import Mask

FLOW = RectifiedFlow()
NOTHING = Mask(np.zeros((*SHAPE[:2], 1), np.float32), SHAPE[2])
QUICK = {
    "repaint": dict(jump=10, resample=2),
    "pnpflow": dict(draws=2),
    "daps": dict(ode=5, langevin=4, tau=0.3),
}
ANCESTRAL = {"ddnm": {}, "dps": {}, "pigdm": {}, "repaint": dict(resample=1)}
"""Methods, and options, that are ancestral sampling itself where the operator is zero."""
each_method = pytest.mark.parametrize("name", METHODS)
eager = jax.disable_jit()  # few steps: quicker than to compile the loop


def draws(name, steps, options):
    """How many times a method draws noise, or more."""
    return {
        "repaint": 4 * steps * options.get("resample", 1),
        "pnpflow": steps * options.get("draws", 1),
        "flower": 4 * steps,
        "daps": steps * (options.get("langevin", 0) + 1),
    }.get(name, steps)


def misfit(case, images):
    """Root mean square of A x - y."""
    away = case.operator.forward(jnp.asarray(images)) - jnp.asarray(case.y)
    return float(jnp.sqrt(jnp.mean(jnp.abs(away) ** 2)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "schedule"), covering(itertools.product(ANCESTRAL, [Cosine(), EDM()])), ids=str
)
def test_ancestral_sampling_where_nothing_is_known(name, schedule):
    case = problem(None, noise_std=0.1, operator=NOTHING)
    times = grids.uniform_logsnr(schedule, 6, low=-6, high=6)
    wanted = recursions.ancestral(case, schedule, times)
    found = moments(name, case, schedule, times, 12, **ANCESTRAL[name])
    if name == "pigdm":  # which evades pure noise, where alpha is 0, by a little less of it
        wanted = recursions.pigdm(case, schedule, times)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-9)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", quick({"ddnm", "ddrm"}, METHODS))
def test_the_prior_where_nothing_is_known(name):
    """With three times the steps the variance is off by less than half, as an ancestral sampler's
    is, if the method says so, and only then: the others tend to another variance."""
    case, options = problem(None, noise_std=0.1, operator=NOTHING), QUICK.get(name, {})
    errors = []
    for steps in (20, 60):
        times = grids.linear(FLOW, steps)
        fresh = draws(name, steps, options)
        _, covariance = moments(name, case, FLOW, times, fresh, **options)
        errors.append(abs(np.trace(covariance) / case.prior.variances.sum() - 1))
    assert (errors[1] < 0.5 * errors[0]) == METHODS[name].TRAITS.prior, errors


MEASURED = [  # every operator that a consistent method serves; one is enough to miss
    (name, operator)
    for name in METHODS
    for operator in (OPERATORS if METHODS[name].TRAITS.consistent else ["denoise"])
    if METHODS[name].TRAITS.supports(make(OPERATORS[operator], SHAPE))
]
MEASURED_FIRST = [("diffpir", "average")]
MEASURED_FIRST += [("repaint", "mask"), ("dps", "denoise")]


@pytest.mark.parametrize(("name", "operator"), only(MEASURED_FIRST, MEASURED))
def test_a_measurement_without_noise_is_reproduced(name, operator):
    """In float32 after few steps, if the method says so; else it is missed."""
    schedule = FOUR_SCHEDULES[[*OPERATORS].index(operator) % 4]
    times = grids.uniform_logsnr(schedule, 6, low=-6, high=6)
    case = problem(operator, "full", 0.0)
    miss = misfit(case, draw(name, case, schedule, times, 3, **QUICK.get(name, {})))
    assert miss < 1e-5 if METHODS[name].TRAITS.consistent else miss > 0.02


@pytest.mark.slow
@each_method
def test_the_posterior_of_gaussian_images(name):
    """Mean and total variance of two thousand images after 128 steps."""
    misses = []
    for operator in ("mask", "denoise") if METHODS[name].TRAITS.exact else ("mask",):
        case = problem(operator, "full", 0.3)
        options = EXACT.get(name, {}) | QUICK.get(name, {})
        times = grids.uniform_logsnr(FLOW, 128, low=-9, high=9)
        images = draw(name, case, FLOW, times, 2000, **options).reshape(-1, SIZE)
        mean, covariance = case.posterior()
        off = np.sqrt(((images.mean(0) - mean) ** 2).sum() / np.trace(covariance))
        misses += [off, abs(images.var(0).sum() / np.trace(covariance) - 1)]
    assert (max(misses) < 0.05) == METHODS[name].TRAITS.exact
    assert (max(misses) > 0.1) != METHODS[name].TRAITS.exact


@eager
@pytest.mark.parametrize("name", quick({"dps", "pigdm", "ddrm", "pnpflow"}, METHODS))
def test_gradients_are_declared(name):
    """Whether the method can do without the derivative of the network."""

    @jax.custom_jvp
    def rigid(x):
        return 0.5 * x

    asked = []
    rigid.defjvp(lambda x, tangent: (asked.append(1), (0.5 * x[0], 0.5 * tangent[0]))[1])
    METHODS[name].restore(
        lambda x, t: rigid(x), FLOW, np.array([1.0, 0.5, 0.0]), noise(FLOW, 1), keys(1),
        operator=make(OPERATORS["mask"], SHAPE), y=jnp.zeros((1, *SHAPE)), noise_std=0.1,
    )  # fmt: skip
    assert bool(asked) == METHODS[name].TRAITS.gradient


@pytest.mark.parametrize(
    ("name", "schedule"), covering(itertools.product(METHODS, [FLOW, EDM()])), ids=str
)
def test_calls_of_the_network_are_counted(name, schedule):
    """With the options that change them; a gradient is not counted beside its call."""
    choices = {
        "pigdm": [{}, dict(sampler="heun"), dict(covariance="tweedie", iterations=3)],
        "repaint": [dict(jump=2, resample=3), dict(jump=3, resample=1)],
        "pnpflow": [{}, dict(draws=2)],
        "daps": [dict(ode=5, langevin=2), dict(ode=1, langevin=2), dict(ode=3, langevin=1)],
    }
    counted = []

    def denoise(x, t):
        counted.append(1)
        return 0.5 * x

    for options in choices.get(name, [{}]):
        counted.clear()
        with jax.disable_jit():
            METHODS[name].restore(
                denoise, schedule, grids.linear(schedule, 4), noise(schedule, 1), keys(1),
                operator=make(OPERATORS["mask"], SHAPE), y=jnp.zeros((1, *SHAPE)), noise_std=0.1,
                **options,
            )  # fmt: skip
        assert len(counted) == METHODS[name].nfe(4, final=schedule == EDM(), **options)


def test_impossible_pairs_are_refused():
    """By one line that says what is needed and what would do, which then does."""
    served = {
        "mask": make(OPERATORS["mask"], SHAPE), "svd": make(OPERATORS["average"], SHAPE),
        "linear": make(OPERATORS["radon"], SHAPE), "any": make(dict(name="hdr"), SHAPE),
    }  # fmt: skip
    order = list(served)
    for name, method in METHODS.items():
        for kind, operator in served.items():
            if order.index(kind) <= order.index(method.TRAITS.needs):
                assert restoration.find(name, operator) is method
                continue
            with pytest.raises(ValueError, match=f"{name} needs") as caught:
                restoration.find(name, operator)
            line = str(caught.value)
            assert "\n" not in line
            others = line.split("; use one of ")[1].split(", ")
            assert type(operator).__name__ in line
            assert all(restoration.find(other, operator) for other in others)
    with pytest.raises(ValueError, match=r"there is no method 'ddpm', only daps, ddnm, .*repaint"):
        restoration.find("ddpm", served["mask"])


@each_method
def test_a_method_has_what_the_contract_asks(name):
    method = METHODS[name]
    parameters = inspect.signature(method.restore).parameters
    given = ["denoise", "schedule", "times", "x", "keys", "operator", "y", "noise_std"]
    assert list(parameters)[:8] == given
    options = list(parameters.values())[8:]
    assert all(p.default is not p.empty for p in options)
    assert method.TRAITS.needs in ("any", "linear", "svd", "mask")
    assert method.nfe(5, **{p.name: p.default for p in options}) >= 5
