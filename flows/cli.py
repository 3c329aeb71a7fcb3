"""The command `photoloom`. Exit codes: 0 all done, 1 some elements failed, 2 nothing ran, 130 interrupted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from gc import freeze, set_threshold
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.own import import_nodes
from nodes.errors import ServerError, UserError, nearest

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Typed, cached pipelines for pictures.",
)
store_app = typer.Typer(no_args_is_help=True, help="The store of results: info, gc, verify.")
deployments_app = typer.Typer(no_args_is_help=True, help="Pipelines on a schedule: list, pause, resume, delete.")
server_app = typer.Typer(no_args_is_help=True, help="The local Prefect server: start, stop, status.")
app.add_typer(store_app, name="store")
app.add_typer(deployments_app, name="deployments")
app.add_typer(server_app, name="server")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"photoloom {version('photoloom')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is."),
    ] = False,
) -> None:
    pass


File = Annotated[Path, typer.Argument(metavar="PIPELINE", help="A pipeline's YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Give a param a value.")]
Sweep = Annotated[list[str] | None, typer.Option(
    "--sweep", metavar="K=V1,V2",
    help="Run every combination of these values, and show the pictures on a grid; \"quote\" a value that holds a comma.",
)]
Models = Annotated[str | None, typer.Option(help="Use this model set.")]
StoreAt = Annotated[str, typer.Option("--store", metavar="URL", help="The store: a folder, or s3://BUCKET/PREFIX.")]
Allow = Annotated[list[Path] | None, typer.Option(help="A further folder that the pipeline's own paths may lead to.")]
Own = Annotated[list[Path] | None, typer.Option("--nodes", metavar="FILE", help="A Python file with node classes of your own.")]
Only = Annotated[list[str] | None, typer.Option(metavar="STEP", help="Run this step and what it rests on.")]
Force = Annotated[list[str] | None, typer.Option(metavar="STEP", help="Run this step whatever the store has.")]
MaxFailures = Annotated[int | None, typer.Option(min=0, help="Stop when more elements than this have failed.")]
On = Annotated[str | None, typer.Option(
    metavar="here|worker", help="Where steps with a model are made; else on a worker, if one is found.",
)]
Out = Annotated[Path, typer.Option(help="The folder for results.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A deployment's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

STORE = "outputs/store"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _pipeline(path: Path, own: list[Path] | None) -> Any:
    for file in own or []:
        import_nodes(file)
    from flows.pipeline import Pipeline
    from flows.spec import read

    return Pipeline.from_spec(read(path))


def _values(pipeline: Any, given: list[str] | None) -> dict[str, Any]:
    """`--set K=V`: V is read as the type of the param's default."""
    from flows.spec import value_of

    found = {}
    for text in given or []:
        name, value = _pair(pipeline, "--set", text, "VALUE")
        found[name] = value_of(value, pipeline.spec.params[name])
    return found


def _size(option: str, text: str) -> int | None:
    """A number of elements, or None for `auto`."""
    if text == "auto":
        return None
    if not text.isdigit() or not int(text):
        raise UserError(f"{option} {text}: expected auto or a number from 1 on")
    return int(text)


def _sweep(pipeline: Any, given: list[str] | None) -> dict[str, list[Any]]:
    """`--sweep K=V1,V2`: each V is read as that of `--set`; one that holds a comma stands in double quotes, as in CSV."""
    import csv

    from flows.spec import value_of

    found: dict[str, list[Any]] = {}
    for text in given or []:
        name, values = _pair(pipeline, "--sweep", text, "VALUE,VALUE")
        if name in found:
            raise UserError(f'--sweep {text}: "{name}" is swept already; write all its values in one --sweep')
        rows = csv.reader(values.splitlines(), skipinitialspace=True)
        found[name] = [value_of(value, pipeline.spec.params[name]) for row in rows for value in row]
    return found


def _pair(pipeline: Any, option: str, text: str, form: str) -> tuple[str, str]:
    """The param that `NAME=…` names, and what follows."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{option} {text}: write {option} NAME={form}")
    if name not in pipeline.spec.params:
        raise UserError(f'{option} {text}: unknown param "{name}"{nearest(name, pipeline.spec.params)}')
    return name, value


@app.command()
def run(
    pipeline: File, set_: Set = None, sweep: Sweep = None, models: Models = None, store: StoreAt = STORE,
    out: Out = Path("outputs"), allow: Allow = None, own: Own = None, only: Only = None, force: Force = None,
    max_failures: MaxFailures = None,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Do not write into pictures how they were made.")] = False,
    window: Annotated[str, typer.Option(help="Elements that go through the steps together: auto, or a number.")] = "auto",
    batch: Annotated[str, typer.Option(help="Elements that go through a model at once: auto, or a number.")] = "auto",
    watch: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run again whenever files come into it.")] = None,
    on: On = None, as_json: Json = False,
) -> None:
    """Run a pipeline: what the store has is taken from it, the rest is made."""
    from flows.progress import Lines, watcher

    found = _pipeline(pipeline, own)
    values, swept = _values(found, set_), _sweep(found, sweep)
    sizes = {"window": _size("--window", window), "batch": _size("--batch", batch)}

    def once(apart_from: frozenset[Path] = frozenset()) -> str:
        with (Lines() if as_json else watcher()) as watched:
            result = found.run(
                values, sweep=swept, models=models, store=store, out=out, allow=allow or (), only=only or (), force=force or (),
                max_failures=max_failures, metadata=not no_metadata, watcher=watched, say=_say, on=on,
                apart_from=apart_from, **sizes,
            )
        if as_json:
            json.dump(result.summary, sys.stdout, ensure_ascii=False)
            print(flush=True)
        else:
            _told(result.summary)
        return str(result.status)

    if watch is None:
        raise typer.Exit(1 if once() != "done" else 0)
    found.graph(values, models, allow or ())  # a pipeline that is wrong ends here
    _watching(watch, (out, *([Path(store)] if "://" not in store else [])), once)


def _watching(folder: Path, apart_from: Sequence[Path], run: Callable[[frozenset[Path]], object]) -> None:
    """Run whenever files below a folder have come and are whole, without those that are not; what goes wrong in one run does
    not end the next."""
    from flows.watch import batches

    _say(f"watching {folder}; Ctrl-C ends it")
    for arrived in batches(folder, apart_from):
        try:
            run(arrived.unfinished)
        except UserError as error:
            _say(str(error))


def _told(summary: Any) -> None:
    from flows.report import told

    width = max([12, *map(len, summary["steps"])])
    states = {
        name: ", ".join(f"{step[s]} {s}" for s in ("ran", "cached", "failed", "skipped") if step[s]) or (
            "not reached" if summary["stopped"] else "nothing to do"
        )
        for name, step in summary["steps"].items()
    }
    broad = max([24, *map(len, states.values())])
    for name, step in summary["steps"].items():
        why = "; ".join([*step["reasons"], *(f"{count} × {note}" for note, count in step["notes"].items())])
        print(f"{name:<{width}} {states[name]:<{broad}} {step['seconds']:>8.2f} s  {why}".rstrip())
    for failure in summary["failures"]:
        _say(f"failed: {told(failure)}")
    if summary["stopped"]:
        _say(f"stopped: {summary['stopped']}")
    for step, files in summary["outputs"].items():
        if files:
            print(f"{step}: {len(files)} in {Path(summary['report']).parent / step}")
    for output, grids in groupby(summary["grids"], lambda grid: grid["output"]):
        paths = [grid["path"] for grid in grids]
        where = paths[0] if len(paths) == 1 else Path(summary["report"]).parent / "grid" / output
        print(f"{output}: {len(paths)} as a grid of the sweep: {where}")
    print(f"{summary['status']} in {summary['seconds']:.1f} s; report: {summary['report']}")


@app.command()
def check(pipeline: File, set_: Set = None, models: Models = None, own: Own = None) -> None:
    """Check a pipeline: all that is wrong is said at once, and nothing runs."""
    found = _pipeline(pipeline, own)
    graph = found.graph(_values(found, set_), models)
    print(f"{graph.name}: {len(graph.steps)} steps, all right")


@app.command()
def plan(
    pipeline: File, set_: Set = None, sweep: Sweep = None, models: Models = None, store: StoreAt = STORE,
    allow: Allow = None, own: Own = None, only: Only = None, force: Force = None, as_json: Json = False,
) -> None:
    """Say for each step and element what a run would do, and why."""
    found = _pipeline(pipeline, own)
    planned = found.plan(
        _values(found, set_), sweep=_sweep(found, sweep), models=models, store=store, allow=allow or (), only=only or (),
        force=force or (),
    )
    if as_json:
        print(json.dumps({
            step.name: [{"id": call.id, "state": call.state, "reason": call.reason} for call in step.calls] for step in planned
        }, ensure_ascii=False))
        return
    width = max([12, *(len(step.name) for step in planned)])
    for step in planned:
        states = ", ".join(f"{count} {word}" for word, count in step.states().items()) or "nothing to do"
        print(f"{step.name:<{width}} {states}")
        for call in step.calls:
            if call.state == "run":
                print(f"    {call.id or step.name}: {call.reason}")


@app.command()
def graph(pipeline: File, own: Own = None) -> None:
    """Print the graph as a Mermaid flowchart."""
    from flows.graph import mermaid

    print(mermaid(_pipeline(pipeline, own).graph()), end="")


@app.command(name="nodes")
def nodes_(name: Annotated[str | None, typer.Argument(metavar="NAME")] = None, own: Own = None) -> None:
    """List the node classes, or say all about one."""
    for file in own or []:
        import_nodes(file)
    from flows.describe import described
    from flows.pipeline import known_nodes

    print(described(known_nodes(), name), end="")


@app.command()
def schema(own: Own = None) -> None:
    """Print the JSON Schema of pipelines, for editors."""
    for file in own or []:
        import_nodes(file)
    from flows.describe import json_schema
    from flows.pipeline import known_nodes

    print(json.dumps(json_schema(known_nodes()), indent=1, ensure_ascii=False))


@app.command()
def deploy(
    pipeline: File,
    cron: Annotated[str | None, typer.Option(metavar="RULE", help="When to run: \"0 2 * * *\" is each night at two.")] = None,
    interval: Annotated[int | None, typer.Option(metavar="SECONDS", min=1, help="Run again and again.")] = None,
    rrule: Annotated[str | None, typer.Option(metavar="RULE", help="When to run, as a calendar's recurrence rule.")] = None,
    timezone: Annotated[str | None, typer.Option(metavar="ZONE", help="Whose clock to go by: Europe/Paris; else UTC.")] = None,
    set_: Set = None, models: Models = None, store: StoreAt = STORE, out: Out = Path("outputs"),
    allow: Allow = None, own: Own = None, max_failures: MaxFailures = None,
    name: Annotated[str | None, typer.Option(help="The deployment's name; else the pipeline's.")] = None,
) -> None:
    """Run a pipeline on a schedule, in this working directory: makes a deployment, or changes the one of that name."""
    found = _pipeline(pipeline, own)
    from flows import deployments

    made = deployments.deploy(
        found, cron=cron, interval=interval, rrule=rrule, timezone=timezone, params=_values(found, set_), models=models,
        store=store, out=out, nodes=own or (), allow=allow or (), max_failures=max_failures, name=name,
    )
    paused = f"and paused, as it was: photoloom deployments resume {made.name}"
    print(f"{made.name}: deployed{', ' + paused if made.paused else '; runs while `photoloom serve` does'}")


@app.command()
def serve() -> None:
    """Run what is deployed when it is due, until Ctrl-C or SIGTERM."""
    from flows import deployments

    deployments.main()


@deployments_app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the deployments: when each runs, next and last."""
    from dataclasses import asdict

    from flows import deployments

    found = [asdict(each) for each in deployments.listed()]
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    if not found:
        print("none is deployed")
    for each in found:
        when = "paused" if each["paused"] else f"next {each['next'] or 'never'}"
        print(f"{each['name']}: {each['pipeline']}, {each['schedule']}; {when}; last {each['last'] or 'never'}")


@deployments_app.command()
def pause(name: Name) -> None:
    """Do not run a deployment until it is resumed."""
    from flows import deployments

    deployments.pause(name)
    print(f"{name}: paused")


@deployments_app.command()
def resume(name: Name) -> None:
    """Run a deployment on its schedule again."""
    from flows import deployments

    deployments.resume(name)
    print(f"{name}: resumed")


@deployments_app.command()
def delete(name: Name) -> None:
    """Forget a deployment; what its runs made stays."""
    from flows import deployments

    deployments.delete(name)
    print(f"{name}: deleted")


def _there(store: str) -> Any:
    """A store that is there: looking at none does not make one."""
    from flows.store import open_store

    if "://" not in store and not (Path(store) / "manifests").is_dir():
        raise UserError(f"--store {store}: there is no store")
    return open_store(store)


@store_app.command()
def info(store: StoreAt = STORE, as_json: Json = False) -> None:
    """Say what the store holds."""
    found = _there(store).info()
    print(json.dumps(found) if as_json else f"{found['results']} results, {found['values']} values, {found['bytes']:,} bytes")


@store_app.command()
def gc(
    max_size: Annotated[str, typer.Option(help="What the store may take: bytes, or with K, M, G.")], store: StoreAt = STORE
) -> None:
    """Remove what was used longest ago until the store is small enough."""
    from flows.objects import bytes_of

    kept, most = _there(store), bytes_of("--max-size", max_size)
    freed, left = kept.collect(most), kept.info()["bytes"]
    young = f"; {left:,} bytes stay, which were written or used in the last ten minutes" if left > most else ""
    print(f"freed {freed:,} bytes{young}")


@store_app.command()
def verify(store: StoreAt = STORE) -> None:
    """Read everything; what is damaged is named and removed, and made again when it is next asked for."""
    found = _there(store).verify()
    print("\n".join(found) or "all right")
    raise typer.Exit(1 if found else 0)


@server_app.command()
def start() -> None:
    """Start the local Prefect server."""
    from flows import server

    began = server.start()
    server.wait(server.local_url(), began)
    print(f"{'started' if began else 'already running'}: {server.local_url().removesuffix('/api')}")


@server_app.command()
def stop() -> None:
    """Stop the local Prefect server."""
    from flows import server

    server.stop()
    print("stopped")


@server_app.command()
def status() -> None:
    """Say whether the local Prefect server runs."""
    from flows import server

    up = server.answers(server.local_url())
    print(f"{'running' if up else 'not running'}: {server.local_url().removesuffix('/api')}")
    raise typer.Exit(0 if up else 1)


@app.command()
def worker(
    gpus: Annotated[str | None, typer.Option(metavar="0,1", help="The GPUs to use; all where nothing is said.")] = None,
    scheduler: Annotated[str | None, typer.Option(
        metavar="ADDRESS", help="Join this scheduler, tcp://… or tls://…, instead of starting one.",
    )] = None,
    health_port: Annotated[int, typer.Option(min=0, help="The loopback port that answers how it is; 0: any.")] = 0,
) -> None:
    """Keep a worker for each GPU, whose models stay in memory between runs, until it is told to stop."""
    from flows.roof import Roof

    Roof(gpus, scheduler, health_port, _say).keep()


def main() -> None:
    """Entry point: user errors as one message, never a traceback."""
    # Imports make a million objects that all live on: to look for garbage among them takes a fifth of a short run's time.
    set_threshold(10_000)
    try:
        app()
    except UserError as error:
        _say(f"photoloom: {error}" if "\n" not in str(error) else str(error))
        if isinstance(error, ServerError):
            os._exit(2)  # at exit Prefect would try for minutes to tell a server that is gone what it missed
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == 130:  # so typer ends on Ctrl-C
            _say("interrupted; the same command takes up where this one stopped")
        raise
    finally:
        freeze()  # at exit there is nothing to look for either
