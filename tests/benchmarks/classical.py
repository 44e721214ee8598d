"""What methods without a network make of the images that `--mode=restore` compares methods on.

    python tests/benchmarks/classical.py --workdir=runs/scenes
        [--tune 8] [--config.restore.tasks="('dps/box','denoise')"] [--config.restore.metrics=...]

Same held-out images, degradation, noise and measures, hence the same row "degraded"; the table has
`restore`'s form and stands in {workdir}/classical.json. scikit-image does the work but for OpenCV's
inpainting, Pillow's enlarging and the steps of total variation here. Nothing is chosen on the
held-out images: a method knows the noise, or its one option is the best in PSNR on a few training
images with degradation of their own (printed with the method, "tv:weight=0.03"). The seconds are
those of about one core, and of few images mostly of compiling the operator.

    noise             wavelets (BayesShrink), non-local means, both told the noise; total variation
    blur              Wiener's filter with the known kernel, total variation
    fewer pixels      bicubic enlarging, total variation
    missing pixels    Telea's and Navier-Stokes inpainting, biharmonic, total variation
    Fourier samples   the rest zero, total variation
    Radon             filtered back-projection, total variation
    JPEG              total variation of the picture
    others            total variation where the degradation is linear

Total variation is argmin_x |y - A x|^2 / (2 |A|^2) + weight TV(x), each channel on its own.
"""

import argparse
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from skimage import restoration as skimage
from skimage.transform import iradon

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vitdiff_jax.data import pipeline  # noqa: E402
from vitdiff_jax.evaluation.metric import Setting  # noqa: E402
from vitdiff_jax.evaluation.psnr import psnr  # noqa: E402
from vitdiff_jax.experiment import build as experiment_lib  # noqa: E402
from vitdiff_jax.experiment import config as config_lib  # noqa: E402 - needs the path above
from vitdiff_jax.inference import benchmark, tasks  # noqa: E402
from vitdiff_jax.interop.images import from_uint8, to_uint8  # noqa: E402
from vitdiff_jax.operators import adjoint, inverse  # noqa: E402
from vitdiff_jax.operators.blur import Circular, Convolution  # noqa: E402
from vitdiff_jax.operators.denoise import Identity  # noqa: E402
from vitdiff_jax.operators.fourier import FourierMask  # noqa: E402
from vitdiff_jax.operators.jpeg import Jpeg  # noqa: E402
from vitdiff_jax.operators.kronecker import Kronecker  # noqa: E402
from vitdiff_jax.operators.mask import Mask  # noqa: E402
from vitdiff_jax.operators.radon import Radon  # noqa: E402
from vitdiff_jax.runtime import parallel, tables  # noqa: E402

WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Of total variation."""
BALANCES = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
"""Of smoothness and data in Wiener's filter."""
FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
"""Of back-projection, from sharp to smooth."""
STEPS = 100
"""Accelerated proximal steps of total variation."""
TUNING_SEED = 10**6
"""The first seed of the training images' degradation: no held-out image has it."""

Case = tasks.InverseProblem
Repair = Callable[..., np.ndarray]
"""(case, option's value if there is one) -> images [N, H, W, C] in [-1, 1]."""


def methods(case: Case) -> Iterator[tuple[str, Repair, str, tuple]]:
    """(name, function, its option, values to choose from; both empty: none) of a degradation."""
    operator = case.operator
    if isinstance(operator, Identity) and case.noise_std:
        yield "wavelet", wavelet, "", ()
        yield "nl-means", nl_means, "", ()
    if is_blur(operator):
        yield "wiener", wiener, "balance", BALANCES
    if isinstance(operator, Kronecker) and len(operator.rows) < operator.rows.shape[1]:
        yield "bicubic", bicubic, "", ()
    if isinstance(operator, Mask):
        yield "telea", functools.partial(opencv, cv2.INPAINT_TELEA), "", ()
        yield "navier-stokes", functools.partial(opencv, cv2.INPAINT_NS), "", ()
        yield "biharmonic", biharmonic, "", ()
    if isinstance(operator, FourierMask):
        yield "zero-filled", zero_filled, "", ()
    if isinstance(operator, Radon):
        yield "back-projection", back_projection, "filter", FILTERS
    if isinstance(operator, (Identity, Jpeg)):
        yield "tv", smoothed, "weight", WEIGHTS
    elif operator.linear:
        yield "tv", total_variation, "weight", WEIGHTS


def is_blur(operator: Any) -> bool:
    """Whether it has a kernel, and does not change the images' shape."""
    if isinstance(operator, Kronecker):
        square = all(a.shape[0] == a.shape[1] for a in (operator.rows, operator.columns))
        return square and operator.channels.shape[0] == operator.channels.shape[1]
    return isinstance(operator, (Circular, Convolution))


def wavelet(case: Case) -> np.ndarray:
    """BayesShrink with the known noise, the mean over 16 shifts of the image."""
    options = dict(sigma=case.noise_std, method="BayesShrink", rescale_sigma=True, channel_axis=-1)
    spin = functools.partial(
        skimage.cycle_spin, func=skimage.denoise_wavelet, max_shifts=3, func_kw=options,
        workers=1, channel_axis=-1,
    )  # fmt: skip
    return np.stack([spin(image) for image in case.y])


def nl_means(case: Case) -> np.ndarray:
    """With the known noise, and the strength that scikit-image's manual gives for its fast mode."""
    options = dict(
        patch_size=5, patch_distance=6, fast_mode=True, channel_axis=-1, sigma=case.noise_std,
        h=0.8 * case.noise_std,
    )  # fmt: skip
    found = np.stack([skimage.denoise_nl_means(image, **options) for image in case.y])
    return found.reshape(case.y.shape)  # a single channel gets lost


def wiener(case: Case, balance: float) -> np.ndarray:
    """With the known kernel; a mirrored border is mirrored again, since the filter goes round."""
    height, width, channels = case.shape
    reach = min(height, width) // 2 - 1
    point = np.zeros((1, *case.shape), np.float32)
    point[0, height // 2, width // 2] = 1
    spread = np.asarray(case.operator.forward(jnp.asarray(point)))[0, ..., 0]
    middle = (slice(n // 2 - reach, n // 2 + reach + 1) for n in (height, width))
    kernel = spread[tuple(middle)]
    edge = 0 if isinstance(case.operator, Circular) else reach
    y = np.pad(case.y, [(0, 0), (edge, edge), (edge, edge), (0, 0)], mode="reflect")
    found = np.empty_like(y)
    for i in range(len(y)):
        for c in range(channels):
            found[i, ..., c] = skimage.wiener(y[i, ..., c], kernel, balance, clip=False)
    return found[:, edge : edge + height, edge : edge + width]


def bicubic(case: Case) -> np.ndarray:
    """Enlarged by Pillow."""
    size = case.shape[1], case.shape[0]
    found = np.empty((len(case.y), *case.shape), np.float32)
    for i, image in enumerate(case.y):
        for c in range(image.shape[2]):
            found[i, ..., c] = Image.fromarray(image[..., c]).resize(size, Image.Resampling.BICUBIC)
    return found


def opencv(how: int, case: Case) -> np.ndarray:
    """OpenCV's inpainting, which takes uint8; it looks 3 pixels far."""
    missing = np.asarray(case.operator.known)[..., 0] == 0
    pictures = np.asarray(to_uint8(case.y))
    found = [cv2.inpaint(p.squeeze(), missing.astype(np.uint8), 3, how) for p in pictures]
    return np.asarray(from_uint8(np.stack(found).reshape(pictures.shape)))


def biharmonic(case: Case) -> np.ndarray:
    """The smoothest surface through what is known."""
    missing = np.asarray(case.operator.known)[..., 0] == 0
    options = dict(channel_axis=-1, split_into_regions=False)
    return np.stack([skimage.inpaint_biharmonic(image, missing, **options) for image in case.y])


def zero_filled(case: Case) -> np.ndarray:
    """The samples that were not taken are zero."""
    return np.asarray(adjoint(case.operator, jnp.asarray(case.y), case.shape))


def back_projection(case: Case, filter: str) -> np.ndarray:
    """Of images in [0, 1], black where no line went. scikit-image's sinogram is ours times N."""
    cosine, sine = np.asarray(case.operator.directions).T
    white = np.asarray(case.operator.forward(jnp.ones((1, *case.shape))))
    y = (case.y + white) / 2 * case.shape[0]  # [N, W, angles, C]
    options = dict(
        theta=np.degrees(np.arctan2(sine, cosine)), filter_name=filter, circle=False,
        output_size=case.shape[0],
    )  # fmt: skip
    found = [
        np.stack([iradon(image[..., c], **options) for c in range(case.shape[2])], -1)
        for image in y
    ]
    return 2 * np.stack(found) - 1


def smoothed(case: Case, weight: float) -> np.ndarray:
    """Total variation of the picture itself."""
    return tv_of(case.images, weight)


def tv_of(images: np.ndarray, weight: float) -> np.ndarray:
    """argmin_x |image - x|^2 / 2 + weight TV(x) of each image and channel (Chambolle, 2004)."""
    options = dict(weight=weight, max_num_iter=50, channel_axis=-1)
    return np.stack([skimage.denoise_tv_chambolle(image, **options) for image in images])


def total_variation(case: Case, weight: float) -> np.ndarray:
    """By FISTA (Beck and Teboulle, 2009) from what is seen of the images."""
    x = case.images.astype(np.float32)
    square = inverse.squared_norm(case.operator, jnp.asarray(x[:1]))

    ahead, momentum = x, 1.0
    for _ in range(STEPS):
        down = np.asarray(downhill(case.operator, ahead, case.y, square))
        new = tv_of(down, weight).astype(np.float32)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + np.float32((momentum - 1) / following) * (new - x)
        x, momentum = new, following
    return x


@jax.jit
def downhill(operator: Any, x: jax.Array, y: jax.Array, square: jax.Array) -> jax.Array:
    """A step down |y - A x|^2 / (2 |A|^2)."""
    return x - adjoint(operator, operator.forward(x) - y, x.shape[1:]) / square


def tuned(task: str, repair: Repair, values: tuple, x: np.ndarray, noise_std: float) -> Any:
    """The value with the best mean PSNR on training images [N, H, W, C], an operator each."""
    cases = [
        tasks.from_clean(x[i : i + 1], task, None, noise_std, np.array([TUNING_SEED + i]))
        for i in range(len(x))
    ]
    truth = np.asarray(to_uint8(x))

    def quality(value):
        found = np.concatenate([repair(case, value) for case in cases])
        return psnr(np.asarray(to_uint8(found)), truth).mean()

    return max(values, key=quality)


def rows_of(task: str, config: Any, data: pipeline.Dataset, metrics: list, training: np.ndarray):
    """A row for the degraded images, and one for each method that serves the task."""
    measured = functools.partial(benchmark.measured, measures=metrics)
    parts = list(benchmark.degraded(task, config.restore, data))
    truth, cases = [part[0] for part in parts], [part[1] for part in parts]
    noise_std, count = cases[0].noise_std, sum(map(len, truth))
    about = {"task": task, "noise_std": noise_std}
    yield about | {"method": "degraded"} | measured([part[2] for part in parts], truth)
    for name, repair, option, values in methods(cases[0]):
        if option:
            value = tuned(task, repair, values, training, noise_std)
            name, repair = f"{name}:{option}={value}", functools.partial(repair, **{option: value})
        start = time.monotonic()
        found = [repair(case) for case in cases]
        costs = {"seconds": round((time.monotonic() - start) / count, 3), "network_calls": 0}
        print(f"{task}, {name}: {count} images, {costs['seconds']} s each", flush=True)
        yield about | {"method": name} | costs | measured(found, truth)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--tune", type=int, default=8, help="training images to choose options on")
    args, overrides = parser.parse_known_args()
    config = config_lib.read(args.workdir / "config.json", overrides)
    if not config.restore.tasks:
        raise config_lib.ConfigError("config.restore.tasks: empty, there is nothing to compare on")
    data = experiment_lib.clean_dataset(config)
    part = next(pipeline.ordered_batches(data.train, range(args.tune), args.tune))
    training = np.asarray(from_uint8(part["image"]))
    setting = Setting(lambda: data, parallel.make_mesh())
    metrics = benchmark.metrics(config.restore.metrics, lambda: setting)
    rows = []
    for task in config.restore.tasks:
        for row in rows_of(task, config, data, metrics, training):
            rows.append(row)
            report = {"rows": rows, "images": config.restore.images, "tuned_on": args.tune}
            tables.write(args.workdir / "classical.json", report)
    print(*tables.aligned(tables.of_restoration(rows)), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except config_lib.ConfigError as error:
        sys.exit(f"error: {error}")
