"""How well a trained model denoises at each noise level, beside what its data allow.

    python tests/benchmarks/noise_levels.py --workdir=runs/digits [--images 1000]

The RMSE of E[x | x_t] on held-out images over the noise level sigma / alpha, so 1 for the noisy
image itself, of

    model     its EMA, with its conditions, no guidance
    wiener    the best affine estimate: Gaussian images with the mean and covariance of the training
              images, of each class where there are classes. A network has to be better
    nearest   the posterior mean where the training images, of the class, are all the images there
              are. At high noise it is hard to beat, at low noise nothing that was memorised helps
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vitdiff_jax.data.pipeline import stacked  # noqa: E402
from vitdiff_jax.experiment import build  # noqa: E402
from vitdiff_jax.inference import loading, sampling  # noqa: E402

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MOST = 20_000
"""Training images of a class that the bounds use, at most."""


def wiener(train: np.ndarray, noisy: np.ndarray, sigma: float) -> np.ndarray:
    """E[x | x + sigma n] [N, D] for Gaussian x with the moments of train [M, D]."""
    mean = train.mean(0)
    values, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
    gain = np.maximum(values, 0) / (np.maximum(values, 0) + sigma**2)
    return mean + ((noisy - mean) @ vectors * gain) @ vectors.T


def nearest(train: np.ndarray, noisy: np.ndarray, sigma: float) -> np.ndarray:
    """E[x | x + sigma n] [N, D] where x is one of train [M, D], each as likely."""
    distance = (train**2).sum(1) - 2 * noisy @ train.T
    weights = np.exp(-(distance - distance.min(1, keepdims=True)) / (2 * sigma**2))
    return weights / weights.sum(1, keepdims=True) @ train


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    model = loading.load(args.workdir)
    data = build.dataset(model.experiment.config)
    held = stacked(data.heldout, range(min(args.images, len(data.heldout))))
    train = stacked(data.train)
    x, known = (a.pop("image").astype(np.float32) / 127.5 - 1 for a in (held, train))
    classes = held.get("label", np.zeros(len(x))), train.get("label", np.zeros(len(known)))
    cond = {name: jnp.asarray(held[name]) for name in model.experiment.conditions}
    denoise_of = sampling.guided(model.experiment, model.experiment.config.sample)
    denoise = jax.jit(lambda weights, x, t: denoise_of(weights, cond)(x, t))
    schedule = model.experiment.process.schedule
    print(f"step {model.step}, {len(x)} held-out images; RMSE over the noise level")
    print(f"{'level':>6} {'model':>7} {'wiener':>7} {'nearest':>7}")
    for sigma in LEVELS:
        t = schedule.t_from_logsnr(jnp.float32(-2 * np.log(sigma)))
        alpha = float(schedule.alpha_sigma(t)[0])
        noisy = x + sigma * np.random.default_rng(0).standard_normal(x.shape, np.float32)
        flat = {"model": np.asarray(denoise(model.weights, alpha * noisy, jnp.full(len(x), t)))}
        for name, bound in (("wiener", wiener), ("nearest", nearest)):
            flat[name] = np.zeros_like(x)
            for label in np.unique(classes[0]):
                own, same = classes[0] == label, known[classes[1] == label][:MOST]
                images = same.reshape(len(same), -1), noisy[own].reshape(own.sum(), -1)
                flat[name][own] = bound(*images, sigma).reshape(-1, *x.shape[1:])
        errors = [float(np.sqrt(np.mean((found - x) ** 2))) / sigma for found in flat.values()]
        print(f"{sigma:6g}", *(f"{error:7.3f}" for error in errors), flush=True)


if __name__ == "__main__":
    main()
