"""Time grids for samplers: decreasing times from 1 (noise) to 0 (data).

    grid(schedule, steps, **options) -> times, float64 [steps + 1]

or [steps] where the schedule ends at sigma(0) > 0: samplers then append a final denoising step to
the data, so that a grid always has `steps` steps.
"""

import jax.numpy as jnp
import numpy as np

from vitdiff_jax.diffusion.schedules import LOGSNR_MAX, Schedule, ends, logsnr


def _points(schedule: Schedule, steps: int) -> int:
    """The length of a grid of `steps` steps: one less where sigma(0) > 0."""
    if ends(schedule)[1] == 0:
        return steps + 1
    if steps < 2:
        raise ValueError(
            f"steps: {steps} is too few: this schedule needs a final denoising step, so at least 2"
        )
    return steps


def linear(schedule: Schedule, steps: int, *, last: float | None = None) -> np.ndarray:
    """Uniform in t from 1 to 0. last: the length of the last step, if not that of the others."""
    points = _points(schedule, steps)
    if last is None:
        return np.linspace(1, 0, points)
    if not 0 < last < 1:
        raise ValueError(f"grid.last: {last} is not between 0 and 1")
    return np.append(np.linspace(1, last, points - 1), 0.0)


def shifted(schedule: Schedule, steps: int, *, shift: float = 1.0) -> np.ndarray:
    """Uniform in t, then t -> shift t / (1 + (shift - 1) t): more steps at high noise.

    For m times the base resolution, shift = m (arXiv:2403.03206, eq. 23).
    """
    t = linear(schedule, steps)
    return shift * t / (1 + (shift - 1) * t)


def uniform_logsnr(
    schedule: Schedule, steps: int, *, low: float = -LOGSNR_MAX, high: float = LOGSNR_MAX
) -> np.ndarray:
    """Uniform in log-SNR between `low` and `high`, clipped to the schedule's range; exact ends."""
    noisiest, cleanest = np.asarray(logsnr(schedule, jnp.array([1.0, 0.0])))
    points = _points(schedule, steps)
    levels = np.linspace(max(low, noisiest), min(high, cleanest), points)
    return _with_ends(schedule.t_from_logsnr(jnp.asarray(levels)))


def edm_rho(schedule: Schedule, steps: int, *, rho: float = 7.0) -> np.ndarray:
    """EDM's grid: (sigma/alpha)^(1/rho) uniform from 80 to 0.002 (arXiv:2206.00364, eq. 5).

    The range is clipped to the schedule's; the last step goes to the data, as in the paper.
    """
    ratio = np.exp(-np.asarray(logsnr(schedule, jnp.array([1.0, 0.0]))) / 2)
    high, low = min(ratio[0], 80.0), max(ratio[1], 0.002)
    points = _points(schedule, steps)
    root = np.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    t = np.asarray(schedule.t_from_logsnr(jnp.asarray(-2 * rho * np.log(root))))
    return _with_ends(t if points == steps else np.append(t, 0.0))


def respaced(schedule: Schedule, steps: int, *, of: int = 1000) -> np.ndarray:
    """The respaced timesteps of ADM and DiT out of a chain of `of` steps, then 0.

    Evenly spaced, rounded timesteps i from 0 to of - 1 (arXiv:2102.09672, section 4); timestep i is
    t = (i + 1) / of. A single one is t = 1; theirs would be i = 0, which is nearly free of noise.
    """
    kept = _points(schedule, steps) - 1
    if kept > of:
        raise ValueError(f"steps: {steps} is more than the {of} steps of the chain; use fewer")
    if kept == 1:
        return np.array([1.0, 0.0])
    stride = (of - 1) / (kept - 1)
    # A running sum, as in their code: halves round to even, and 20 * 49.95 depends on rounding.
    numbers = np.round(np.cumsum(np.append(0.0, np.full(kept - 1, stride))))
    return np.append((numbers[::-1] + 1) / of, 0.0)


def _with_ends(t) -> np.ndarray:
    """Times as float64, from exactly 1 to exactly 0."""
    t = np.array(t, np.float64)
    t[0], t[-1] = 1.0, 0.0
    return t
