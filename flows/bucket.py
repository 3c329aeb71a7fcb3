"""Objects under a URL that fsspec knows, such as `s3://bucket/prefix`: one request each, tried again where that may help.

Credentials are found by the service's own library (environment, profile, role) and never seen here.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from flows.objects import Found
from nodes.errors import StoreError, Unreachable

S = TypeVar("S")
T = TypeVar("T")

LANES = 16
"""Requests at once; each takes tens of milliseconds, and nearly all of them are spent waiting."""
MANY = 1024
"""Requests that are lined up at most."""
CONNECT, READ = 3, 20
"""Seconds until a connection must stand, and the longest silence in an answer."""
PAUSES = (0.2, 0.8)
"""Seconds between the attempts of one request."""

OPTIONS: dict[str, dict[str, Any]] = {
    # One request for each read, nothing remembered of what others may change, and no attempts beside those made here.
    "s3": {
        "use_listings_cache": False, "max_concurrency": 1,
        "config_kwargs": {
            "connect_timeout": CONNECT, "read_timeout": READ, "max_pool_connections": LANES,
            "retries": {"total_max_attempts": 1},
        },
    },
}


class Bucket:
    """The objects under a URL. Threads may share it.

    Raises:
        StoreError: the URL, the bucket or the credentials are wrong.
        Unreachable: a request got no answer, after a few attempts.
    """

    def __init__(self, url: str) -> None:
        protocol, _, path = url.partition("://")
        if "@" in path.partition("/")[0]:
            raise StoreError(f"the store {protocol}://…: credentials do not belong into a URL; {_CREDENTIALS}")
        self.url, self._root = url, path.strip("/")
        if not self._root:
            raise StoreError(f"the store {url}: expected {protocol}://BUCKET/PREFIX")
        self._system = self._opened(protocol)
        self._pool = ThreadPoolExecutor(LANES, "bucket")
        self._down = False

    def _opened(self, protocol: str) -> Any:
        import fsspec

        try:
            # Not one shared by URL: the endpoint is read from the environment when the first request is made.
            system = fsspec.filesystem(protocol, skip_instance_cache=True, **OPTIONS.get(protocol, {}))
        except ImportError:
            raise StoreError(f'the store {self.url}: {protocol} needs a package: pip install "photoloom[s3]"') from None
        except ValueError:
            raise StoreError(f"the store {self.url}: expected a folder or s3://BUCKET/PREFIX") from None
        if protocol == "s3":
            system.retries = 1
        return system

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def fetch(self, name: str) -> bytes | None:
        """An object's bytes, or None."""

        def work() -> bytes | None:
            try:
                found: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None
            return found

        return self._ask(work)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that is not there yet (`If-None-Match: *`); whether it was not. Of several writers one wins."""

        def work() -> bool:
            try:
                self._system.pipe_file(self._path(name), data, mode="create")
            except OSError as error:
                if isinstance(error, FileExistsError) or _code(error) == "PreconditionFailed":
                    return False
                raise
            return True

        return self._ask(work)

    def write(self, name: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        self._ask(lambda: self._system.pipe_file(self._path(name), data))

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""

        def work() -> None:
            try:
                self._system.rm_file(self._path(name))
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise

        self._ask(work)

    def listed(self, folder: str) -> Iterator[Found]:
        """The objects below a folder; what others write meanwhile may be missing."""
        for path, info in self._ask(lambda: self._system.find(self._path(folder), detail=True)).items():
            yield Found(path.strip("/").removeprefix(f"{self._root}/"), info["size"], self._modified(path, info))

    def _modified(self, path: str, info: dict[str, Any]) -> float:
        found = info.get("LastModified") or info.get("created") or self._system.modified(path)
        return float(found if isinstance(found, int | float) else found.timestamp())

    def together(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """`work` on each item, `LANES` at once, results in order. Inside such work it is done in turn, so that none waits
        for a lane that it holds itself."""
        listed = list(items)
        if len(listed) < 2 or threading.current_thread().name.startswith("bucket"):
            return [work(item) for item in listed]
        groups = (listed[start : start + MANY] for start in range(0, len(listed), MANY))
        return [found for group in groups for found in self._pool.map(work, group)]

    def _ask(self, work: Callable[[], T]) -> T:
        """What a request gives. While the service is down, one attempt is all that each request gets."""
        pauses = () if self._down else PAUSES
        for pause in (*pauses, None):
            try:
                found = work()
            except Exception as error:
                if fault := _fault(error):
                    raise StoreError(f"the store {self.url}: {fault}") from None
                if pause is None:
                    self._down = True
                    raise Unreachable(f"the store {self.url} does not answer: {_told(error)}") from None
                time.sleep(pause)
            else:
                self._down = False
                return found
        raise AssertionError


_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def _code(error: BaseException) -> str:
    """S3's own word for what was wrong, which s3fs hangs under an OSError."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _fault(error: Exception) -> str:
    """What is wrong with the bucket, the credentials or the URL, so that another attempt is of no use; or nothing."""
    kind, code = type(error).__name__, _code(error)
    if code == "NoSuchBucket":
        return "there is no such bucket"
    if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return f"no credentials were found; {_CREDENTIALS}"
    if isinstance(error, PermissionError):
        return f"access is refused: {code or _told(error)}"
    if kind == "ParamValidationError" or isinstance(error, ValueError):
        return _told(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSYS:
        return "the service cannot write an object only if it is new (If-None-Match: *)"
    return ""


def _told(error: Exception) -> str:
    """An error in a line, without what may stand before the host of a URL in it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"//[^/@\s]*@", "//", text)[:300]
