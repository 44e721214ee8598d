"""Laws of training times: each is the quantile function of the distribution that it names."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from tests.parts import SCHEDULES, TIMES, covering, only
from vitdiff_jax.diffusion import times
from vitdiff_jax.diffusion.schedules import EDM, LinearVP, RectifiedFlow
from vitdiff_jax.training import objective

U = np.linspace(0.001, 0.999, 333)


@pytest.mark.parametrize(
    ("distribution", "schedule"), covering(itertools.product(TIMES, SCHEDULES)), ids=str
)
def test_every_distribution_is_a_quantile_function(distribution, schedule):
    """Increasing in u, with values in [0, 1]: only then does stratifying u stratify t."""
    t = np.asarray(
        TIMES[distribution](jnp.asarray(np.linspace(1e-6, 1 - 1e-6, 1001), jnp.float32), schedule)
    )
    assert t.shape == (1001,)
    assert (np.diff(t) >= 0).all()
    assert t.min() >= 0
    assert t.max() <= 1
    assert t.max() - t.min() > 0.5  # not a constant


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.8)])
def test_logit_normal(mean, std):
    """t is a logistic function of a normal variable (arXiv:2403.03206); the second is JiT's."""
    found = times.logit_normal(jnp.asarray(U), RectifiedFlow(), mean=mean, std=std)
    np.testing.assert_allclose(found, expit(stats.norm.ppf(U, mean, std)), rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", [EDM(), LinearVP(), RectifiedFlow(noise_scale=2.0)], ids=str)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 0.7)])
def test_edm_lognormal(schedule, mean, std):
    """sigma / alpha is log-normal (arXiv:2206.00364, table 1), whatever the schedule."""
    t = times.edm_lognormal(jnp.asarray(U), schedule, mean=mean, std=std)
    alpha, sigma = schedule.alpha_sigma(t)
    wanted = stats.lognorm.ppf(U, std, scale=np.exp(mean))
    np.testing.assert_allclose(sigma / alpha, wanted, rtol=1e-6)


def test_edm_lognormal_stays_in_the_schedules_range():
    """A distribution that leaves sigma_min to sigma_max is clipped to its ends."""
    t = times.edm_lognormal(jnp.array([1e-6, 1 - 1e-6]), EDM(), mean=0.0, std=10.0)
    np.testing.assert_array_equal(t, [0, 1])


@pytest.mark.parametrize("steps", [4, 1000])
def test_discrete_has_the_times_of_a_chain(steps):
    """(i + 1) / steps of step i, each as likely, which are the times that a grid of them has."""
    u = jnp.asarray((np.arange(8 * steps) + 0.5) / (8 * steps), jnp.float32)
    found = np.asarray(times.discrete(u, RectifiedFlow(), steps=steps))
    chain, counts = np.unique(found, return_counts=True)
    np.testing.assert_allclose(chain, np.arange(1, steps + 1) / steps, rtol=2e-7)
    np.testing.assert_array_equal(counts, 8)


def test_discrete_ends_at_1_exactly():
    """Of the largest quantile below 1 in float32, however many steps: none rounds beyond."""
    u = jnp.float32(1 - 2**-24)
    assert {float(times.discrete(u, RectifiedFlow(), steps=n)) for n in range(2, 1200)} == {1.0}


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_stratified_quantiles_have_one_draw_in_each_share(batch):
    """Image i of n has its quantile in [i/n, (i+1)/n), however the batch is cut and ordered."""
    order = np.random.default_rng(batch).permutation(batch)
    keys = jax.random.split(jax.random.key(batch), batch)
    u = np.asarray(objective.quantiles(keys, jnp.asarray(order), batch, True))
    np.testing.assert_array_equal(np.floor(u * batch), order)


def test_quantiles_are_uniform_within_their_share():
    """Kolmogorov-Smirnov: of the whole interval without strata, of one share with them."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    index = jnp.full(20_000, 3)
    plain = objective.quantiles(keys, index, 8, False)
    share = 8 * objective.quantiles(keys, index, 8, True) - 3
    for u in (plain, share):
        assert stats.kstest(np.asarray(u), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("batch", "stratified"),
    only([(1024, True), (1, False)], itertools.product([1, 64, 1024], [True, False])),
)
def test_quantiles_stay_inside_the_open_interval(batch, stratified):
    """0 and 1 are infinite normal quantiles: none in a million draws of the first and last image.

    In float32 (index + u) / batch with u below 1 may round to 1 when index is large.
    """
    keys = jax.random.split(jax.random.key(1), 1_000_000)
    for index in (0, batch - 1):
        u = objective.quantiles(keys, jnp.full(len(keys), index), batch, stratified)
        assert u.min() > 0
        assert u.max() < 1
