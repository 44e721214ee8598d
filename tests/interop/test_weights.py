"""Published weights: fetched once, checked, kept; a wrong or damaged file is never used."""

import hashlib
import http.server
import threading
import urllib.request

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitdiff_jax.interop import torch_files, weights

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
FILE = b"what the publisher gives away" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitdiff_jax" / "weights"


@pytest.fixture
def reader(monkeypatch):
    """PyTorch's place is taken, where FILE is read; the paths that it read."""
    read = []

    def fake(path):
        assert path.read_bytes() == FILE
        read.append(path)
        return {name: tensor.copy() for name, tensor in TENSORS.items()}

    monkeypatch.setattr(torch_files, "read", fake)
    return read


@pytest.fixture
def asked(monkeypatch):
    """The URLs that were opened."""
    urls, real = [], urllib.request.urlopen

    def urlopen(url, **options):
        urls.append(url)
        return real(url, **options)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return urls


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "site" / "net-1.pth"
    path.parent.mkdir()
    path.write_bytes(FILE)
    digest = hashlib.sha256(FILE).hexdigest()
    return weights.Published(path.as_uri(), digest, "--config.evaluate.net")


def assert_tensors(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def refused(published, path=None):
    """The message, one line that names a file."""
    with pytest.raises(weights.WeightsError) as caught:
        weights.read(published, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fetched_once_then_from_the_cache(cache, published, asked, reader):
    """The second time neither the network nor PyTorch is needed."""
    assert_tensors(weights.read(published))
    assert_tensors(weights.read(published))
    assert asked == [published.url]
    assert reader == [cache / "net-1.pth"]
    assert not list(cache.glob("*.partial"))


def test_a_wrong_file_is_not_read(cache, published, reader):
    """Neither kept as safetensors: a second try is refused too."""
    site = cache.parents[2] / "site" / "net-1.pth"
    site.write_bytes(FILE + b"!")
    for _ in range(2):
        assert "has a wrong SHA-256" in refused(published)
    assert list(cache.glob("*")) == []
    (cache / "net-1.pth").write_bytes(FILE + b"!")  # put there by hand
    message = refused(published)
    assert str(cache / "net-1.pth") in message
    assert published.sha256[:8] in message
    assert hashlib.sha256(FILE + b"!").hexdigest()[:8] in message
    assert reader == []


def test_without_a_network_it_says_what_to_do(cache, published, reader):
    """And what it says works: the file put into the cache, or its path."""
    site = cache.parents[2] / "site" / "net-1.pth"
    elsewhere = site.rename(site.with_name("elsewhere.pth"))
    message = refused(published)
    for part in (published.url, str(cache), "--config.evaluate.net=FILE"):
        assert part in message
    assert not [path for path in cache.rglob("*") if path.is_file()]
    elsewhere.rename(cache / "net-1.pth")
    assert_tensors(weights.read(published))


def test_a_download_that_breaks_off_leaves_nothing(cache, reader):
    """Whole or not at all: half a file would be refused forever, with a network or without."""

    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(FILE)))
            self.end_headers()
            self.wfile.write(FILE[: len(FILE) // 2])

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/net-1.pth"
        message = refused(weights.Published(url, hashlib.sha256(FILE).hexdigest(), "--key"))
        server.shutdown()
    assert f"cannot download {url}" in message
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_given_path_is_read_and_checked(tmp_path, cache, published, asked, reader):
    mine = tmp_path / "mine.bin"
    mine.write_bytes(FILE)
    assert_tensors(weights.read(published, str(mine)))
    assert (asked, reader) == ([], [mine])
    mine.write_bytes(FILE[:-1])
    assert str(mine) in refused(published, str(mine))
    assert str(tmp_path / "none.pth") in refused(published, str(tmp_path / "none.pth"))
    assert str(tmp_path) in refused(published, str(tmp_path))
    assert asked == []


@pytest.mark.usefixtures("cache", "reader")
def test_a_given_path_may_start_at_home_and_needs_no_cache(tmp_path, monkeypatch, published):
    """Where nothing can be written, weights at hand are still weights."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pth").write_bytes(FILE)
    assert_tensors(weights.read(published, "~/mine.pth"))


def made(cache, published):
    """The safetensors that the cache makes of the file."""
    weights.read(published)
    return cache / "net-1.safetensors"


def test_safetensors_made_elsewhere(tmp_path, cache, published, asked, reader):
    """Are carried to machines without PyTorch, under any name."""
    moved = made(cache, published).rename(tmp_path / "carried.safetensors")
    del asked[:], reader[:]
    assert_tensors(weights.read(published, str(moved)))
    assert (asked, reader) == ([], [])


@pytest.mark.parametrize("about", [None, {"url": "x"}, {"sha256": "0" * 64}])
def test_foreign_safetensors_are_refused(tmp_path, cache, published, about):
    """What says of no, or of another published file that it comes from it."""
    save_file(TENSORS, tmp_path / "foreign.safetensors", about)
    message = refused(published, str(tmp_path / "foreign.safetensors"))
    assert f"foreign.safetensors: was not converted from {published.url}" in message


def test_a_changed_tensor_is_found(cache, published, reader):
    """One bit in the last number, which the file format does not check."""
    path = made(cache, published)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert set(load_file(path)) == set(TENSORS)
    message = refused(published)
    assert str(path) in message
    assert "damaged" in message


@pytest.mark.parametrize("change", ["renamed", "reshaped", "missing"])
def test_tensors_of_other_names_and_shapes_are_found(cache, published, reader, change):
    """With the same bytes: the digest is of names and shapes too."""
    path = made(cache, published)
    about = {"url": published.url, "sha256": published.sha256}
    about["tensors"] = weights._digest(TENSORS)
    tensors = dict(TENSORS)
    if change != "missing":
        name = "A.weight" if change == "renamed" else "a.weight"
        shape = (2, 3) if change == "renamed" else (3, 2)
        tensors[name] = tensors.pop("a.weight").reshape(shape)
    else:
        del tensors["b"]
    save_file(TENSORS, path, about)
    assert_tensors(weights.read(published))
    save_file(tensors, path, about)
    assert "damaged" in refused(published)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_file_in_the_cache(cache, published, reader, keep):
    path = made(cache, published)
    path.write_bytes(path.read_bytes()[:keep])
    message = refused(published)
    assert message.startswith(f"{path}: damaged")
    assert "remove it" in message


def test_what_is_no_file_of_tensors_stays(cache, published):
    """It is the published one; PyTorch is not needed to say so."""
    message = refused(published)
    assert message.startswith(f"{cache / 'net-1.pth'}: not a file of tensors: ")
    assert (cache / "net-1.pth").read_bytes() == FILE


@pytest.mark.extra
def test_a_file_of_pytorch_and_what_is_made_of_it(tmp_path, cache):
    torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[torch]"')
    path = tmp_path / "real.pth"
    given = {"turned": torch.arange(6.0).reshape(2, 3).T, "number": torch.tensor(3)}
    torch.save(given, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    published = weights.Published(path.as_uri(), digest)
    first, second = weights.read(published), weights.read(published)
    for found in (first, second):
        np.testing.assert_array_equal(found["turned"], np.arange(6.0).reshape(2, 3).T)
        assert found["number"] == 3
