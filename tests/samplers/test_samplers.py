"""What every sampler promises, whatever its method: see also `test_orders`, `test_published`.

Few steps, one operation after the other (`disable_jit`): far quicker than to compile each loop.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import GRIDS, SAMPLERS, covering, quick
from tests.samplers import known
from vitdiff_jax import samplers
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, Cosine, RectifiedFlow

SHAPE = (2, 3, 2, 1)  # of nearly all tests: they share what is compiled for it
IN_T = {"euler", "heun"}  # along the schedule's own t, straight only for some schedules
ON_A_POINT = [  # where a point mass is met exactly
    (name, schedule)
    for name, schedule in itertools.product(SAMPLERS, known.FOUR_SCHEDULES)
    if name not in IN_T or isinstance(schedule, (RectifiedFlow, EDM))
]
MIXED = [(name, schedule, grid) for name, schedule in ON_A_POINT for grid in GRIDS]
eager = jax.disable_jit()


@eager
@pytest.mark.parametrize("schedule", [RectifiedFlow(), EDM()], ids=lambda s: type(s).__name__)
@known.each_sampler
def test_calls_of_the_network_are_counted(name, schedule):
    """On a grid of so many steps, with a clean end or without."""
    counted = []

    def denoise(x, t):
        counted.append(1)
        return 0.5 * x

    times = grids.linear(schedule, 4)
    SAMPLERS[name](denoise, schedule, times, known.noise(schedule, SHAPE), known.keys(2))
    assert len(counted) == known.MODULES[name].nfe(4)


@eager
@known.each_sampler
def test_randomness_is_as_declared(name):
    """Keys matter to the stochastic samplers and to no others: a seed means what it says."""
    schedule, times = RectifiedFlow(), np.linspace(1, 0, 5)
    x, denoise = known.noise(schedule, SHAPE), known.gaussian_denoiser(schedule)
    first, second = (SAMPLERS[name](denoise, schedule, times, x, known.keys(2, k)) for k in (0, 10))
    same = (np.asarray(first) == np.asarray(second)).all()
    assert same == (name not in known.STOCHASTIC)


@eager
@pytest.mark.parametrize(
    ("name", "schedule", "grid"),
    covering(  # the widest range on every schedule, and all grids on one
        case for case in MIXED if case[2] == "uniform_logsnr" or case[1] == RectifiedFlow()
    ),
    ids=str,
)
def test_a_point_mass_is_hit(name, schedule, grid):
    """Where all data is one image, the last step must end on it, whatever the grid."""
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, SHAPE[1:]), jnp.float32)
    times, x = GRIDS[grid](schedule, 6), known.noise(schedule, SHAPE)
    found = SAMPLERS[name](lambda x, t: 0 * x + image, schedule, times, x, known.keys(2))
    np.testing.assert_allclose(found, jnp.stack([image] * 2), atol=2e-5)


@pytest.mark.usefixtures("x64")
@eager
@pytest.mark.parametrize(
    ("name", "schedule"), covering(p for p in ON_A_POINT if p[0] != "euler_maruyama"), ids=str
)
def test_a_point_mass_is_approached_along_the_forward_path(name, schedule):
    """Half-way the sample is alpha x + sigma eps, of the eps that it started with if no other.

    Not by Euler-Maruyama, which has the right noise in small steps only.
    """
    shape = (1, 64, 64, 1) if name in known.STOCHASTIC else SHAPE
    image, eps = np.random.default_rng(1).standard_normal((2, *shape))
    times = np.array([0.98, 0.7, 0.45, 0.2])
    start, end = (schedule.alpha_sigma(jnp.asarray(t)) for t in (times[0], times[-1]))
    x = start[0] * image + start[1] * eps
    found = SAMPLERS[name](lambda x, t: 0 * x + image, schedule, times, x, known.keys(len(x)))
    if name in known.STOCHASTIC:
        eps = (np.asarray(found) - end[0] * image) / end[1]
        assert eps.size * 0.9 < (eps**2).sum() < eps.size * 1.1
        return
    np.testing.assert_allclose(found, end[0] * image + end[1] * eps, rtol=1e-9, atol=1e-9)


@eager
@known.each_sampler
def test_clean_end_is_the_denoisers_answer(name):
    """Where sigma(0) > 0 the result is E[x | x_0] itself; a grid that stops earlier has no end."""
    schedule = EDM()
    gaussian, x = known.gaussian_denoiser(schedule), known.noise(schedule, SHAPE)

    def denoise(x_t, t):  # an answer at t = 0 that no step could reach
        return jnp.where(t[:, None, None, None] == 0, 7.0, gaussian(x_t, t))

    ended = SAMPLERS[name](denoise, schedule, np.array([1, 0.3, 0.0]), x, known.keys(2))
    stopped = SAMPLERS[name](denoise, schedule, np.array([1, 0.3, 0.01]), x, known.keys(2))
    assert (np.asarray(ended) == 7).all()
    assert (np.asarray(stopped) != 7).all()


@eager
@known.pairs(schedules=known.FOUR_SCHEDULES[:3])
def test_the_denoiser_is_not_asked_where_there_is_no_noise(name, schedule):
    """At sigma = 0 velocities are 0/0 and LinearVP's slope is infinite."""
    gaussian = known.gaussian_denoiser(schedule)

    def denoise(x_t, t):
        return jnp.where(t[:, None, None, None] == 0, jnp.nan, gaussian(x_t, t))

    x = known.noise(schedule, SHAPE)
    found = SAMPLERS[name](denoise, schedule, np.linspace(1, 0, 4), x, known.keys(2))
    assert np.isfinite(found).all()


def mixing_denoiser(x_t, t):
    """Nonlinear, and every pixel sees its whole image, but no other image."""
    return jnp.tanh(x_t - x_t.mean((1, 2, 3), keepdims=True) + jnp.cos(t)[:, None, None, None])


@eager
@known.each_sampler
def test_an_image_depends_on_its_own_key_alone(name):
    """The same at any place, beside any other; and another with another key."""
    schedule, times = Cosine(), np.array([1, 0.6, 0.3, 0.0])

    def sample(x, k):
        return np.asarray(SAMPLERS[name](mixing_denoiser, schedule, times, x, k))

    x, k = known.noise(schedule, SHAPE), known.keys(2)
    both = sample(x, k)
    np.testing.assert_allclose(sample(x[::-1], k[::-1]), both[::-1], atol=1e-5)
    beside = sample(x.at[1].set(x[0]), k)
    np.testing.assert_allclose(beside[0], both[0], atol=1e-5)
    assert (abs(beside[1] - beside[0]).max() > 0.01) == (name in known.STOCHASTIC)


@known.pairs(schedules=[RectifiedFlow(), EDM()])
def test_is_one_loop_in_the_program(name, schedule):
    """The network stands in the program as often for 40 steps as for 4, inside one scan."""

    def program(steps):
        def sample(x, k):  # the network is whatever calls lgamma
            times = np.linspace(1, 0, steps + 1)
            return SAMPLERS[name](lambda x, t: jax.lax.lgamma(x), schedule, times, x, k)

        return str(jax.make_jaxpr(sample)(known.noise(schedule, SHAPE), known.keys(2)))

    long, short = program(40), program(4)
    assert 1 <= long.count("= lgamma") == short.count("= lgamma") <= 3
    assert long.count("= scan[") == 1


def recorded(name, schedule, times, x, k):
    with samplers.record_trajectory() as path:
        found = SAMPLERS[name](mixing_denoiser, schedule, times, x, k)
    return found, path


@eager
@known.each_sampler
def test_what_it_passes_through_is_recorded_on_request(name):
    """x at each time and the clean end, as returned."""
    schedule = EDM()
    times, x, k = grids.linear(schedule, 4), known.noise(schedule, SHAPE), known.keys(2)
    found, (path,) = recorded(name, schedule, times, x, k)
    assert path.shape == (5, *x.shape)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_array_equal(path[-1], found)
    if name not in ("edm_stochastic", "unipc"):  # these know how many steps are to come, or undo
        part = SAMPLERS[name](mixing_denoiser, schedule, times[:3], x, k)
        np.testing.assert_allclose(path[2], part, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", quick({"ancestral"}, SAMPLERS))
def test_compiled_alone_is_the_same(name):
    """Inside jit, with the noise and keys as arguments, in a batch of 1; also what is recorded."""
    schedule = EDM()
    times, k = grids.linear(schedule, 4), known.keys(2)
    x = known.noise(schedule, SHAPE).astype(jnp.float64)
    with jax.disable_jit():
        found, (path,) = recorded(name, schedule, times, x, k)
    alone, (steps,) = jax.jit(lambda x, k: recorded(name, schedule, times, x, k))(x[:1], k[:1])
    np.testing.assert_allclose(alone, found[:1], atol=1e-9)
    np.testing.assert_allclose(steps, path[:, :1], rtol=1e-9, atol=1e-9)


def test_nothing_is_recorded_without_request():
    """Neither before, nor after, nor between: the program is the one without a word of it."""
    times, x = np.linspace(1, 0, 4), jnp.ones((1, 2, 2, 1))

    def program():
        def sample(x, k):
            return SAMPLERS["ddim"](mixing_denoiser, RectifiedFlow(), times, x, k)

        return str(jax.make_jaxpr(sample)(x, known.keys(1)))

    before = program()
    with samplers.record_trajectory() as outer:
        with samplers.record_trajectory() as inner:
            assert program() != before
        assert (len(outer), len(inner)) == (0, 1)
    assert program() == before
    assert len(outer) == 0


@eager
def test_eta_of_ddim():
    """0 draws nothing, and what is no share is refused; its steps: `test_published`."""
    schedule, times, x = Cosine(), np.linspace(1, 0, 5), known.noise(Cosine(), SHAPE)

    def program(**options):
        def sample(x, k):
            return SAMPLERS["ddim"](mixing_denoiser, schedule, times, x, k, **options)

        return sample

    assert "random" in str(jax.make_jaxpr(program(eta=0.5))(x, known.keys(2)))
    assert "random" not in str(jax.make_jaxpr(program())(x, known.keys(2)))
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"eta: {eta} is not in"):
            program(eta=eta)(x, known.keys(2))
