"""An object store on this machine: moto's server, which speaks S3."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import s3fs
from moto.server import ThreadedMotoServer


@contextmanager
def object_store() -> Iterator[s3fs.S3FileSystem]:
    """A new store with the bucket `archive`, which this process and those that it starts find as s3://archive."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    keys = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **keys}):
            s3fs.S3FileSystem.clear_instance_cache()
            store = s3fs.S3FileSystem(use_listings_cache=False)
            store.mkdir("archive")
            yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
