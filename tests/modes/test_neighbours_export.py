"""The names of exported tensors, of whatever way a network has come."""

import json

import pytest
from etils import epath

from vitdiff_jax.modes import export

PUBLISHED = {"jit": "net.", "dit": "", "sit": "", "uvit": ""}
"""What is in front of the names of tensors in the authors' files."""


@pytest.mark.parametrize("family", PUBLISHED)
def test_what_was_imported_has_its_own_prefix(tmp_path, family):
    about = {"family": f"{family}:size=8x8", "prefix": "module."}
    (tmp_path / "imported.json").write_text(json.dumps(about))
    assert export._prefix(epath.Path(tmp_path), family) == "module."


@pytest.mark.parametrize("about", [None, {"family": None}, {"family": "other", "prefix": "a."}])
@pytest.mark.parametrize("family", PUBLISHED)
def test_another_network_has_that_of_published_files(tmp_path, family, about):
    """Trained or fine-tuned here, imported from our own export, or from another family."""
    if about:
        (tmp_path / "imported.json").write_text(json.dumps(about))
    assert export._prefix(epath.Path(tmp_path), family) == PUBLISHED[family]
