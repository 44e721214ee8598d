"""Our autoencoder against diffusers' own AutoencoderKL: one set of weights, one output."""

import dataclasses

import jax
import numpy as np
import pytest

from vitdiff_jax.interop import families
from vitdiff_jax.models.autoencoder import Autoencoder

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')
diffusers = pytest.importorskip("diffusers", reason='needs diffusers: pip install -e ".[parity]"')

from tests.parity.test_vit import difference, random_weights, tensors  # noqa: E402

pytestmark = pytest.mark.extra

TOLERANCE = 2e-5
"""Allowed max|difference| / max|output| in float32; measured 3e-6."""
CASES = {
    "two levels": dict(channels=(32, 64), blocks=1, latent=4),
    "one level, 3 channels": dict(channels=(32,), blocks=2, latent=3),
    "the third level is narrower": dict(channels=(32, 96, 64), blocks=2, latent=16),
}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
SD = dict(channels=(128, 256, 512, 512), blocks=2, latent=4)


def theirs(channels, blocks, latent):
    """diffusers' with random weights; biases and scales too are of the order of 1."""
    levels = len(channels)
    model = diffusers.AutoencoderKL(
        block_out_channels=channels, layers_per_block=blocks, latent_channels=latent,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip
    return random_weights(model.eval())


def imported(state):
    """(our network, its variables), from a state dict that they give back, bit by bit."""
    found, params = families.from_torch("autoencoder", state)
    back = families.to_torch("autoencoder", found, params)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name, strict=True)
    model = Autoencoder(**found.config["autoencoder"])
    model.check(found.shape)
    wanted = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *found.shape), "f4"))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted["params"])
    return model, {"params": params}


def compare(their_model, model, variables, height, width, batch):
    """Largest relative difference of mean, log-variance and decoded images."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)

    def apply(method, value):
        with jax.default_matmul_precision("highest"):
            return jax.jit(lambda v: model.apply(v, value, method=method))(variables)

    mean, log_variance = apply("encode", x)
    z = random.standard_normal(mean.shape, np.float32)
    with torch.no_grad():
        moments = their_model.encode(torch.from_numpy(x).permute(0, 3, 1, 2)).latent_dist
        unscaled = torch.from_numpy(z / np.float32(0.18215)).permute(0, 3, 1, 2)
        image = their_model.decode(unscaled).sample.permute(0, 2, 3, 1)
    log_variance -= 2 * np.log(np.float32(0.18215))
    found = [
        difference(mean / 0.18215, moments.mean.permute(0, 2, 3, 1)),
        difference(log_variance, moments.logvar.permute(0, 2, 3, 1)),
        difference(apply("decode", z), image),
    ]
    assert (moments.logvar.abs() < 20).float().mean() > 0.9  # not at the bounds
    return max(found)


@pytest.mark.parametrize("case", CASES)
def test_output_is_diffusers(case):
    """Encoded moments and decoded latents, also of images that are not square."""
    their_model = theirs(**CASES[case])
    model, variables = imported(tensors(their_model))
    height, width = (2 * model.factor, 3 * model.factor)
    assert compare(their_model, model, variables, height, width, 2) < TOLERANCE


def test_output_is_diffusers_where_features_are_small():
    """Of a variance like what GroupNorm adds to it, 1e-6."""
    their_model = theirs(**CASES["one level, 3 channels"])
    for half in (their_model.encoder, their_model.decoder):
        for weight in half.conv_in.parameters():
            weight.data *= 1e-3
    model, variables = imported(tensors(their_model))
    assert compare(their_model, model, variables, 4, 4, 2) < TOLERANCE


def test_stable_diffusions_own_size():
    """84 million parameters, one image of 64 px; it is the network that is built by default."""
    their_model = theirs(**SD)
    model, variables = imported(tensors(their_model))
    assert model == Autoencoder()
    assert compare(their_model, model, variables, 64, 64, 1) < TOLERANCE


def test_older_names_are_read_and_given_back():
    """Of the attention's layers, as in the files that most people have."""
    their_model = theirs(**CASES["two levels"])
    state = tensors(their_model)
    old = {}
    for name, tensor in state.items():
        for new, older in OLD.items():
            name = name.replace(f".{new}.", f".{older}.")
        old[name] = tensor
    assert old.keys() != state.keys()
    new_params = imported(state)[1]
    jax.tree.map(np.testing.assert_array_equal, imported(old)[1], new_params)


@pytest.mark.parametrize("case", ["two levels", "the third level is narrower"])
def test_the_authors_own_names_are_read_and_given_back(case):
    """As diffusers itself converts them: CompVis' autoencoder_kl.pth, Stable Diffusion's files."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    their_model = theirs(**CASES[case])
    found, params = families.from_torch("autoencoder", tensors(their_model))
    named = dataclasses.replace(found, config={**found.config, "layout": "compvis"})
    original = families.to_torch("autoencoder", named, params)
    state = {name: torch.from_numpy(tensor) for name, tensor in original.items()}
    under = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    converted = convert_ldm_vae_checkpoint(under, dict(their_model.config))
    wanted = tensors(their_model)
    assert converted.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(converted[name].numpy(), tensor, err_msg=name)
    lost = {"loss.logvar": np.zeros(()), "model.diffusion_model.out.weight": np.zeros(3)}
    again, same = families.from_torch("autoencoder", under | lost)
    assert (again.config["layout"], again.prefix) == ("compvis", "first_stage_model.")
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_extreme_variances_are_clipped_like_theirs():
    """A log-variance beyond 20 or below -30 is these, before latents are scaled."""
    their_model = theirs(**CASES["two levels"])
    with torch.no_grad():
        their_model.quant_conv.bias[4:] = torch.tensor([100.0, -100.0, 0.0, 0.0])
    model, variables = imported(tensors(their_model))
    x = np.zeros((1, 4, 4, 3), np.float32)
    _, log_variance = model.apply(variables, x, method="encode")
    with torch.no_grad():
        wanted = their_model.encode(torch.zeros(1, 3, 4, 4)).latent_dist.logvar
    wanted = wanted.permute(0, 2, 3, 1).numpy() + 2 * np.log(0.18215)
    assert wanted[..., 0].min() == wanted[..., 0].max() != wanted[..., 2].max()
    np.testing.assert_allclose(log_variance, wanted, rtol=1e-4)
