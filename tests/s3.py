"""An S3 service on loopback for tests: moto's server, spoken to over HTTP like a real one."""

from __future__ import annotations

import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

SECRET = "a-secret-that-is-nowhere-else"


@contextmanager
def served() -> Iterator[str]:
    """The endpoint of a service. What it creates only if it is new is decided for one writer at a time, as on the real one;
    moto looks and writes in two steps."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request otherwise
    lock, put = threading.Lock(), S3Response.put_object

    def one_at_a_time(self: S3Response) -> Any:
        with lock:
            return put(self)

    S3Response.put_object = one_at_a_time  # type: ignore[method-assign]
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    request(endpoint, "POST", "moto-api/reset")  # its buckets live as long as this process
    try:
        yield endpoint
    finally:
        server.stop()
        S3Response.put_object = put  # type: ignore[method-assign]


def environment(endpoint: str) -> dict[str, str]:
    """What a machine knows of the service."""
    return {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }


def request(endpoint: str, method: str, path: str, data: bytes | None = None) -> bytes:
    """A plain request: `PUT bucket` makes a bucket."""
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{path}", data, method=method), timeout=10) as reply:
        found: bytes = reply.read()
        return found
