"""SDEdit: moments on Gaussian images, its two ends, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import quick
from tests.restoration import recursions
from tests.restoration.gaussians import PRIORS, SHAPE, SIZE, affine, problem
from tests.samplers.known import FOUR_SCHEDULES, keys, numbers
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM
from vitdiff_jax.restoration import sdedit

STEPS = 5
one_schedule = pytest.mark.parametrize("schedule", quick([EDM()], FOUR_SCHEDULES), ids=str)
IMAGE = np.random.default_rng(5).uniform(-1, 1, (3, *SHAPE))


def grid(schedule, strength_logsnr):
    """Times from a noise level in the middle of the range to the data."""
    times = grids.uniform_logsnr(schedule, STEPS, low=strength_logsnr, high=6)
    times[0] = float(schedule.t_from_logsnr(jnp.asarray(float(strength_logsnr))))
    return times


def mask():
    return (np.random.default_rng(6).random((*SHAPE[:2], 1)) < 0.4).astype(float)


def recursion(case, schedule, times, image, kept):
    """arXiv:2108.01073, algorithm 3: noised once; kept pixels put back, newly noised, each step."""
    kept = np.diag(np.broadcast_to(kept, SHAPE).ravel())
    free, eye = np.eye(SIZE) - kept, np.eye(SIZE)
    alpha, sigma = numbers(schedule, times[0])
    state = recursions.State(sigma)
    state.mean = alpha * image
    for t, s in recursions.pairs(schedule, times):
        (matrix, offset), (a, b, tau) = recursions.estimate(case, *t), recursions.ddim(t, s)
        noise = np.hstack([tau * free, s[1] * kept])
        state.go(free @ (a * matrix + b * eye), free @ (a * offset) + s[0] * kept @ image, noise)
    if end := recursions.clean_end(schedule, times):
        matrix, offset = recursions.estimate(case, *end)
        state.go(free @ matrix, free @ offset + kept @ image)
    return state.moments


def edit(denoise, schedule, times, x, keys, image, kept):
    return sdedit.edit(denoise, schedule, times, jnp.broadcast_to(image, x.shape), keys, kept)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@one_schedule
def test_moments_on_gaussian_images(schedule):
    """Also where the level is so high that next to nothing of the image is left."""
    for level, kept in ((-6, np.zeros((*SHAPE[:2], 1))), (0, mask())):
        for kind in PRIORS:
            case, times = problem("mask", kind), grid(schedule, level)
            wanted = recursion(case, schedule, times, IMAGE[0].ravel(), kept)
            arrays = dict(image=jnp.asarray(IMAGE[:1]), kept=jnp.asarray(kept))
            start = np.zeros(SIZE), np.eye(SIZE)  # is not looked at
            found = affine(edit, case.prior, schedule, times, 2 * STEPS + 1, start, arrays, {})
            np.testing.assert_allclose(found[0], wanted[0], atol=1e-9)
            np.testing.assert_allclose(found[1], wanted[1], atol=1e-9)


@pytest.mark.slow
@jax.disable_jit()
@one_schedule
def test_with_next_to_no_noise_the_image_comes_back(schedule):
    """The change vanishes with the noise that it starts from."""
    image, denoise = jnp.asarray(IMAGE, jnp.float32), PRIORS["full"].denoiser(schedule)
    changes = []
    for level in (4, 8, 12):
        t = float(schedule.t_from_logsnr(jnp.asarray(float(level))))
        found = sdedit.edit(denoise, schedule, np.array([t, t / 2, 0.0]), image, keys(3))
        changes.append(abs(np.asarray(found) - IMAGE).max() / np.exp(-level / 2))
    assert max(changes) < 5  # times the noise-to-signal ratio


@jax.disable_jit()
@one_schedule
def test_what_is_kept_comes_out_to_the_bit(schedule):
    """The same pixels for all images, or others for each."""
    image, denoise = jnp.asarray(IMAGE, jnp.float32), PRIORS["full"].denoiser(schedule)
    kept = np.random.default_rng(7).random((3, *SHAPE[:2], 1)) < 0.5
    for which in (kept, kept[0]):
        found = np.asarray(sdedit.edit(
            denoise, schedule, grid(schedule, -2), image, keys(3),
            kept=jnp.asarray(which, jnp.float32),
        ))  # fmt: skip
        stays = np.broadcast_to(which, IMAGE.shape)
        np.testing.assert_array_equal(found[stays], np.asarray(image)[stays])
        assert (abs(found - np.asarray(image))[~stays] > 1e-4).mean() > 0.95


@jax.disable_jit()
def test_an_image_depends_on_its_own_key_alone():
    """In batches of 1 and 3, with its own mask; and another key makes another image."""
    schedule, image = FOUR_SCHEDULES[0], jnp.asarray(IMAGE, jnp.float32)
    kept = jnp.asarray(np.random.default_rng(7).random((3, *SHAPE[:2], 1)) < 0.5, jnp.float32)
    denoise, times = PRIORS["full"].denoiser(schedule), grid(schedule, -2)

    def run(*given):
        return sdedit.edit(denoise, schedule, times, *given)

    whole = np.asarray(run(image, keys(3), kept))
    alone = run(image[1:2], keys(3)[1:2], kept[1:2])
    np.testing.assert_allclose(alone, whole[1:2], atol=1e-5)
    assert abs(np.asarray(run(image, keys(3, 20), kept)) - whole).max((1, 2, 3)).min() > 0.1
