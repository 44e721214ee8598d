"""Grids: the decreasing times that samplers walk along, from 1 (noise) to 0 (data).

    grid(schedule, steps, **options) -> times, float64 [steps + 1]

or [steps] where the schedule ends at sigma(0) > 0: samplers then add one exact last step to the
data themselves, so that `steps` steps are always `steps` steps.
"""

import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.schedules import LOGSNR_MAX, Schedule, ends, logsnr


def _points(schedule: Schedule, steps: int) -> int:
    """How many times a grid of `steps` steps has: one less where sigma(0) > 0."""
    if ends(schedule)[1] == 0:
        return steps + 1
    if steps < 2:
        raise ValueError(
            f"steps: {steps} is too few: this schedule needs one to leave its last noise"
        )
    return steps


def linear(schedule: Schedule, steps: int) -> np.ndarray:
    """Uniform in t from 1 to 0."""
    return np.linspace(1, 0, _points(schedule, steps))


def shifted(schedule: Schedule, steps: int, *, shift: float = 1.0) -> np.ndarray:
    """Uniform in t, then t -> shift t / (1 + (shift - 1) t): more steps at high noise.

    For m times as many pixels per side as the model's base size, shift = m (arXiv:2403.03206,
    eq. 23).
    """
    t = linear(schedule, steps)
    return shift * t / (1 + (shift - 1) * t)


def uniform_logsnr(
    schedule: Schedule, steps: int, *, low: float = -LOGSNR_MAX, high: float = LOGSNR_MAX
) -> np.ndarray:
    """Uniform in log-SNR between `low` and `high` (cut to the schedule's range), ends exact."""
    noisiest, cleanest = np.asarray(logsnr(schedule, jnp.array([1.0, 0.0])))
    points = _points(schedule, steps)
    levels = np.linspace(max(low, noisiest), min(high, cleanest), points)
    return _with_ends(schedule.t_from_logsnr(jnp.asarray(levels)))


def edm_rho(schedule: Schedule, steps: int, *, rho: float = 7.0) -> np.ndarray:
    """EDM's grid: (sigma/alpha)^(1/rho) uniform from 80 to 0.002 (arXiv:2206.00364, eq. 5).

    The range is cut to the schedule's; the last step goes from there to the data, as in the paper.
    """
    ratio = np.exp(-np.asarray(logsnr(schedule, jnp.array([1.0, 0.0]))) / 2)
    high, low = min(ratio[0], 80.0), max(ratio[1], 0.002)
    points = _points(schedule, steps)
    root = np.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    t = np.asarray(schedule.t_from_logsnr(jnp.asarray(-2 * rho * np.log(root))))
    return _with_ends(t if points == steps else np.append(t, 0.0))


def respaced(schedule: Schedule, steps: int, *, of: int = 1000) -> np.ndarray:
    """The times of a chain of `of` steps that ADM and DiT keep when they sample with fewer, then 0.

    Evenly spaced step numbers i from 0 to of - 1, rounded (arXiv:2102.09672, section 4); step i is
    t = (i + 1) / of. A single one is t = 1, where theirs would be i = 0, without noise to speak of.
    """
    kept = _points(schedule, steps) - 1
    if kept > of:
        raise ValueError(f"steps: {steps} is more than the {of} of the chain; use fewer")
    if kept == 1:
        return np.array([1.0, 0.0])
    stride = (of - 1) / (kept - 1)
    # Summed up as they do: halves round to even, and 20 * 49.95 is or is not one half off.
    numbers = np.round(np.cumsum(np.append(0.0, np.full(kept - 1, stride))))
    return np.append((numbers[::-1] + 1) / of, 0.0)


def _with_ends(t) -> np.ndarray:
    """Times as float64 that begin exactly at 1 and end exactly at 0."""
    t = np.array(t, np.float64)
    t[0], t[-1] = 1.0, 0.0
    return t
