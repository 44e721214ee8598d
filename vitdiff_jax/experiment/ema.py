"""EMAs of the parameters, and post-hoc EMAs of any width synthesised from stored ones.

An EMA is named by its decay, "0.9999" (exponential, with warm-up), or by its relative width,
"width0.05": a power-function EMA (arXiv:2312.02696, eq. 4), which after step n weights the
parameters of step i by i^gamma,

    ema_n = d ema_(n-1) + (1 - d) params_n,   d = (1 - 1/n)^(gamma + 1)

so that the standard deviation of the weights is `width` times n. If power-function EMAs of one or
two widths are stored at several steps, a linear combination of these snapshots approximates the EMA
of any width (section 3.2 there); `posthoc_weights` computes its coefficients.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

WIDEST = 12**-0.5
"""The width of uniform weights, gamma = 0."""


def decay_name(decay: float) -> str:
    """Name of an exponential EMA in checkpoints: 0.9999 -> "0.9999"."""
    return repr(float(decay))


def width_name(width: float) -> str:
    """Name of a power-function EMA in checkpoints: 0.05 -> "width0.05"."""
    return f"width{float(width)!r}"


def gamma(width: float) -> float:
    """The exponent for which the weights i^gamma have this relative width, in (0, WIDEST]."""
    # width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): one root is larger than -1
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


def decay(name: str, step: jax.Array) -> jax.Array:
    """The decay of the EMA `name` at a step, counted from 0."""
    if name.startswith("width"):
        power = gamma(float(name.removeprefix("width"))) + 1
        return (1 - 1 / (step + 1)) ** power
    # Warm-up: otherwise the EMA of a short run consists mostly of the initial parameters.
    return jnp.minimum(float(name), (1 + step) / (10 + step))


def posthoc_weights(
    snapshots: Sequence[tuple[int, float]], step: int, width: float
) -> tuple[np.ndarray, float]:
    """Coefficients of snapshots (step, width) that best approximate the EMA of `width` at `step`.

    Least squares between the profiles, i.e. the weights given to the parameters over time, with
    coefficients that sum to 1, so that constant parameters are reproduced. The second result is the
    relative RMS error of the profile. Snapshots later than `step` raise ValueError.
    """
    times, powers = np.array([(n, gamma(w)) for n, w in snapshots], np.float64).reshape(-1, 2).T
    if len(times) == 0 or times.max() > step:
        raise ValueError(f"no snapshots up to step {step}, or later ones")
    target = np.array([step], np.float64), np.array([gamma(width)])
    gram, overlap = _overlap(times, powers, times, powers), _overlap(times, powers, *target)[:, 0]
    norm, n = _overlap(*target, *target)[0, 0], len(snapshots)
    # With a Lagrange multiplier for the sum, and scaled by the target's norm for conditioning.
    system = np.pad(gram / norm, (0, 1), constant_values=1)
    system[n, n] = 0
    weights = np.linalg.lstsq(system, np.append(overlap / norm, 1), rcond=1e-12)[0][:n]
    error = weights @ gram @ weights - 2 * weights @ overlap + norm
    return weights, float(np.sqrt(max(error, 0) / norm))


def _overlap(n, g, m, h) -> np.ndarray:
    """Inner products [N, M] of p = (g + 1) i^g / n^(g + 1) on [0, n] and q, which has h and m."""
    n, g, m, h = n[:, None], g[:, None], m[None], h[None]
    longer = np.where(n > m, g, h)  # the exponent of the later one
    ratio = np.minimum(n, m) / np.maximum(n, m)
    return (g + 1) * (h + 1) / (g + h + 1) * ratio**longer / np.maximum(n, m)
