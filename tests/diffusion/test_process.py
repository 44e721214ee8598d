"""Predictions, losses and denoisers, against the formulas of the papers they come from.

`Process` has one formula for everything. Here each prediction is written out as its paper has it,
in NumPy and float64, with the schedule's slopes from central differences.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import SCHEDULES, covering
from vitdiff_jax.diffusion.process import PREDICTIONS, Process
from vitdiff_jax.diffusion.schedules import EDM, Cosine, DiscreteVP, LinearVP, RectifiedFlow

RANDOM = np.random.default_rng(0)
SHAPE = (7, 2, 3, 1)
X, EPS, OUT = (RANDOM.standard_normal(SHAPE) for _ in range(3))
T = np.array([0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
COMBINATIONS = [
    (schedule, prediction)
    for schedule in SCHEDULES
    for prediction in PREDICTIONS
    if prediction != "eps" or isinstance(schedule, (LinearVP, DiscreteVP, EDM))  # alpha(1) > 0
]


def images(values):
    """Values per image [B] to multiply images [B, H, W, C]."""
    return np.asarray(values, np.float64)[:, None, None, None]


class Papers:
    """Each prediction as its paper has it, at the times T of one schedule."""

    def __init__(self, schedule):
        alpha, sigma = schedule.alpha_sigma(jnp.asarray(T))
        self.alpha, self.sigma = images(alpha), images(sigma)
        after, before = (schedule.alpha_sigma(jnp.asarray(T + h)) for h in (1e-6, -1e-6))
        self.slopes = [images((a - b) / 2e-6) for a, b in zip(after, before)]
        self.sigma_data = getattr(schedule, "sigma_data", 0.5)
        self.x_t = self.alpha * X + self.sigma * EPS

    def edm(self):
        """(c_skip, c_out, y): y = x + r eps has EDM's form, with the noise r = sigma / alpha."""
        r, data = self.sigma / self.alpha, self.sigma_data
        c_skip = data**2 / (r**2 + data**2)
        return c_skip, r * data / np.sqrt(r**2 + data**2), self.x_t / self.alpha

    def x_from(self, prediction, out):
        """The estimate of x that a network's output stands for."""
        alpha, sigma, x_t = self.alpha, self.sigma, self.x_t
        if prediction == "x":
            return out
        if prediction == "eps":  # arXiv:2006.11239, eq. 15
            return (x_t - sigma * out) / alpha
        if prediction == "v":  # arXiv:2202.00512, appendix D; alpha^2 + sigma^2 is 1 there
            return (alpha * x_t - sigma * out) / (alpha**2 + sigma**2)
        if prediction == "u":  # Cramer's rule on x_t = alpha x + sigma eps and its derivative
            d_alpha, d_sigma = self.slopes
            return (d_sigma * x_t - sigma * out) / (alpha * d_sigma - sigma * d_alpha)
        c_skip, c_out, y = self.edm()  # arXiv:2206.00364, eq. 7
        return c_skip * y + c_out * out

    def to(self, space, x):
        """What a prediction in `space` is when x is (the estimate of) the image in x_t."""
        eps = (self.x_t - self.alpha * x) / self.sigma
        if space == "edm":
            c_skip, c_out, y = self.edm()
            return (x - c_skip * y) / c_out
        d_alpha, d_sigma = self.slopes
        return {
            "x": x,
            "eps": eps,
            "v": self.alpha * eps - self.sigma * x,
            "u": d_alpha * x + d_sigma * eps,
        }[space]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("schedule", "prediction"), covering(COMBINATIONS), ids=str)
def test_predictions_are_their_papers(schedule, prediction):
    """The target of a perfect network, and the x that any output stands for."""
    papers, process = Papers(schedule), Process(schedule, prediction)
    np.testing.assert_allclose(process.add_noise(X, EPS, jnp.asarray(T)), papers.x_t, rtol=1e-12)
    target = process.target(X, EPS, jnp.asarray(T))
    np.testing.assert_allclose(target, papers.to(prediction, X), rtol=1e-6, atol=1e-8)
    found = process.to_x(OUT, papers.x_t, jnp.asarray(T))
    np.testing.assert_allclose(found, papers.x_from(prediction, OUT), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("schedule", "prediction"), covering(COMBINATIONS), ids=str)
def test_the_target_stands_for_the_image(schedule, prediction):
    """to_x(target) is x, also in t = 0 and 1 wherever the prediction is not singular."""
    t = np.append(T, {"x": [1.0], "u": [1.0], "eps": [1.0]}.get(prediction, [0.0, 1.0]))
    x, eps = (RANDOM.standard_normal((len(t), *SHAPE[1:])) for _ in range(2))
    process, t = Process(schedule, prediction), jnp.asarray(t)
    found = process.to_x(process.target(x, eps, t), process.add_noise(x, eps, t), t)
    np.testing.assert_allclose(found, x, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_x_is_the_output_where_no_noise_is(schedule):
    """x divides by sigma, which is 0 at t = 0: floored there, in float32 too."""
    out = jnp.asarray(OUT[:1], jnp.float32)
    found = Process(schedule, "x").to_x(out, 3 * out, jnp.zeros(1))
    np.testing.assert_allclose(found, out, rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_eps_is_refused_where_it_does_not_determine_x(schedule):
    """At alpha(1) = 0, x_t = eps says nothing about x."""
    if schedule.alpha_sigma(jnp.ones(()))[0] > 0:
        Process(schedule, "eps")
        return
    with pytest.raises(ValueError, match=r"^prediction: eps .* t = 1"):
        Process(schedule, "eps")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prediction="z"), "prediction: 'z'"),
        (dict(loss_space="velocity"), "loss_space: 'velocity'"),
        (dict(min_snr=-1.0), "min_snr: -1.0"),
        (dict(floor=1.0), "floor: 1.0"),
        (dict(floor=0.05, prediction="v"), "floor: .* x prediction"),
        (dict(floor=0.05, loss_space="v"), "floor: .* x prediction"),
        (dict(floor=0.05, schedule=Cosine()), "floor: .* x prediction on RectifiedFlow"),
        (dict(floor=0.05, learned_variance=1000), "floor: not supported with a learned variance"),
        (dict(learned_variance=-1), "learned_variance: a chain of -1 steps is too short"),
        (dict(learned_variance=1), "learned_variance: a chain of 1 steps is too short"),
        (dict(learned_variance=9, schedule=EDM()), r"learned_variance: .* EDM has sigma\(0\) > 0"),
        (dict(learned_variance=250, schedule=DiscreteVP()), "learned_variance: 250 must equal"),
    ],
)
def test_what_cannot_work_is_refused_with_the_key(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Process(**dict(schedule=RectifiedFlow()) | options)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("schedule", "prediction", "space"),
    covering((*c, space) for c in COMBINATIONS for space in PREDICTIONS),
    ids=str,
)
def test_loss_is_the_squared_error_in_its_space(schedule, prediction, space):
    """Per image: both the output and the truth converted to the space, and compared there."""
    papers = Papers(schedule)
    found = Process(schedule, prediction, space).loss(OUT, X, EPS, jnp.asarray(T))
    error = papers.to(space, papers.x_from(prediction, OUT)) - papers.to(space, X)
    np.testing.assert_allclose(found, (error**2).mean((1, 2, 3)), rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
def test_loss_is_jits(noise_scale):
    """arXiv:2511.13720 in its own direction, 1 - t: v = (x - z) / max(1 - t, 0.05), both times."""
    schedule = RectifiedFlow(noise_scale)
    t = 1 - np.array([0.001, 0.02, 0.049, 0.051, 0.3, 0.8, 1.0])  # theirs
    z = images(t) * X + images(1 - t) * noise_scale * EPS
    bounded = images(np.maximum(1 - t, 0.05))
    wanted = (((X - z) / bounded - (OUT - z) / bounded) ** 2).mean((1, 2, 3))
    found = Process(schedule, "x", "u", floor=0.05).loss(OUT, X, EPS, jnp.asarray(1 - t))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_loss_is_edms():
    """lambda(sigma) |D - x|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    schedule = EDM()
    sigma = images(schedule.alpha_sigma(jnp.asarray(T))[1])
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    wanted = (weight * (OUT - X) ** 2).mean((1, 2, 3))
    found = Process(schedule, "x", "edm").loss(OUT, X, EPS, jnp.asarray(T))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize(
    ("prediction", "paper"),
    [
        ("x", lambda snr, gamma: np.minimum(snr, gamma)),
        ("eps", lambda snr, gamma: np.minimum(snr, gamma) / snr),
        ("v", lambda snr, gamma: np.minimum(snr, gamma) / (snr + 1)),
    ],
)
def test_min_snr_is_the_papers(prediction, paper, gamma):
    """The weights of the network's own error in arXiv:2303.09556, section 3.4."""
    alpha, sigma = LinearVP().alpha_sigma(jnp.asarray(T))
    process = Process(LinearVP(), prediction, "eps", min_snr=gamma)
    wanted = paper(np.asarray(alpha**2 / sigma**2), gamma)
    assert (wanted != wanted[0]).any()
    np.testing.assert_allclose(process.loss_weight(jnp.asarray(T)), wanted, rtol=1e-9)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=str)
def test_min_snr_is_finite_where_there_is_no_signal(schedule):
    """At t = 1 the factor gamma / SNR is infinite, its minimum with 1 is not."""
    weight = Process(schedule, "v", "v", min_snr=5.0).loss_weight(jnp.ones(1))
    np.testing.assert_array_equal(weight, [1])


@pytest.mark.usefixtures("x64")
def test_edm_denoiser_is_the_papers():
    """D = c_skip x + c_out F(c_in x, c_noise) with all of table 1 of arXiv:2206.00364."""
    schedule = EDM(sigma_data=0.7)
    t = jnp.asarray(T)
    sigma, data = np.asarray(schedule.alpha_sigma(t)[1]), 0.7

    def network(x, time):
        return np.tanh(x) + images(time)

    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / np.sqrt(sigma**2 + data**2)
    c_in = 1 / np.sqrt(sigma**2 + data**2)
    wanted = images(c_skip) * X + images(c_out) * network(images(c_in) * X, np.log(sigma) / 4)
    found = Process(schedule, "edm").denoiser(network)(X, t)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_floored_denoiser_has_jits_velocity():
    """Samplers derive (x_t - x_hat) / t; JiT's sampler divides by max(t, 0.05) instead."""
    t = np.array([0.001, 0.01, 0.03, 0.049, 0.051, 0.5, 1.0])
    denoise = Process(RectifiedFlow(), "x", floor=0.05).denoiser(lambda x, time: OUT)
    found = (X - denoise(X, jnp.asarray(t))) / images(t)
    np.testing.assert_allclose(found, (X - OUT) / images(np.maximum(t, 0.05)), rtol=1e-9)


LEARNED = Process(DiscreteVP(), "eps", "eps", learned_variance=1000)
BOTH = np.concatenate([OUT, X], -1)  # what a network with a variance puts out


def test_the_first_half_of_the_channels_is_the_prediction():
    """All that Process makes of the output is as without the other half."""
    plain, t = Process(DiscreteVP(), "eps", "eps"), jnp.asarray(T)
    np.testing.assert_array_equal(LEARNED.to_x(BOTH, EPS, t), plain.to_x(OUT, EPS, t))
    denoise, alone = (
        process.denoiser(lambda x, time, out=out: out * x.mean() + time.mean())
        for process, out in ((LEARNED, BOTH), (plain, OUT))
    )
    np.testing.assert_allclose(denoise(X, t), alone(X, t), rtol=1e-5)


def test_the_second_half_is_the_fraction_of_the_log_variance():
    """(v + 1) / 2 (arXiv:2102.09672, eq. 15, in DiT's range), of the estimate's call."""
    asked = []

    def network(x, time):
        asked.append((np.asarray(x), np.asarray(time)))
        return BOTH

    found = LEARNED.variance(network)(jnp.asarray(EPS), jnp.asarray(T))
    np.testing.assert_allclose(found, (X + 1) / 2, rtol=1e-6)
    LEARNED.denoiser(network)(jnp.asarray(EPS), jnp.asarray(T))
    for first, second in zip(*asked):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("out", [OUT, np.concatenate([BOTH, OUT], -1)], ids=["1", "3"])
def test_a_network_without_the_variance_is_refused(out):
    t = jnp.asarray(T)
    wrong = r"^learned_variance: with 1000 the network must output 2 channels .* not [13]$"
    for use in (
        lambda: LEARNED.loss(out, X, EPS, t),
        lambda: LEARNED.denoiser(lambda x, time: out)(X, t),
        lambda: LEARNED.variance(lambda x, time: out)(X, t),
    ):
        with pytest.raises(ValueError, match=wrong):
            use()


def test_a_variance_that_nobody_wants_is_not_looked_at():
    """As in the published SiT; but other numbers of channels are refused, not broadcast."""
    plain, t = Process(DiscreteVP()), jnp.asarray(T)
    np.testing.assert_array_equal(plain.loss(BOTH, X, EPS, t), plain.loss(OUT, X, EPS, t))
    np.testing.assert_array_equal(plain.to_x(BOTH, X, t), plain.to_x(OUT, X, t))
    three = np.concatenate([BOTH, OUT], -1)
    with pytest.raises(ValueError, match=r"^learned_variance: with 0 .* 1 channels .* not 3$"):
        plain.loss(three, X, EPS, t)
    with pytest.raises(ValueError, match=r"^learned_variance: is 0"):
        Process(DiscreteVP()).variance(lambda x, time: BOTH)
