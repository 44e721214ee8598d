"""Moving averages of the parameters, and others of any width made from them afterwards.

An average is called by its decay, "0.9999" (exponential, with warm-up), or by its width,
"width0.05": after step n it weighs the parameters of step i by i^gamma (arXiv:2312.02696, eq. 4),

    average_n = d average_(n-1) + (1 - d) params_n,   d = (1 - 1/n)^(gamma + 1)

and the standard deviation of these weights is `width` times n. Where such averages of one or two
widths were kept at several steps, a sum of them comes close to that of any width (section 3.2
there): `blend` finds the shares.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

WIDEST = 12**-0.5
"""Equal weights, gamma = 0."""


def decay_name(decay: float) -> str:
    """What checkpoints call an exponential average: 0.9999 -> "0.9999"."""
    return repr(float(decay))


def width_name(width: float) -> str:
    """What checkpoints call a power-function average: 0.05 -> "width0.05"."""
    return f"width{float(width)!r}"


def gamma(width: float) -> float:
    """The power whose weights i^gamma have this relative width, in (0, WIDEST]."""
    # width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): one root is larger than -1
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


def decay(name: str, step: jax.Array) -> jax.Array:
    """How much of the average `name` stays at a step, the first of which is number 0."""
    if name.startswith("width"):
        power = gamma(float(name.removeprefix("width"))) + 1
        return (1 - 1 / (step + 1)) ** power
    # Warm-up: a short run must not sample what is mostly its initial weights.
    return jnp.minimum(float(name), (1 + step) / (10 + step))


def blend(kept: Sequence[tuple[int, float]], step: int, width: float) -> tuple[np.ndarray, float]:
    """Shares of kept averages (step, width) that come closest to the width at a step.

    Closest in the weights that they give to the parameters of each step, as functions of time, and
    their sum is 1, so that what did not change stays;
    the second result is how far they are from the wanted ones, as a share of these (root mean
    square). Averages that were kept after `step` cannot be told apart from it and are refused.
    """
    times, powers = np.array([(n, gamma(w)) for n, w in kept], np.float64).reshape(-1, 2).T
    if len(times) == 0 or times.max() > step:
        raise ValueError(f"no averages kept up to step {step}, and none later, were given")
    target = np.array([step], np.float64), np.array([gamma(width)])
    gram, wanted = _overlap(times, powers, times, powers), _overlap(times, powers, *target)[:, 0]
    whole, n = _overlap(*target, *target)[0, 0], len(kept)
    # With a multiplier for their sum; relative to `whole`, so that all entries are of one size.
    system = np.pad(gram / whole, (0, 1), constant_values=1)
    system[n, n] = 0
    shares = np.linalg.lstsq(system, np.append(wanted / whole, 1), rcond=1e-12)[0][:n]
    left = shares @ gram @ shares - 2 * shares @ wanted + whole
    return shares, float(np.sqrt(max(left, 0) / whole))


def _overlap(n, g, m, h) -> np.ndarray:
    """Integrals [N, M] of p q, where p = (g + 1) i^g / n^(g + 1) up to n, and q so with h and m."""
    n, g, m, h = n[:, None], g[:, None], m[None], h[None]
    longer = np.where(n > m, g, h)  # the power of what reaches farther
    ratio = np.minimum(n, m) / np.maximum(n, m)
    return (g + 1) * (h + 1) / (g + h + 1) * ratio**longer / np.maximum(n, m)
