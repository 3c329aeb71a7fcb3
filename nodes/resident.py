"""The models in memory: loaded once per process, least recently used out when room is short, and how they are put to work.

Importing this imports no torch.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nodes.base import Model
from nodes.errors import ModelError, OutOfMemory
from nodes.models import device_is_cpu, dtype_of, locate

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where and how a model is loaded: the folder, `cpu` or `cuda`, the torch dtype, whether it is light (small, on a
    processor, as it comes), and the model as the pipeline names it."""

    folder: Path
    device: str
    dtype: Any
    light: bool = False
    model: Model = Model(role="")

    def spread(self, items: Sequence[S], work: Callable[[Sequence[S]], list[T]]) -> list[T]:
        """`work` on all items, as many together as makes it quick and changes no result; results in order.

        A GPU takes them all at once. On a processor a light model works in one thread for each core, a share of the
        items in each (see `nodes.exact`), and a large one takes one item at a time with all cores, since there a batch
        gains nothing and changes the last bits.
        """
        if self.device != "cpu" or (self.light and in_lane()):
            return work(items)
        if not self.light:
            return [result for item in items for result in work([item])]
        share = -(-len(items) // cores()) or 1
        parts = [items[start : start + share] for start in range(0, len(items), share)]
        running = [in_a_lane(partial(work, part)) for part in parts]
        wait(running)
        return [result for each in running for result in each.result()]


def cores() -> int:
    """How many threads may compute at once: `OMP_NUM_THREADS`, else the processors this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))


_local = threading.local()


@cache
def _lanes(count: int) -> ThreadPoolExecutor:
    """Threads that compute on one core each."""

    def begin() -> None:
        import torch

        torch.set_num_threads(1)
        _local.lane = True

    return ThreadPoolExecutor(count, "lane", initializer=begin)


def in_lane() -> bool:
    """Whether this thread is one of the lanes."""
    return bool(getattr(_local, "lane", False))


def in_a_lane(work: Callable[[], T]) -> Future[T]:
    """Begin `work` in a thread that computes on one core, as one of as many as there are cores."""
    return _lanes(cores()).submit(copy_context().run, work)


@cache
def _turns() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, "turn")


def in_turn(work: Callable[[], T]) -> Future[T]:
    """Begin `work` in one of two threads: while one is at a model, the other keeps what came before and reads what is next."""
    return _turns().submit(copy_context().run, work)


def waited() -> float:
    """The seconds that this thread has waited for its turn at a model."""
    return float(getattr(_local, "waited", 0.0))


def lanes(model: Model) -> int:
    """How many threads may have a model work at once: as many as there are cores where it is light, else one."""
    return cores() if is_light(model) else 1


# --- resident models ---


class Loaded(Protocol):
    """What a loader gives: something with torch modules in it."""

    @property
    def modules(self) -> Sequence[Any]:
        """Its torch modules."""


L = TypeVar("L", bound=Loaded)


@dataclass
class _Resident:
    """A place in the registry: `lock` is held while the model is loaded or let go, `turn` while one that is not light is
    used; `bytes` are those of its weights."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    turn: threading.Lock = field(default_factory=threading.Lock)
    loaded: Any = None
    bytes: int = 0
    users: int = 0
    used: float = 0.0


class _Room:
    """Who loads and who works. One model is loaded at a time: transformers swaps methods of its classes meanwhile. While one
    is loaded whose dtype is not torch's own, that one is torch's for the whole process, and nobody works."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._loading = self._alone = False
        self._working = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._count(1)
        try:
            yield
        finally:
            with self._changed:
                self._count(-1)

    def _count(self, more: int) -> None:
        self._working += more
        _local.working = self._mine() + more
        self._changed.notify_all()

    @staticmethod
    def _mine() -> int:
        return int(getattr(_local, "working", 0))

    @contextmanager
    def loading(self, alone: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._loading and not (alone and self._working > self._mine()))
            self._loading, self._alone = True, alone
        try:
            yield
        finally:
            with self._changed:
                self._loading = self._alone = False
                self._changed.notify_all()


_room = _Room()
_registry: dict[tuple[str, str], _Resident] = {}
_registry_lock = threading.Lock()

loads: list[tuple[str, float]] = []
"""Each loading of a model in this process: its source and the seconds it took."""


@contextmanager
def held(model: Model, load: Callable[[Place], L]) -> Iterator[L]:
    """The loaded model, for the length of the block; loaded once per process. Threads take turns at a
    model; at a light one the lanes work side by side.

    Models stay in memory until room is needed for another: then the one not used for longest goes first.

    Raises:
        ModelError: it is absent, or its files are not of the kind that `load` reads.
        OutOfMemory: memory was short inside the block; what could be freed has been.
    """
    name = (f"{load.__module__}.{load.__qualname__}", model.model_dump_json(exclude={"role"}))
    with _registry_lock:
        resident = _registry.setdefault(name, _Resident())
    with resident.lock:
        if resident.loaded is None:
            with shortage(model):
                _make_room(model, resident)
                started = time.monotonic()
                with _room.loading(alone=dtype_of(model) != "float32"):
                    resident.loaded = _load(model, load)
                loads.append((model.source, time.monotonic() - started))
                resident.bytes = sum(tensor.nbytes for module in resident.loaded.modules for tensor in module.parameters())
        resident.users, resident.used = resident.users + 1, time.monotonic()
    try:
        asked = time.monotonic()
        with nullcontext() if in_lane() else resident.turn, shortage(model), _room.working():
            _local.waited = waited() + time.monotonic() - asked
            yield resident.loaded
    finally:
        with resident.lock:
            resident.users -= 1


@contextmanager
def shortage(model: Model) -> Iterator[None]:
    """Says in our words that memory was short inside the block, after letting go of all models that nobody uses.

    Raises:
        OutOfMemory: it was.
    """
    try:
        yield
    except Exception as error:
        if not _is_shortage(error):
            raise
        release()
        raise OutOfMemory(f"memory is too short for the model {model.source} and what it was to do at once") from error


def _is_shortage(error: Exception) -> bool:
    """Whether torch or NumPy could not get memory; on a CPU torch says so in words only."""
    torch = sys.modules.get("torch")
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (type(error) is RuntimeError and "can't allocate memory" in str(error))
    )


def _make_room(model: Model, newcomer: _Resident) -> None:
    """Let go of the models not used for longest until the weights of all fit into the budget."""
    newcomer.bytes = _weights(locate(model.source).folder)
    with _registry_lock:
        others = sorted((r for r in _registry.values() if r is not newcomer and r.loaded), key=lambda r: r.used)
    budget = memory_budget()
    for resident in others:
        if newcomer.bytes + sum(r.bytes for r in others if r.loaded) <= budget:
            return
        _let_go(resident)


def memory_budget() -> int:
    """What the weights of all resident models may take together, in bytes: `PHOTOLOOM_MODEL_MEMORY` (in GB), else eight
    tenths of the GPU's memory, or half of the machine's."""
    if wanted := os.environ.get("PHOTOLOOM_MODEL_MEMORY"):
        try:
            return int(float(wanted) * 10**9)
        except ValueError:
            raise ModelError(f'PHOTOLOOM_MODEL_MEMORY: expected a number of GB, got "{wanted}"') from None
    if not device_is_cpu():
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(0).total_memory * 0.8)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _let_go(resident: _Resident) -> None:
    """Free a model, unless somebody is at it."""
    if resident.lock.acquire(blocking=False):
        try:
            if not resident.users:
                resident.loaded = None
        finally:
            resident.lock.release()


def release() -> None:
    """Let go of the resident models that nobody uses, and of the memory that torch keeps for later."""
    with _registry_lock:
        residents = list(_registry.values())
    for resident in residents:
        _let_go(resident)
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.empty_cache()


LIGHT = 64 * 2**20
"""Models whose weights take no more bytes than this on disk are light."""


@cache
def is_light(model: Model) -> bool:
    """Whether a model is small, runs on a processor, and as it comes. Raises ModelError where it is absent."""
    plain = model.dtype in ("auto", "float32") and not model.options
    return plain and device_is_cpu() and _weights(locate(model.source).folder) <= LIGHT


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _load(model: Model, load: Callable[[Place], L]) -> L:
    if not model.source:
        raise ModelError(f'no model is named for the role "{model.role}": give the node a model, a hub id or a folder')
    found = locate(model.source)
    import torch
    from safetensors import SafetensorError

    from nodes.exact import exact

    if not (cpu := device_is_cpu()) and not torch.cuda.is_available():
        raise ModelError(
            f'model "{model.source}": there is a GPU, and torch {torch.__version__} cannot use it; install a torch that '
            "can, or set CUDA_VISIBLE_DEVICES to nothing to work on the processor"
        )
    if cpu and model.offload != "none":
        raise ModelError(f'model "{model.source}": offload moves a model off a GPU, and there is none here')
    light = cpu and is_light(model)
    place = Place(found.folder, "cpu" if cpu else "cuda", getattr(torch, dtype_of(model)), light, model)
    try:
        loaded = load(place)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f'model "{model.source}" cannot be loaded for the role "{model.role}": {first}') from error
    for module in loaded.modules:
        if light:
            exact(module)
        if model.channels_last:
            module.to(memory_format=torch.channels_last)
        if model.compile:
            module.compile()
    return loaded
