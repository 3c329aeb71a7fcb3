"""Runs a graph: looks up, has what is missing made, keeps count. Knows nothing of Prefect.

While the models work on a window, the files of the next one are read, and what the last one gave is encoded and written.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from flows.calls import Caller, Outcome
from flows.clock import Clock
from flows.elements import Gap, Position
from flows.graph import Bound, Graph
from flows.plan import Call, Planner, walk
from flows.results import Failure, Result, StepResult, Watcher, WindowDone
from flows.store import Manifest, Ref, Store
from flows.windows import Round, WindowSize, rounds
from nodes.artifacts import Artifact
from nodes.base import Sink, Source
from nodes.errors import Damaged, PhotoloomError, Unreachable
from nodes.resident import cores, loads

PEEK = 8
"""Elements that are looked up before a run, to know which models it will need."""
POLL = 0.02
"""Seconds between two looks for what another process is making."""


class Stop(PhotoloomError):
    """The run is to end early; what is finished is kept."""


Around = Callable[[Bound, int, Callable[[], WindowDone]], None]
"""How a window of a step is run: given the step, the window's number and the work to call."""


def plainly(step: Bound, number: int, work: Callable[[], WindowDone]) -> None:
    """Run a window here and now."""
    work()


Job = tuple[Call, "Outcome | None"]
"""A call as it was looked up, and what came of it if it was made beside the main thread."""


class Execution:
    """One run of a graph against a store. `finished` hears of each element that has its values. `window` elements go
    through the steps together and `batch` through a model; both are found by measuring where they are None. `caller` makes
    what calls the nodes."""

    def __init__(
        self,
        graph: Graph,
        store: Store,
        *,
        only: Collection[str] = (),
        force: frozenset[str] = frozenset(),
        max_failures: int | None = None,
        watcher: Watcher | None = None,
        finished: Callable[[Call, Mapping[str, Ref | tuple[Ref, ...]]], None] | None = None,
        window: int | None = None,
        batch: int | None = None,
        caller: Callable[..., Caller] = Caller,
    ) -> None:
        self.graph, self.store, self.clock = graph, store, Clock()
        self.planner = Planner(graph, store, force)
        self.asked, self.only = frozenset(only), graph.needed(only)
        self.max_failures, self.watcher, self.finished = max_failures, watcher, finished
        self.result = Result({name: StepResult() for name in graph.steps if name in self.only})
        self._window_size = WindowSize(window)
        self._claims = store.objects.claims()
        self._caller = caller(
            self.planner, store, self.clock, self._remake, watcher.part if watcher else None, batch
        )
        self._remaking = threading.RLock()
        self._pool: ThreadPoolExecutor | None = None
        self._loads = len(loads)
        self._loading: threading.Thread | None = None
        self._ahead: dict[tuple[str, int], list[Future[Job]]] = {}
        self._behind: dict[str, tuple[int, list[Future[Job]]]] = {}
        self._besides: list[Future[None]] = []
        self._besides_before: list[Future[None]] = []
        consumed = {wire.step for step in graph for wire in step.wires.values()}
        self._late = {step.name for step in graph if isinstance(step.node, Sink) and step.name not in consumed}
        """Steps that encode what nobody in the graph waits for: they go on beside the next window."""

    def prepare(self) -> None:
        """Begin to load, beside the main thread, the models of the steps that will have something to do, as far as the
        first elements tell."""
        if missing := self._missing():
            self._loading = threading.Thread(target=_load_all, args=(self._caller, missing), name="loading")
            self._loading.start()

    def _missing(self) -> list[Bound]:
        """The steps that the store does not have all of the first elements of."""
        planner, found = self.planner.again(), dict[str, Bound]()
        for step in self.graph:
            if step.name not in self.only:
                continue
            first = range(min(PEEK, planner.elements.count(step.over[:1], ()) or 0)) if step.over else None
            calls = planner.calls(step, first)
            for call in calls:
                if call.manifest:
                    planner.done(call, call.manifest.outputs)
            if any(call.state == "run" for call in calls) or any(wire.step in found for wire in step.wires.values()):
                found[step.name] = step
        return list(found.values())

    def run(self, around: Around = plainly) -> Result:
        """Run all there is to run. Failures of elements are in the result; what is wrong with the run itself is raised."""
        _ = self.planner.identities  # absent models are said before anything runs
        finished = False
        with ThreadPoolExecutor(max(cores(), self.store.objects.lanes), "beside") as self._pool:
            try:
                try:
                    for each in rounds(self.graph, self.planner.elements, self._window_size.size, self.only):
                        self._round(each, around)
                except Stop as stop:
                    self.result.stopped = str(stop)
                self._settle()
                self._settle()
                finished = True
            finally:
                self._pool.shutdown(cancel_futures=not finished)
                if self._loading:
                    self._loading.join()
        return self.result

    def where(self) -> dict[str, float]:
        """Where the seconds went so far, by name; what worked in other threads is `beside`."""
        loaded = sum(seconds for _, seconds in loads[self._loads :])
        return {**self.clock.seconds, **({"load models (beside)": loaded} if loaded else {})}

    def beside(self, work: Callable[[], None]) -> None:
        """Have `work` done in another thread, before the window after the next begins; what it raises is raised then."""
        assert self._pool is not None
        self._besides.append(self._pool.submit(work))

    def _round(self, each: Round, around: Around) -> None:
        sources = [step for step in each.steps if _reads_files(step)] if each.window is not None else []
        for number, window in ((each.number, each.window), (each.number + 1, each.following)):
            for step in sources:
                if window and (step.name, number) not in self._ahead:
                    positions = self.planner.elements.positions(step.over, window)
                    self._ahead[step.name, number] = self._submit(partial(self._looked_up, step, each) for each in positions)
        for step in each.steps:
            if step.name in self._late:
                self._finish_late(step, around)
                calls = self._look_up(step, each.window)
                self._behind[step.name] = each.number, self._submit(partial(self._made_one, call) for call in calls)
            else:
                around(step, each.number, partial(self._window, step, each.number, each.window))
        if not each.following:
            for step in each.steps:
                self._finish_late(step, around)
        self._settle()
        self._window_size.took(len(each.window or ()), self.store.turn())

    def _finish_late(self, step: Bound, around: Around) -> None:
        if step.name in self._behind:
            number, jobs = self._behind.pop(step.name)
            around(step, number, partial(self._through_all, step, jobs))

    def _submit(self, works: Iterator[Callable[[], Job]]) -> list[Future[Job]]:
        assert self._pool is not None
        return [self._pool.submit(work) for work in works]

    def _settle(self) -> None:
        """Wait for what was begun beside the window before this one."""
        with self.clock("waiting"):
            for work in self._besides_before:
                work.result()
        self._besides_before, self._besides = self._besides, []

    # --- beside the main thread ---

    def _looked_up(self, step: Bound, position: Position) -> Job:
        return self._made_one(self.planner.call(step, position))

    def _made_one(self, call: Call) -> Job:
        [job] = self._made(call.step, [call])
        return job

    def _made(self, step: Bound, calls: Sequence[Call]) -> list[Job]:
        """Calls, made together where they have to be and nobody else is at them."""
        missing = {call.key: call for call in calls if call.state == "run"}
        jobs: list[Job] = [(call, None) for call in calls if call.key not in missing]
        with self._claims.claimed(list(missing)) as mine:
            jobs += [(call, None) for key, call in missing.items() if key not in mine]
            claimed, todo = [call for key, call in missing.items() if key in mine], []
            for call, manifest in zip(claimed, self.store.objects.together(self._found, claimed), strict=True):
                if manifest:
                    jobs.append((replace(call, state="cached", manifest=manifest), None))
                else:
                    todo.append(call)
            jobs += self._caller.run(step, todo) if todo else ()
        return jobs

    # --- one window of one step ---

    def _look_up(self, step: Bound, window: range | None) -> list[Call]:
        with self.clock("look up"):
            return self.planner.calls(step, window)

    def _window(self, step: Bound, number: int, window: range | None) -> WindowDone:
        jobs = self._ahead.pop((step.name, number), None)
        return self._through_all(step, [(call, None) for call in self._look_up(step, window)] if jobs is None else jobs)

    def _through_all(self, step: Bound, jobs: Sequence[Job | Future[Job]]) -> WindowDone:
        """Take note of what came of each call, and make what is still missing."""
        started = time.perf_counter()
        result, failed_before = self.result.steps[step.name], len(self.result.failures)
        before = replace(result)
        if self.watcher:
            self.watcher.step(step, len(jobs))
        keys: dict[str, str] = {}
        waiting: dict[str, list[Call]] = {}
        try:
            for job in jobs:
                with self.clock("waiting"):
                    call, outcome = job.result() if isinstance(job, Future) else job
                keys[call.id] = call.key
                if not self._settled(call, outcome):
                    waiting.setdefault(call.key, []).append(call)
            self._make_all(step, waiting)
        finally:
            result.seconds += time.perf_counter() - started
            for failure in self.result.failures[failed_before:]:
                keys.pop(failure.id, None)  # what gave nothing is not what the element had last
            with self.clock("look up"):
                self.store.note_keys(self.graph.name, step.name, {id_: key for id_, key in keys.items() if key})
        return WindowDone(*(getattr(result, name) - getattr(before, name) for name in ("ran", "cached", "failed", "skipped")))

    def _settled(self, call: Call, outcome: Outcome | None) -> bool:
        """Take note of what became of a call; False if it is still to be made."""
        if outcome is not None:
            self._came(call, outcome)
        elif call.manifest:
            self._cached(call, call.manifest)
        elif call.state == "failed":
            self._failed(call, Failure(call.step.name, call.id, call.reason))
        elif call.state != "run":
            self._left_out(call)
        else:
            return False
        return True

    def _make_all(self, step: Bound, waiting: dict[str, list[Call]]) -> None:
        """Make each key once: equal pictures of a window share the result, and so do processes that work on one store."""
        while waiting:
            todo = [calls[0] for calls in waiting.values()]
            self._caller.expect(step, todo)
            for call, outcome in self._caller.in_lanes(step, todo, partial(self._made, step)):
                if self._settled(call, outcome):
                    for same in waiting.pop(call.key)[1:]:
                        if isinstance(outcome, Failure):
                            self._failed(same, outcome)
                        else:
                            manifest = outcome or call.manifest
                            assert manifest
                            self._cached(same, manifest)
            if waiting:
                with self.clock("waiting for another process"):
                    time.sleep(POLL)

    def _found(self, call: Call) -> Manifest | None:
        """What the key gave, if another process or thread has made it since it was looked up."""
        try:
            return self.store.look_up(call.key) if call.reason != "forced" else None
        except (Damaged, Unreachable):
            return None

    # --- what became of an element ---

    def _came(self, call: Call, outcome: Outcome) -> None:
        result = self.result.steps[call.step.name]
        if isinstance(outcome, Failure):
            self._failed(call, outcome)
            return
        result.ran += 1
        result.reasons[call.reason] = result.reasons.get(call.reason, 0) + 1
        self._through(call, outcome, "ran")

    def _cached(self, call: Call, manifest: Manifest) -> None:
        self.result.steps[call.step.name].cached += 1
        self._through(call, manifest, "cached")

    def _through(self, call: Call, manifest: Manifest, state: str) -> None:
        self.planner.done(call, manifest.outputs)
        notes = self.result.steps[call.step.name].notes
        for ref in manifest.refs():
            if note := ref.info.get("note"):
                notes[str(note)] = notes.get(str(note), 0) + 1
        if call.missing:
            note = f"{call.missing} missing"
            notes[note] = notes.get(note, 0) + 1
        if self.watcher:
            self.watcher.element(call, state)
        if self.finished:
            self.finished(call, manifest.outputs)

    def _left_out(self, call: Call) -> None:
        self.result.steps[call.step.name].skipped += 1
        self.planner.elements.leave_out(call.step, call.position, Gap.SKIPPED)
        if self.watcher:
            self.watcher.element(call, "skipped")

    def _failed(self, call: Call, failure: Failure) -> None:
        self.result.steps[call.step.name].failed += 1
        self.planner.elements.leave_out(call.step, call.position, Gap.FAILED)
        self.result.failures.append(replace(failure, step=call.step.name, id=call.id))
        if self.watcher:
            self.watcher.element(call, "failed")
        if self.max_failures is not None and len(self.result.failures) > self.max_failures:
            raise Stop(f"more than {self.max_failures} failed; the same command goes on with the rest")

    # --- values ---

    def walk(self, name: str) -> Iterator[Call]:
        """The calls of a step by look-ups alone, in order, as after a run: what the store does not have has failed."""
        for step, calls in walk(self.planner.again(), self.graph.needed({name}), Gap.FAILED):
            if step.name == name:
                yield from calls

    def value(self, step: str, ref: Ref) -> Artifact:
        """A value that a step gave, made again if the store's copy is damaged."""
        return self._caller.value(step, ref)

    def values(self, step: str, output: str) -> Iterator[tuple[Position, str, Artifact]]:
        """What a step gave at one output: positions, ids and values, in order, read when asked for."""
        for call in self.walk(step):
            if call.manifest:
                for position, id_, ref in parts_of(call, call.manifest.outputs[output]):
                    yield position, id_, self.value(step, ref)

    def _remake(self, name: str, ref: Ref) -> None:
        """Run the calls of a step again whose values are damaged."""
        with self._remaking:
            for call in self.walk(name):
                if not (call.manifest and any(each.digest == ref.digest for each in call.manifest.refs())):
                    continue
                self.store.forget(call.key)
                again = replace(call, state="run", reason="damaged", manifest=None)
                for _, outcome in self._caller.run(call.step, [again]):
                    if isinstance(outcome, Manifest):
                        result = self.result.steps[name]
                        result.cached, result.ran = result.cached - 1, result.ran + 1
                        result.reasons["damaged"] = result.reasons.get("damaged", 0) + 1
                return


def parts_of(call: Call, found: Ref | tuple[Ref, ...]) -> Iterator[tuple[Position, str, Ref]]:
    """What one output of a call gave: the value with the element's position and id, or each of a list with its own."""
    if isinstance(found, Ref):
        yield call.position, call.id, found
        return
    for index, ref in enumerate(found):
        yield (*call.position, index), "/".join(filter(None, (call.id, str(index)))), ref


def _load_all(caller: Caller, steps: Sequence[Bound]) -> None:
    for step in steps:
        with contextlib.suppress(Exception):  # whoever needs the model will say what is wrong with it
            caller.prepare(step)


def _reads_files(step: Bound) -> bool:
    """Whether a step's elements are files of one folder, so that they can be read before their window's turn."""
    return isinstance(step.node, Source) and len(step.over) == 1
