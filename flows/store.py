"""The store: key → manifest → blobs. Knows nothing of graphs.

Blobs are named by the SHA-256 of their bytes and verified when read. Each file is written to a temporary name and
renamed, blobs before the manifest that names them, so that a reader sees nothing or all of it and several processes share one
store. A manifest ends in its own digest: what a power cut tore is a miss, never a result.

    blobs/ab/cdef….safetensors      values            manifests/ab/cdef….json     what a key gave
    files.sqlite                    digests of files by path, size and mtime; the last key of each pipeline's elements
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.keys import Digest
from nodes.artifacts import Artifact, Info, decode, encoded_parts
from nodes.errors import ArtifactError, Damaged, StoreError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Ref:
    """A value in the store: its digest, and what is known of this making of it."""

    digest: Digest
    info: Info = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Manifest:
    """What one call gave: for each output a value, or a list of them; and what it was called with, to tell why it ran."""

    outputs: Mapping[str, Ref | tuple[Ref, ...]]
    identity: Mapping[str, Any]
    inputs: Mapping[str, Any]
    seconds: float = 0.0

    def refs(self) -> Iterator[Ref]:
        """All values named."""
        for found in self.outputs.values():
            yield from (found,) if isinstance(found, Ref) else found


class Store:
    """A store in a folder.

    Raises:
        StoreError: the folder cannot be made or used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._local = threading.local()
        self._lock = threading.Lock()
        self._recent: dict[Digest, tuple[Artifact, int]] = {}
        self._before: dict[Digest, tuple[Artifact, int]] = {}
        self._recent_bytes = 0
        try:
            for name in ("blobs", "manifests"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the store {folder} cannot be used: {error.strerror or error}") from error

    # --- values ---

    def blob_path(self, digest: Digest) -> Path:
        """Where a value's bytes lie."""
        return self.folder / "blobs" / digest[:2] / f"{digest[2:]}.safetensors"

    def put(self, value: Artifact) -> Ref:
        """Keep a value."""
        parts = encoded_parts(value)
        hashed = hashlib.sha256()
        for part in parts:
            hashed.update(part)
        digest, size = hashed.hexdigest(), sum(map(len, parts))
        path = self.blob_path(digest)
        try:
            present = path.stat().st_size == size
        except FileNotFoundError:
            present = False
        if not present:
            _write(path, parts)
        self._remember(digest, value, size)
        return Ref(digest, value.info)

    def get(self, ref: Ref) -> Artifact:
        """The value, verified.

        Raises:
            Damaged: it is missing, or is not what its name says; such a file is removed.
        """
        value = self._remembered(ref.digest)
        if value is None:
            try:
                data = self.blob_path(ref.digest).read_bytes()
            except OSError as error:
                raise Damaged(f"value {ref.digest[:12]} is missing") from error
            if hashlib.sha256(data).hexdigest() != ref.digest:
                self.blob_path(ref.digest).unlink(missing_ok=True)
                raise Damaged(f"value {ref.digest[:12]} is damaged")
            try:
                value = decode(data)
            except ArtifactError as error:
                raise Damaged(f"value {ref.digest[:12]} cannot be read: {error}") from error
            self._remember(ref.digest, value, len(data))
        return value.with_info(**ref.info) if ref.info != value.info else value

    # What was just used stays in memory, so that the next step need not read it back; `turn` lets go of what was used
    # neither in this window nor in the one before.

    def _remembered(self, digest: Digest) -> Artifact | None:
        with self._lock:
            found = self._recent.get(digest) or self._before.get(digest)
        if found is None:
            return None
        self._remember(digest, *found)
        return found[0]

    def _remember(self, digest: Digest, value: Artifact, size: int) -> None:
        with self._lock:
            if digest in self._recent:
                return
            self._recent[digest] = (value, size)
            self._recent_bytes += size
            full = self._recent_bytes > RECENT_BYTES
        if full:
            self.turn()

    def turn(self) -> None:
        """A window is through: let go of the values that were last used in the window before."""
        with self._lock:
            self._before, self._recent, self._recent_bytes = self._recent, {}, 0

    @property
    def at_hand(self) -> int:
        """Bytes of the values used in this window."""
        return self._recent_bytes

    # --- what a key gave ---

    def manifest_path(self, key: Digest) -> Path:
        """Where a key's manifest lies."""
        return self.folder / "manifests" / key[:2] / f"{key[2:]}.json"

    def record(self, key: Digest, manifest: Manifest) -> None:
        """Keep what a key gave; its values must have been put before."""
        outputs = {
            name: [found.digest, dict(found.info)]
            if isinstance(found, Ref)
            else {"list": [[ref.digest, dict(ref.info)] for ref in found]}
            for name, found in manifest.outputs.items()
        }
        body = json.dumps(
            {"format": FORMAT, "outputs": outputs, "identity": manifest.identity, "inputs": manifest.inputs,
             "seconds": round(manifest.seconds, 4)},
            separators=(",", ":"), ensure_ascii=False, default=_plain,
        ).encode()
        _write(self.manifest_path(key), [body, b"\n", hashlib.sha256(body).hexdigest().encode(), b"\n"])

    def look_up(self, key: Digest) -> Manifest | None:
        """What a key gave, or None. Reads no value.

        Raises:
            Damaged: the manifest does not match its own digest.
        """
        try:
            data = self.manifest_path(key).read_bytes()
        except OSError:
            return None
        body, _, seal = data.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != seal.strip():
            raise Damaged(f"manifest {key[:12]} is damaged")
        found = json.loads(body)
        if found["format"] != FORMAT:
            return None
        outputs: dict[str, Ref | tuple[Ref, ...]] = {
            name: Ref(*value) if isinstance(value, list) else tuple(Ref(*each) for each in value["list"])
            for name, value in found["outputs"].items()
        }
        return Manifest(outputs, found["identity"], found["inputs"], found["seconds"])

    def forget(self, key: Digest) -> None:
        """Drop a manifest, so that the key is a miss."""
        self.manifest_path(key).unlink(missing_ok=True)

    # --- files and history ---

    def _database(self) -> sqlite3.Connection:
        if not hasattr(self._local, "database"):
            try:
                self._local.database = self._opened()
            except sqlite3.Error as error:
                raise StoreError(f"the store {self.folder} cannot be used: files.sqlite: {error}") from error
        found: sqlite3.Connection = self._local.database
        return found

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.folder / "files.sqlite", timeout=30, isolation_level=None)
        ends = time.monotonic() + 30
        while True:
            try:
                database.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:  # SQLite does not wait by itself while another thread or process does this
                if time.monotonic() > ends:
                    raise
                time.sleep(0.01)
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, size INT, mtime INT, digest TEXT)")
        database.execute(
            "CREATE TABLE IF NOT EXISTS history(pipeline TEXT, step TEXT, element TEXT, key TEXT, "
            "PRIMARY KEY(pipeline, step, element)) WITHOUT ROWID"
        )
        return database

    def file_digest(self, path: Path) -> Digest:
        """The SHA-256 of a file; path, size and mtime only save reading it again."""
        stat = path.stat()
        name = str(path)
        row = self._database().execute(
            "SELECT digest FROM files WHERE path=? AND size=? AND mtime=?", (name, stat.st_size, stat.st_mtime_ns)
        ).fetchone()
        if row:
            return str(row[0])
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        # A file changed again within the clock's grain would keep its mtime: remember only what has settled.
        if time.time_ns() - stat.st_mtime_ns > 2 * 10**9:
            self._database().execute(
                "INSERT OR REPLACE INTO files VALUES(?,?,?,?)", (name, stat.st_size, stat.st_mtime_ns, found)
            )
        return found

    def last_key(self, pipeline: str, step: str, element: str) -> Digest | None:
        """The key that an element of a step had when the pipeline last ran."""
        row = self._database().execute(
            "SELECT key FROM history WHERE pipeline=? AND step=? AND element=?", (pipeline, step, element)
        ).fetchone()
        return row and str(row[0])

    def has_run(self, pipeline: str, step: str) -> bool:
        """Whether the step has given anything in an earlier run."""
        rows = self._database().execute("SELECT 1 FROM history WHERE pipeline=? AND step=? LIMIT 1", (pipeline, step))
        return rows.fetchone() is not None

    def note_keys(self, pipeline: str, step: str, keys: Mapping[str, Digest]) -> None:
        """Remember the keys of a run's elements."""
        if not keys:
            return
        database = self._database()
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT OR REPLACE INTO history VALUES(?,?,?,?)", ((pipeline, step, element, key) for element, key in keys.items())
        )
        database.execute("COMMIT")

    # --- housekeeping ---

    def _files(self, folder: str) -> Iterable[Path]:
        return (path for path in (self.folder / folder).glob("*/*") if not path.name.startswith("."))

    def info(self) -> dict[str, int]:
        """How many results and values there are, and the bytes they take."""
        values = [path.stat().st_size for path in self._files("blobs")]
        manifests = [path.stat().st_size for path in self._files("manifests")]
        return {"results": len(manifests), "values": len(values), "bytes": sum(values) + sum(manifests)}

    def verify(self) -> list[str]:
        """Read everything; name and remove what is damaged, so that it is made again when it is next asked for."""
        found = []
        for path in self._files("blobs"):
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.parent.name + path.stem:
                found.append(f"value {(path.parent.name + path.stem)[:12]} is damaged")
                path.unlink()
        for path in self._files("manifests"):
            key = path.parent.name + path.stem
            try:
                manifest = self.look_up(key)
                if manifest and (lost := [r for r in manifest.refs() if not self.blob_path(r.digest).exists()]):
                    raise Damaged(f"manifest {key[:12]} names value {lost[0].digest[:12]}, which is missing")
            except Damaged as error:
                found.append(str(error))
                path.unlink()
        return found

    def collect(self, max_bytes: int) -> int:
        """Remove the results made longest ago until the store takes at most `max_bytes`; gives the bytes freed.

        Values that a kept result still names stay. What was written in the last minute stays too: another process
        may be about to name it.
        """
        manifests = sorted(self._files("manifests"), key=lambda path: path.stat().st_mtime, reverse=True)
        sizes = {path.parent.name + path.stem: path.stat().st_size for path in self._files("blobs")}
        kept: set[Digest] = set()
        total, full = 0, False
        for path in manifests:
            try:
                manifest = self.look_up(path.parent.name + path.stem)
            except Damaged:
                manifest = None
            new = {ref.digest for ref in manifest.refs()} - kept if manifest else set()
            total += path.stat().st_size + sum(sizes.get(digest, 0) for digest in new)
            full = full or total > max_bytes or manifest is None
            if full:
                path.unlink(missing_ok=True)
            else:
                kept |= new
        freed, young = 0, time.time() - 60
        for digest, size in sizes.items():
            path = self.blob_path(digest)
            if digest not in kept and path.stat().st_mtime < young:
                path.unlink(missing_ok=True)
                freed += size
        return freed

    def close(self) -> None:
        """Let go of this thread's database connection."""
        if hasattr(self._local, "database"):
            with closing(self._local.database):
                del self._local.database


RECENT_BYTES = 512 * 2**20
"""What is kept in memory of recent values, at most twice."""


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else str(value)


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write a file under a temporary name and rename it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            for part in parts:
                file.write(part)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError(f"the store cannot be written: {path.parent}: {error.strerror or error}") from error
    draft.replace(path)
