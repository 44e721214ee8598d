"""What each method must give for Gaussian images: its mean and covariance, step by step, in NumPy.

From the papers' formulas, with dense matrices: nothing here knows how the package does it. Each
takes (case, schedule, times) and its own options, and returns (mean, covariance).
"""

import itertools

import jax.numpy as jnp
import numpy as np

from tests.restoration.gaussians import SIZE
from tests.samplers.known import numbers
from vitdiff_jax.diffusion.schedules import EDM
from vitdiff_jax.operators.inverse import MIN_WEIGHT
from vitdiff_jax.operators.svd import RTOL
from vitdiff_jax.restoration.pigdm import MIN_NOISE_STD, MIN_SNR

EYE = np.eye(SIZE)


class State:
    """The moments of x_t."""

    def __init__(self, std):
        self.mean, self.covariance = np.zeros(SIZE), std**2 * EYE

    def go(self, matrix, offset, noise=None):
        """To matrix x + offset + noise z."""
        self.mean = matrix @ self.mean + offset
        self.covariance = matrix @ self.covariance @ matrix.T
        if noise is not None:
            self.covariance = self.covariance + noise @ noise.T

    @property
    def moments(self):
        return self.mean, self.covariance


def estimate(case, alpha, sigma):
    """(K, k) of E[x | x_t] = K x_t + k."""
    c, mean = case.prior.covariance, case.prior.mean
    gain = alpha * np.linalg.solve(alpha**2 * c + sigma**2 * EYE, c)
    return gain, mean - alpha * gain @ mean


def ddim(t, s, eta=1.0):
    """(a, b, tau) of x_s = a x_hat + b x_t + tau z (arXiv:2010.02502, eqs. 12 and 16)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = t, s
    tau = eta * sigma_s / sigma_t * np.sqrt(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)
    b = np.sqrt(sigma_s**2 - tau**2) / sigma_t
    return alpha_s - b * alpha_t, b, tau


def levels(schedule, times):
    """(alpha, sigma) at each time."""
    return [*zip(*(np.asarray(a, float) for a in schedule.alpha_sigma(jnp.asarray(times))))]


def pairs(schedule, times):
    return itertools.pairwise(levels(schedule, times))


def clean_end(schedule, times):
    """(alpha, sigma) where one more estimate ends it, or None."""
    return numbers(schedule, 0) if isinstance(schedule, EDM) and times[-1] == 0 else None


def walked(case, schedule, times, answer, eta=1.0):
    """DDIM steps with x_hat = M x_t + c for (M, c) = answer(alpha, sigma)."""
    state = State(numbers(schedule, times[0])[1])
    for t, s in pairs(schedule, times):
        (matrix, offset), (a, b, tau) = answer(*t), ddim(t, s, eta)
        state.go(a * matrix + b * EYE, a * offset, tau * EYE)
    if end := clean_end(schedule, times):
        state.go(*answer(*end))
    return state.moments


def ancestral(case, schedule, times):
    return walked(case, schedule, times, lambda *t: estimate(case, *t))


def parts(case):
    """(V^T, s, y') with s [n] and U^T y / s, zero where nothing is measured."""
    u, s, vt = np.linalg.svd(case.matrix)
    values, y = np.zeros(SIZE), np.zeros(SIZE)
    values[: len(s)] = s
    values[values <= RTOL * s.max()] = 0
    y[: len(s)] = (u.T @ case.y_flat)[: len(s)]
    return vt, values, np.divide(y, values, out=np.zeros(SIZE), where=values > 0)


def ddnm(case, schedule, times, eta=1.0):
    """arXiv:2212.00490, eqs. 17 to 19, per singular direction."""
    vt, values, y = parts(case)
    state, seen = State(numbers(schedule, times[0])[1]), values > 0

    def corrected(t, share):
        matrix, offset = estimate(case, *t)
        project = vt.T @ np.diag(share) @ vt
        return (EYE - project) @ matrix, (EYE - project) @ offset + vt.T @ (share * y)

    for t, s in pairs(schedule, times):
        a, b, tau = ddim(t, s, eta)
        share, spread = np.zeros(SIZE), np.full(SIZE, tau)
        for i in np.flatnonzero(seen):
            noise = a * case.noise_std / values[i]
            share[i] = 1 if tau >= noise else tau / noise
            spread[i] = np.sqrt(max(tau**2 - (share[i] * noise) ** 2, 0))
        matrix, offset = corrected(t, share)
        state.go(a * matrix + b * EYE, a * offset, vt.T @ np.diag(spread))
    if end := clean_end(schedule, times):
        state.go(*corrected(end, seen * (case.noise_std == 0)))
    return state.moments


def ddrm(case, schedule, times, eta=0.85, eta_b=1.0):
    """arXiv:2201.11793, eqs. 7 and 8, in the paper's variance-exploding coordinates x / alpha."""
    vt, values, y = parts(case)
    state, kept = State(numbers(schedule, times[0])[1]), np.sqrt(1 - eta**2)
    for t, (alpha, sigma) in pairs(schedule, times):
        (matrix, offset), ratio = estimate(case, *t), sigma / alpha
        eps, eps_offset = (EYE - t[0] * matrix) / t[1], -t[0] * offset / t[1]
        on_x, on_eps, on_y, fresh = np.zeros((4, SIZE))
        for i, s in enumerate(values):
            if s == 0:
                on_x[i], on_eps[i], fresh[i] = 1, kept * ratio, eta * ratio
            elif ratio < case.noise_std / s:
                pull = kept * ratio * s / case.noise_std
                on_x[i], on_y[i], fresh[i] = 1 - pull, pull, eta * ratio
            else:
                on_x[i], on_y[i] = 1 - eta_b, eta_b
                fresh[i] = np.sqrt(ratio**2 - (eta_b * case.noise_std / s) ** 2)
        x, eps_x = vt.T @ np.diag(on_x) @ vt, vt.T @ np.diag(on_eps) @ vt
        state.go(
            alpha * (x @ matrix + eps_x @ eps),
            alpha * (x @ offset + eps_x @ eps_offset + vt.T @ (on_y * y)),
            alpha * vt.T @ np.diag(fresh),
        )
    if end := clean_end(schedule, times):
        matrix, offset = estimate(case, *end)
        project = vt.T @ np.diag(eta_b * (values > 0) * (case.noise_std == 0)) @ vt
        state.go((EYE - project) @ matrix, (EYE - project) @ offset + project @ vt.T @ y)
    return state.moments


def diffpir(case, schedule, times, strength=8.0, zeta=0.3):
    """arXiv:2305.08995, algorithm 1: rho = lambda noise_std^2 / (sigma / alpha)^2."""
    state, a = State(numbers(schedule, times[0])[1]), case.matrix

    def explained(alpha, sigma):
        weight = max(strength * (case.noise_std * alpha / sigma) ** 2, MIN_WEIGHT)
        matrix, offset = estimate(case, alpha, sigma)
        normal = a.T @ a + weight * EYE
        return (
            np.linalg.solve(normal, weight * matrix),
            np.linalg.solve(normal, a.T @ case.y_flat + weight * offset),
        )

    for (alpha_t, sigma_t), (alpha, sigma) in pairs(schedule, times):
        matrix, offset = explained(alpha_t, sigma_t)
        kept = np.sqrt(1 - zeta) * sigma / sigma_t
        rest = alpha - kept * alpha_t
        state.go(rest * matrix + kept * EYE, rest * offset, np.sqrt(zeta) * sigma * EYE)
    if end := clean_end(schedule, times):
        state.go(*explained(*end))
    return state.moments


def pigdm(case, schedule, times, data_std=0.5, eta=1.0):
    """Scalar covariance (Song et al., ICLR 2023, eq. 7, with Tweedie's formula)."""
    a, noise_var = case.matrix, max(case.noise_std, MIN_NOISE_STD) ** 2

    def answer(alpha, sigma):
        if alpha**2 < MIN_SNR * sigma**2:
            alpha, sigma = numbers(schedule, schedule.t_from_logsnr(np.log(np.asarray(MIN_SNR))))
        matrix, offset = estimate(case, alpha, sigma)
        r_2 = 1 / (1 / data_std**2 + (alpha / sigma) ** 2)
        inner = np.linalg.inv(r_2 * a @ a.T + noise_var * np.eye(len(a)))
        gain = sigma**2 / alpha * matrix.T @ a.T @ inner
        rest = EYE - gain @ a
        return rest @ matrix, rest @ offset + gain @ case.y_flat

    return walked(case, schedule, times, answer, eta)


def repaint(case, schedule, times, jump=10, resample=10):
    """arXiv:2201.09865, algorithm 1, whose single steps back are here `jump` steps back."""
    known = case.matrix  # of a mask: 0 and 1 on the diagonal
    at = levels(schedule, times)
    state, last = State(at[0][1]), len(times) - 1

    def down(i):
        (matrix, offset), (a, b, tau) = estimate(case, *at[i]), ddim(*at[i : i + 2])
        alpha, sigma = at[i + 1]
        free = EYE - known
        noise = np.hstack([tau * free, sigma * known])
        put = alpha * known @ case.y_flat
        state.go(free @ (a * matrix + b * EYE), free @ (a * offset) + put, noise)

    def up(i):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at[i], at[i + 1]
        ratio = alpha_t / alpha_s
        added = np.sqrt(max(sigma_t**2 - (ratio * sigma_s) ** 2, 0))
        state.go(ratio * EYE, np.zeros(SIZE), added * EYE)

    ends = [*range(last, 0, -jump)][::-1]
    for start, end in itertools.pairwise([0, *ends]):
        for turn in range(resample):
            if turn > 0:
                for i in reversed(range(start, end)):
                    up(i)
            for i in range(start, end):
                down(i)
    if end := clean_end(schedule, times):
        matrix, offset = estimate(case, *end)
        state.go((EYE - known) @ matrix, (EYE - known) @ offset + known @ case.y_flat)
    return state.moments


def pnpflow(case, schedule, times, power=0.5, draws=5):
    """arXiv:2410.02423, algorithm 3, with the paper's step (1 - t)^power for its time 1 - t."""
    state, a = State(0), case.matrix
    norm = np.linalg.norm(a, 2) ** 2
    for t, (alpha, sigma) in zip(times, levels(schedule, times)):
        if t == times[-1] and not clean_end(schedule, times):
            break
        matrix, offset = estimate(case, alpha, sigma)
        step = t**power / norm
        state.go(EYE - step * a.T @ a, step * a.T @ case.y_flat)
        state.go(alpha * matrix, offset, sigma / np.sqrt(draws) * matrix)
    return state.moments
