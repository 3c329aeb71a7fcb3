"""The store: key → manifest → blobs. Knows nothing of graphs.

Blobs are named by the SHA-256 of their bytes and verified when read. Each is written whole or not at all, blobs before the
manifest that names them, so that a reader sees nothing or all of it and several processes share one store. A manifest ends
in its own digest: what a power cut tore is a miss, never a result.

    blobs/ab/cdef….safetensors      values            manifests/ab/cdef….json     what a key gave
    files.sqlite                    digests of files by path, size and mtime; the last key of each pipeline's elements; where
                                    a file was written last

Blobs and manifests lie in a folder of this machine, or in a bucket that machines share; files.sqlite is always this
machine's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any
from urllib.parse import unquote, urlsplit

from flows.keys import Digest
from flows.objects import Folder, Found, Objects, blob_name, digest_in, manifest_name, sealed, sound
from nodes.artifacts import Artifact, Info, decode, encoded_parts
from nodes.errors import ArtifactError, Damaged, StoreError, Unreachable

FORMAT = 1
AHEAD = 256
"""Manifests or values that are read together when all are."""
YOUNG = 600
"""Seconds for which a value is left alone that no result names: its result may be about to be written."""


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
    """A store in a folder, or one whose objects lie elsewhere and whose folder holds what is this machine's own.

    Raises:
        StoreError: the folder cannot be made or used.
    """

    def __init__(self, folder: Path, objects: Objects | None = None) -> None:
        self.folder = folder
        self.objects = objects or Folder(folder)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._recent: dict[Digest, tuple[Artifact, int]] = {}
        self._before: dict[Digest, tuple[Artifact, int]] = {}
        self._recent_bytes = self._moved = 0

    @property
    def url(self) -> str:
        """What `open_store` is to be given in another process."""
        return self.objects.url

    # --- values ---

    def put(self, value: Artifact) -> Ref:
        """Keep a value."""
        parts = encoded_parts(value)
        hashed = hashlib.sha256()
        for part in parts:
            hashed.update(part)
        digest = hashed.hexdigest()
        self.objects.keep(blob_name(digest), parts)
        self._remember(digest, value, sum(map(len, parts)))
        return Ref(digest, value.info)

    def get(self, ref: Ref) -> Artifact:
        """The value, verified.

        Raises:
            Damaged: it is missing, or is not what its name says; such bytes are removed.
        """
        value = self._remembered(ref.digest)
        if value is None:
            name = blob_name(ref.digest)
            data = self.objects.read(name)
            if data is None:
                raise Damaged(f"value {ref.digest[:12]} is missing")
            if not sound(name, data):
                self.objects.delete([name])
                raise Damaged(f"value {ref.digest[:12]} is damaged")
            try:
                value = decode(data)
            except ArtifactError as error:
                raise Damaged(f"value {ref.digest[:12]} cannot be read: {error}") from error
            self._remember(ref.digest, value, len(data))
        return value.with_info(**ref.info) if ref.info != value.info else value

    def prefetch(self, refs: Iterable[Ref]) -> None:
        """Read values that will be asked for soon, at once where the store is far away; what fails here, `get` will tell."""
        if self.objects.lanes > 1:
            self.objects.together(self._fetch, [ref for ref in refs if self._remembered(ref.digest) is None])

    def _fetch(self, ref: Ref) -> None:
        with suppress(Damaged, Unreachable):
            self.get(ref)

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
            if self._recent_bytes > RECENT_BYTES:
                self._let_go()

    def _let_go(self) -> None:
        self._before, self._recent = self._recent, {}
        self._moved, self._recent_bytes = self._moved + self._recent_bytes, 0

    def turn(self) -> int:
        """A window is through: let go of the values that were last used in the window before. Gives the bytes of those that
        were used in this one."""
        with self._lock:
            self._let_go()
            moved, self._moved = self._moved, 0
        return moved

    # --- what a key gave ---

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
        self.objects.replace(manifest_name(key), [sealed(body)])

    def look_up(self, key: Digest) -> Manifest | None:
        """What a key gave, or None. Reads no value.

        Raises:
            Damaged: the manifest does not match its own digest.
        """
        name = manifest_name(key)
        found = self._manifest(name, self.objects.read(name))
        if found:
            self.objects.used(name)
        return found

    @staticmethod
    def _manifest(name: str, data: bytes | None) -> Manifest | None:
        if data is None:
            return None
        if not sound(name, data):
            raise Damaged(f"manifest {digest_in(name)[:12]} is damaged")
        found = json.loads(data[: data.index(b"\n")])
        if found["format"] != FORMAT:
            return None
        outputs: dict[str, Ref | tuple[Ref, ...]] = {
            name: Ref(*value) if isinstance(value, list) else tuple(Ref(*each) for each in value["list"])
            for name, value in found["outputs"].items()
        }
        return Manifest(outputs, found["identity"], found["inputs"], found["seconds"])

    def forget(self, key: Digest) -> None:
        """Drop a manifest, so that the key is a miss."""
        self.objects.delete([manifest_name(key)])

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
        file = self.folder / "files.sqlite"
        database = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False, factory=_Database)
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
        database.execute("PRAGMA cache_size=-256")  # KiB: each thread has a connection, and the system caches the file too
        database.execute("CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, size INT, mtime INT, digest TEXT)")
        database.execute(
            "CREATE TABLE IF NOT EXISTS history(pipeline TEXT, step TEXT, element TEXT, key TEXT, "
            "PRIMARY KEY(pipeline, step, element)) WITHOUT ROWID"
        )
        database.execute(
            "CREATE TABLE IF NOT EXISTS written("
            "key TEXT PRIMARY KEY, path TEXT, suffix TEXT, size INT, mtime INT) WITHOUT ROWID"
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

    def written(self, key: Digest) -> tuple[Path, str] | None:
        """A file that a run wrote under this key, and its suffix, if it is there and nobody has touched it since."""
        row = self._database().execute("SELECT path, suffix, size, mtime FROM written WHERE key=?", (key,)).fetchone()
        try:
            stat = os.lstat(row[0]) if row else None
        except OSError:
            return None
        as_it_was = stat and S_ISREG(stat.st_mode) and (stat.st_size, stat.st_mtime_ns) == row[2:]
        return (Path(row[0]), row[1]) if as_it_was else None

    def note_written(self, files: Iterable[tuple[Digest, Path, str]]) -> None:
        """Remember where files were written: the key, the path and its suffix of each."""
        rows = []
        for key, path, suffix in files:
            with suppress(OSError):
                stat = path.stat()
                rows.append((key, os.path.abspath(path), suffix, stat.st_size, stat.st_mtime_ns))
        self._all("INSERT OR REPLACE INTO written VALUES(?,?,?,?,?)", rows)

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
        rows = [(pipeline, step, element, key) for element, key in keys.items()]
        self._all("INSERT OR REPLACE INTO history VALUES(?,?,?,?)", rows)

    def _all(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """A statement for each of the rows, all at once."""
        if not rows:
            return
        database = self._database()
        database.execute("BEGIN IMMEDIATE")
        database.executemany(statement, rows)
        database.execute("COMMIT")

    # --- housekeeping ---

    def info(self) -> dict[str, int]:
        """How many results and values there are, and the bytes they take."""
        values = [found.size for found in self.objects.listed("blobs")]
        manifests = [found.size for found in self.objects.listed("manifests")]
        return {"results": len(manifests), "values": len(values), "bytes": sum(values) + sum(manifests)}

    def verify(self) -> list[str]:
        """Read everything; name and remove what is damaged, so that it is made again when it is next asked for."""
        manifests = list(self.objects.listed("manifests"))  # first: the values that these name were there before them
        blobs = [found.name for found in self.objects.listed("blobs")]
        whole = {name for name, is_whole in zip(blobs, self.objects.together(self._is_sound, blobs), strict=True) if is_whole}
        lost = [name for name in blobs if name not in whole]
        found = [f"value {digest_in(name)[:12]} is damaged" for name in lost]
        for name, _, refs in self._named(manifests, fresh=True):
            missing = [ref for ref in refs or () if blob_name(ref) not in whole]
            if refs is None:
                found.append(f"manifest {digest_in(name)[:12]} is damaged")
            elif missing:
                found.append(f"manifest {digest_in(name)[:12]} names value {missing[0][:12]}, which is missing")
            if refs is None or missing:
                lost.append(name)
        self.objects.delete(lost)
        return found

    def _is_sound(self, name: str) -> bool:
        data = self.objects.read(name, fresh=True)
        return data is not None and sound(name, data)

    def _named(
        self, manifests: Sequence[Found], fresh: bool = False
    ) -> Iterator[tuple[str, int, tuple[Digest, ...] | None]]:
        """Manifests, read when asked for: the name, the size, and the values named, or None where it is damaged."""

        def named(found: Found) -> tuple[Digest, ...] | None:
            try:
                manifest = self._manifest(found.name, self.objects.read(found.name, fresh=fresh))
            except Damaged:
                return None
            return tuple(ref.digest for ref in manifest.refs()) if manifest else ()

        for start in range(0, len(manifests), AHEAD):
            some = manifests[start : start + AHEAD]
            for found, refs in zip(some, self.objects.together(named, some), strict=True):
                yield found.name, found.size, refs

    def collect(self, max_bytes: int) -> int:
        """Remove results until the store takes at most `max_bytes`; gives the bytes freed.

        In a folder those go first that were used longest ago (to within a day), in a bucket those made longest ago. Values that
        a kept result still names stay, and what was written or used in the last minutes: another process may be at it.
        """
        manifests = sorted(self.objects.listed("manifests"), key=lambda found: found.modified, reverse=True)
        blobs = {digest_in(found.name): found for found in self.objects.listed("blobs")}
        before = time.time() - YOUNG
        young = {found.name for found in manifests if found.modified >= before}
        kept: set[Digest] = set()
        kept_manifests, total = set(), 0
        for name, size, refs in self._named(manifests):
            new = set(refs or ()) - kept
            total += size + sum(blobs[digest].size for digest in new if digest in blobs)
            if total > max_bytes and name not in young:
                break
            if refs is not None:
                kept |= new
                kept_manifests.add(name)
        gone = [found for found in manifests if found.name not in kept_manifests]
        gone += [found for digest, found in blobs.items() if digest not in kept and found.modified < before]
        self.objects.delete(found.name for found in gone)
        return sum(found.size for found in gone)


class _Database(sqlite3.Connection):
    """One thread's connection, closed when the thread ends or the store is dropped, whichever thread does that."""

    def __del__(self) -> None:
        self.close()


RECENT_BYTES = 512 * 2**20
"""What is kept in memory of recent values, at most twice."""


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else str(value)


def open_store(where: str | Path) -> Store:
    """The store in a folder (`outputs/store`, `file:///data/store`) or under a URL that fsspec knows (`s3://bucket/prefix`).

    Raises:
        StoreError: it cannot be used; `Unreachable` where it does not answer.
    """
    if "://" not in str(where):
        return Store(Path(where))
    url = urlsplit(str(where))
    if url.scheme == "file":
        return Store(Path(unquote(url.netloc + url.path)))
    from flows.shared import Shared

    shared = Shared(str(where))
    return Store(shared.folder, shared)
