"""Gaussian images N(m, C), whose denoiser and posterior are known, and restorers on them.

A restorer whose denoiser is affine is an affine map of the noise that it starts from and of each
draw that it makes on the way. `moments` finds that map by unit vectors: mean and covariance of what
the method gives are then known without any sampling error, in float64 to about 1e-9.
"""

import contextlib
import dataclasses
import functools
import unittest.mock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.operators.test_operators import dense, flat, make
from tests.samplers.known import keys, numbers
from vitdiff_jax import restoration, samplers
from vitdiff_jax.samplers import ancestral

SHAPE = (4, 4, 2)
SIZE = 32
METHODS = restoration.methods()
OPERATORS = {
    "mask": dict(name="mask", kind="random", share=0.5),
    "average": dict(name="downsample", kind="average", factor=2),
    "circular": dict(name="blur", kind="gaussian", size=3, std=0.8, border="circular"),
    "colourise": dict(name="colourise"),
    "denoise": dict(name="denoise"),
    "fourier": dict(name="fourier", kind="lines", share=0.5),
    "radon": dict(name="radon", angles=3),
    "photo": dict(
        name="compose",
        parts=[
            dict(name="blur", kind="motion", size=3),
            dict(name="colourise"),
            dict(name="mask", kind="random", share=0.4),
        ],
    ),
}


class Prior(NamedTuple):
    """N(mean, basis diag(variances) basis^T)."""

    mean: Any
    basis: Any
    variances: Any

    @property
    def covariance(self):
        return (self.basis * self.variances) @ self.basis.T

    def denoiser(self, schedule):
        """E[x | x_t], for all times of a batch the same."""

        def denoise(x_t, t):
            alpha, sigma = (a[:, None] for a in schedule.alpha_sigma(t))
            gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
            away = (x_t.reshape(len(x_t), -1) - alpha * self.mean) @ self.basis
            return (self.mean + (gain * away) @ self.basis.T).reshape(x_t.shape)

        return denoise


def prior(kind):
    """full: nothing is zero, variances from 0.03 to 0.4; circulant: a stationary texture of
    correlated channels; diagonal: independent pixels, each with its own variance."""
    random = np.random.default_rng(0)
    mean = 0.3 * random.standard_normal(SIZE)
    if kind == "full":
        basis, _ = np.linalg.qr(random.standard_normal((SIZE, SIZE)))
        return Prior(mean, basis, np.geomspace(0.03, 0.4, SIZE))
    if kind == "diagonal":
        return Prior(mean, np.eye(SIZE), random.permutation(np.geomspace(0.03, 0.4, SIZE)))
    away = np.minimum(np.arange(4), 4 - np.arange(4))
    line = 0.5 ** away[(np.arange(4)[:, None] - np.arange(4)) % 4]
    channels = np.array([[0.25, 0.1], [0.1, 0.15]])
    variances, basis = np.linalg.eigh(np.kron(np.kron(line, line), channels))
    return Prior(np.full(SIZE, 0.2), basis, variances)


PRIORS = {kind: prior(kind) for kind in ("full", "circulant", "diagonal")}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A measurement y [1, ...] of one image from a prior; matrix and y_flat [m] are real."""

    prior: Prior
    operator: Any
    matrix: np.ndarray
    y: np.ndarray
    noise_std: float

    @property
    def y_flat(self):
        return flat(self.y)[0]

    def posterior(self):
        """(mean, covariance) of x given y, in closed form."""
        c, a = self.prior.covariance, self.matrix
        gain = c @ a.T @ np.linalg.pinv(a @ c @ a.T + self.noise_std**2 * np.eye(len(a)))
        return self.prior.mean + gain @ (self.y_flat - a @ self.prior.mean), c - gain @ a @ c


@functools.cache
def known(name, precise):
    """An operator of OPERATORS and its matrix, in float64 if `precise`."""
    operator = make(OPERATORS[name], SHAPE)
    return operator, dense(operator, SHAPE)


def problem(name, kind="full", noise_std=0.1, operator=None):
    """An operator of OPERATORS, or another one, and a measurement with it."""
    given, random = PRIORS[kind], np.random.default_rng(7)
    if operator:
        matrix = dense(operator, SHAPE)
    else:
        operator, matrix = known(name, jax.config.jax_enable_x64)
    x = random.multivariate_normal(given.mean, given.covariance).reshape(1, *SHAPE)
    y = np.array(operator.forward(jnp.asarray(x)))
    y += noise_std * random.standard_normal(y.shape)
    if np.iscomplexobj(y):
        y += 1j * noise_std * random.standard_normal(y.shape)
    return Problem(given, operator, matrix, y, noise_std)


@contextlib.contextmanager
def unit_noise():
    """Instead of normal noise: image `key` has a 1 at place key % SIZE of draw key // SIZE, else 0.

    A draw is of an image or of a measurement with at most as many numbers.
    """

    def units(keys, i, x):
        ones = keys[:, None] == i * SIZE + jnp.arange(x[0].size)
        return ones.astype(x.dtype).reshape(-1, *x.shape[1:])

    with contextlib.ExitStack() as stack:
        for module in (*METHODS.values(), restoration.sdedit, ancestral, samplers):
            if hasattr(module, "fresh_noise"):
                stack.enter_context(unittest.mock.patch.object(module, "fresh_noise", units))
        yield


@functools.cache
def program(run, schedule, times, options):
    """run(denoise, schedule, times, x, keys, ...) compiled, with everything else an argument."""

    def restore(prior, x, keys, arrays):
        denoise = prior.denoiser(schedule)
        return run(denoise, schedule, np.array(times), x, keys, **arrays, **dict(options))

    return jax.jit(restore)


def affine(run, prior, schedule, times, fresh, start, arrays, options):
    """(mean, covariance) of what `run` gives when it starts from N(start[0], start[1] start[1]^T).

    fresh: how many draws of noise it makes; more than it makes do no harm.
    """
    rows = 2 + SIZE * (1 + fresh)
    middle, root = start
    x, keys = np.tile(middle, (rows, 1)), np.full(rows, -1)
    x[1 : SIZE + 1] += root.T
    keys[SIZE + 1 : -1] = np.arange(SIZE * fresh)
    other = np.random.default_rng(3).standard_normal(SIZE)
    x[-1] += root @ other
    compiled = program(run, schedule, tuple(map(float, times)), tuple(options.items()))
    with unit_noise():
        out = compiled(prior, jnp.asarray(x.reshape(rows, *SHAPE)), jnp.asarray(keys), arrays)
    out = np.asarray(out, np.float64).reshape(rows, SIZE)
    mean, effects = out[0], out[1:-1] - out[0]
    np.testing.assert_allclose(out[-1], mean + other @ effects[:SIZE], atol=1e-5)  # it is affine
    return mean, effects.T @ effects


def moments(name, case, schedule, times, fresh=0, start=None, **options):
    """(mean, covariance) of the images that a method gives, started as the contract says."""
    if start is None:
        start = np.zeros(SIZE), numbers(schedule, times[0])[1] * np.eye(SIZE)
    arrays = dict(operator=case.operator, y=jnp.asarray(case.y), noise_std=case.noise_std)
    run = METHODS[name].restore
    return affine(run, case.prior, schedule, times, fresh, start, arrays, options)


def noise(schedule, count, t=1.0):
    """Where a restorer starts: sigma(t) eps."""
    start = np.random.default_rng(10_000).standard_normal((count, *SHAPE))
    return jnp.asarray(numbers(schedule, t)[1] * start, float)


def draw(name, case, schedule, times, count, **options):
    """Images [count, *SHAPE] that a method really gives, each with its own key."""
    x = noise(schedule, count, times[0])
    y = jnp.repeat(jnp.asarray(case.y), count, 0)
    y = y.astype(jnp.result_type(x, 1j) if jnp.iscomplexobj(y) else x.dtype)
    compiled = program(
        METHODS[name].restore, schedule, tuple(map(float, times)), tuple(options.items())
    )
    given = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), case.prior)
    arrays = dict(operator=case.operator, y=y, noise_std=case.noise_std)
    return np.asarray(compiled(given, x, keys(count), arrays))
