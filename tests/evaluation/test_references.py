"""Files of reference statistics: ours, ADM's and torch-fidelity's; others are one clear line."""

import json
import re
import types
import zipfile

import numpy as np
import pytest

from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.evaluation import fid, kid, networks, references, sfid
from vitdiff_jax.evaluation.frechet import Moments
from vitdiff_jax.evaluation.metric import Batch, Measured, Part, Vectors
from vitdiff_jax.evaluation.references import References

RANDOM = np.random.default_rng(0)
POOL = RANDOM.standard_normal((20, 5)).astype(np.float32)
SPATIAL = RANDOM.standard_normal((20, 3)).astype(np.float32)
ADM = {
    "mu": POOL.mean(0), "sigma": np.cov(POOL.T),
    "mu_s": SPATIAL.mean(0), "sigma_s": np.cov(SPATIAL.T),
}  # fmt: skip


class Fake(networks.Network):
    """Stands for a network; gives POOL and SPATIAL for 20 images."""

    def __init__(self, name):
        self.name = name

    def __call__(self, batch):
        return {"pool": POOL, "spatial": SPATIAL}


INCEPTION, OTHER = Fake(networks.INCEPTION), Fake("other")


def metric(kind, network=INCEPTION):
    return kind.Metric(types.SimpleNamespace(shared=lambda make, key=None: network))


def gaussian(file, output="pool", network=INCEPTION):
    return file.of(Part(network, output, Moments)).gaussian()


def assert_gaussian(found, vectors):
    mean, covariance = found
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, vectors.astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(vectors.astype(float).T), rtol=1e-6)


def refused(path):
    """The message of a file that is refused: one line that names it first."""
    with pytest.raises(DataError) as caught:
        References(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("network", [INCEPTION, OTHER])
def test_what_is_written_is_read(tmp_path, network):
    """With what it says about itself; under the names that ADM's evaluator reads."""
    path = tmp_path / "new" / "real.npz"
    measured = Measured(references.parts_of(network), 20)
    measured.update(Batch(np.zeros((20, 2, 2, 3), np.uint8)))
    references.write(path, network, measured, {"images": 20, "of": "digits"})
    file = References(path)
    assert file.about == {"images": 20, "of": "digits", "network": network.name}
    assert not file.has_images
    assert_gaussian(gaussian(file, network=network), POOL)
    np.testing.assert_array_equal(file.of(Part(network, "pool", Vectors)).vectors, POOL)
    names = {"about", "features", "mu", "sigma"}
    if network is INCEPTION:
        names |= {"mu_s", "sigma_s"}
        assert_gaussian(gaussian(file, "spatial"), SPATIAL)
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays.files) == names
        np.testing.assert_allclose(arrays["sigma"], np.cov(POOL.T.astype(float)), rtol=1e-9)
        assert json.loads(str(arrays["about"])) == file.about
    for kind in (fid, kid):
        assert file.lacks(metric(kind, network)) == []


def test_adms_file(tmp_path):
    """Without `about` it is of Inception; KID's vectors are not in it, its images may be."""
    np.savez(tmp_path / "adm.npz", **ADM)
    file = References(tmp_path / "adm.npz")
    assert (file.about, file.network, file.has_images) == ({}, networks.INCEPTION, False)
    assert_gaussian(gaussian(file), POOL)
    assert_gaussian(gaussian(file, "spatial"), SPATIAL)
    assert file.lacks(metric(fid)) == file.lacks(metric(sfid)) == []
    assert file.lacks(metric(kid)) == [Part(INCEPTION, "pool", Vectors)]
    np.savez(tmp_path / "images.npz", np.zeros((3, 4, 4, 3), np.uint8), **ADM)
    assert References(tmp_path / "images.npz").has_images


def test_jits_file_has_no_map(tmp_path):
    """Only mu and sigma, of which float32 is made float64."""
    np.savez(tmp_path / "jit.npz", **{name: np.float32(ADM[name]) for name in ("mu", "sigma")})
    file = References(tmp_path / "jit.npz")
    assert_gaussian(gaussian(file), POOL)
    assert file.lacks(metric(sfid)) == [Part(INCEPTION, "spatial", Moments)]


def test_images_alone(tmp_path):
    """As in ADM's files of samples: they are to be measured, and are not read here."""
    np.savez(tmp_path / "images.npz", np.zeros((3, 4, 4, 3), np.uint8))
    file = References(tmp_path / "images.npz")
    assert file.has_images
    assert file.lacks(metric(fid)) == [Part(INCEPTION, "pool", Moments)]


def test_vectors_alone_are_fitted(tmp_path):
    np.savez(tmp_path / "a.npz", features=POOL)
    file = References(tmp_path / "a.npz")
    assert_gaussian(gaussian(file), POOL)
    assert file.lacks(metric(kid)) == []


def test_a_metric_of_another_network_is_refused(tmp_path):
    """FID's network is no other, and the message says both, and what to do."""
    np.savez(tmp_path / "adm.npz", **ADM)
    about = np.array(json.dumps({"network": "other"}))
    np.savez(tmp_path / "other.npz", about=about, **ADM)
    for name, wrong in (("adm", metric(fid, OTHER)), ("other", metric(fid))):
        path = tmp_path / f"{name}.npz"
        with pytest.raises(DataError) as caught:
            References(path).lacks(wrong)
        for part in (str(path), networks.INCEPTION, "other", wrong.name, "--mode=statistics"):
            assert part in str(caught.value)
    assert References(tmp_path / "other.npz").lacks(metric(fid, OTHER)) == []


@pytest.mark.extra
def test_torch_fidelitys_files(tmp_path):
    """Statistics {mu, sigma} as NumPy arrays, and features as one tensor."""
    torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[torch]"')
    torch.save({"mu": ADM["mu"], "sigma": ADM["sigma"]}, tmp_path / "stat.pt")
    torch.save(torch.from_numpy(POOL), tmp_path / "features.pt")
    for name in ("stat", "features"):
        file = References(tmp_path / f"{name}.pt")
        assert file.network == networks.INCEPTION
        assert_gaussian(gaussian(file), POOL)
    np.testing.assert_array_equal(file.of(Part(INCEPTION, "pool", Vectors)).vectors, POOL)


WRONG = {
    "short sigma": (dict(mu=np.ones(3), sigma=np.eye(2)), r"mu has shape \(3,\)"),
    "flat sigma": (dict(mu=np.ones(4), sigma=np.ones(4)), r"sigma has invalid shape \(4,\)"),
    "square mu": (dict(mu=np.eye(3), sigma=np.eye(3)), r"mu has invalid shape \(3, 3\)"),
    "a number": (dict(mu=np.ones(()), sigma=np.ones(())), r"mu has invalid shape \(\)"),
    "map": (ADM | dict(mu_s=np.ones(4)), r"mu_s has shape \(4,\)"),
    "nan": (dict(mu=np.array([1, np.nan]), sigma=np.eye(2)), "mu is not finite"),
    "inf": (dict(mu=np.ones(2), sigma=np.full((2, 2), np.inf)), "is not finite"),
    "text": (dict(mu=np.array(["a"]), sigma=np.array([["b"]])), "mu"),
    "flat features": (dict(features=np.ones(5)), "features"),
    "no features": (dict(features=np.ones((0, 5))), "features"),
    "nan features": (dict(features=np.full((5, 2), np.nan)), "features"),
    "text features": (dict(features=np.array([["a"]])), "features"),
    "other features": (ADM | dict(features=np.ones((9, 7))), "features"),
    "half": (dict(mu=np.ones(3)), "has none of mu and sigma, features, or images arr_0"),
    "nothing": ({}, "has none of"),
    "about": (ADM | dict(about=np.array("{")), "the entry about is damaged"),
    "about a list": (ADM | dict(about=np.array("[1]")), "the entry about is damaged"),
    "pickle": (dict(mu=np.array([None]), sigma=np.eye(1)), "not a readable .npz file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_are_refused(tmp_path, case):
    arrays, message = WRONG[case]
    np.savez(tmp_path / "wrong.npz", **arrays)
    assert re.search(message, refused(tmp_path / "wrong.npz"))


@pytest.mark.parametrize(
    "suffix", [".npz", pytest.param(".pt", marks=pytest.mark.extra), ".safetensors"]
)
def test_no_files(tmp_path, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[torch]"')
    path = tmp_path / f"a{suffix}"
    assert "no such file of reference statistics" in refused(path)
    path.mkdir()
    assert "a folder, but a reference is a file of statistics" in refused(path)
    path.rmdir()
    for data in (b"", b"mu,sigma\n1,2\n" * 9):
        path.write_bytes(data)
        refused(path)


@pytest.mark.parametrize("suffix", [".npy", ".png", ".zip", ""])
def test_other_files_say_what_is_wanted(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"?")
    found = refused(path)
    assert f"a {suffix or 'plain'} file, but a reference is a file of statistics or images" in found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files(tmp_path, save):
    """Cut, and with any byte turned round: they are read as they were, or refused in one line."""
    whole = tmp_path / "whole.npz"
    save(whole, **ADM)
    data, path = whole.read_bytes(), tmp_path / "damaged.npz"
    for end in range(0, len(data), 97):
        path.write_bytes(data[:end])
        refused(path)
    refusals = 0
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            file = References(path)
        except DataError:
            refused(path)
            refusals += 1
        else:
            for output, _ in file.found:
                assert_gaussian(gaussian(file, output), dict(pool=POOL, spatial=SPATIAL)[output])
    assert refusals > len(data) / 3 / 3


def test_one_array_is_no_file_of_several(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.ones(3))
    refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    refused(tmp_path / "b.npz")


@pytest.mark.extra
@pytest.mark.parametrize("content", [[1, 2], {"mu": "a", "sigma": 3}, {"features": [1]}, "text"])
def test_files_of_pytorch_that_hold_something_else(tmp_path, content):
    torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[torch]"')
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt")
