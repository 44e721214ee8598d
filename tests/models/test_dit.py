"""DiT by what is its own; `parity` has DiT itself, and `test_denoisers.py` the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny_models import compiled, denoiser, inputs, random_params, tiny_params


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
