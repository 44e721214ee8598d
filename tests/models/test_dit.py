"""DiT by what is its own; `parity` has DiT itself, and `test_denoisers.py` the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny_models import (
    SHAPE,
    compiled,
    count,
    denoiser,
    inputs,
    random_params,
    tiny_params,
)
from vitdiff_jax.models.dit import Model


@pytest.mark.parametrize(
    ("size", "published"), [("S", 33e6), ("B", 130e6), ("L", 458e6), ("XL", 675e6)]
)
def test_sizes_are_the_published_ones(size, published):
    """Parameters of DiT-S/2 to XL/2 (arXiv:2212.09748, table 4), to 1 %."""
    model = Model(conditions={"label": (1000,)}, size=size, learned_sigma=True, scan=True)
    assert abs(count(model, (32, 32, 4)) / published - 1) < 0.01


def test_tokens_of_a_text_are_cut_off():
    """Without blocks (all zero, so are their gates) a patch of the image sees itself alone."""
    params = tiny_params("dit", "all")
    params = {k: jax.tree.map(jnp.zeros_like, v) if "block" in k else v for k, v in params.items()}
    (x, time, cond), apply = inputs("all"), compiled("dit", "all")
    plain = np.asarray(apply(params, x, time, cond))
    moved = np.asarray(apply(params, x.at[:, 3, 5].add(1.0), time, cond)) != plain
    assert moved[:, 2:, 4:].any((1, 2, 3)).all()
    assert not moved[:, :2].any()
    assert not moved[:, :, :4].any()


@pytest.mark.slow
def test_bytes_after_the_end_of_a_text_are_not_there():
    """A text of half the room, whose other half is masked, is the same text in a smaller room."""
    wide, narrow = (denoiser("dit", conditions={"text": (room,)}) for room in (16, 8))
    (x, time, _), params = inputs(), random_params(wide)
    text = np.full((3, 16), -1)
    text[:, :7] = 65 + np.arange(21).reshape(3, 7)

    def images(model, params, text):
        return jax.jit(model.apply)({"params": params}, x, time, {"text": jnp.asarray(text)})

    encoder = params["conditions"]["text"]
    short = encoder | {"positions": encoder["positions"][:2]}
    shorter = params | {"conditions": params["conditions"] | {"text": short}}
    found = images(narrow, shorter, text[:, :8])
    np.testing.assert_allclose(found, images(wide, params, text), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=3), "heads: 3 does not divide the width 16"),
        (dict(width=18), "width: 18 is not a multiple of 4"),
        (dict(depth=0), "depth: 0"),
        (dict(mlp_ratio=0.05), "mlp_ratio: 0.05"),
        (dict(size="H"), "size: 'H' is not one of S, B, L, XL"),
        (dict(text_depth=0), "text_depth: 0"),
    ],
)
def test_check_names_the_option(options, message):
    """One line that starts with the key, before anything is compiled."""
    with pytest.raises(ValueError, match=f"^{message}"):
        denoiser("dit", **options).check(SHAPE)
