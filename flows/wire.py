"""What crosses between a flow and a worker, as JSON: a step, its calls with references into the store, what came of them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import own
from flows.graph import Bound, Wire
from flows.plan import Call
from flows.store import Ref
from nodes.base import Model, Node
from nodes.errors import WorkerError
from nodes.models import locate

Sent = dict[str, Any]
"""Something as JSON holds it."""


def importable(node: type[Node]) -> bool:
    """Whether another process finds the class by its name."""
    home = sys.modules.get(node.__module__)
    return node.__module__ != "__main__" and getattr(home, node.__name__, None) is node


def step_sent(step: Bound) -> Sent:
    """A step: its node's class by name, its params, and what it is wired to."""
    node = type(step.node)
    params = json.loads(step.node.model_dump_json())
    for name in node.model_fields:  # a worker stands in another folder
        if isinstance(model := getattr(step.node, name), Model) and not (found := locate(model.source)).commit:
            params[name]["source"] = str(found.folder)
    return {
        "name": step.name,
        "module": node.__module__,
        "class": node.__name__,
        "file": str(own.files.get(node.__module__, "")),
        "params": params,
        "wires": {port: [wire.step, wire.output] for port, wire in step.wires.items()},
        "lineage": list(step.lineage),
        "gives": list(step.gives),
        "texts": dict(step.texts),
    }


def step_received(sent: Sent) -> Bound:
    """The step, its node's class imported.

    Raises:
        WorkerError: there is no such class here.
    """
    node = _class(sent["module"], sent["class"], sent["file"])
    wires = {port: Wire(*ends) for port, ends in sent["wires"].items()}
    params = node.model_validate(sent["params"], strict=False)  # JSON knows no tuples
    return Bound(sent["name"], params, wires, tuple(sent["lineage"]), tuple(sent["gives"]), sent["texts"])


def _class(module: str, name: str, file: str) -> type[Node]:
    try:
        if file:
            own.import_nodes(Path(file))
        else:
            importlib.import_module(module)
        found: type[Node] = getattr(sys.modules[module], name)
    except (ImportError, AttributeError) as error:
        raise WorkerError(f"the worker has no node {module}.{name}: {error}") from error
    return found


def call_sent(call: Call) -> Sent:
    """A call; `forced` is one that is to run whatever the store has."""
    return {
        "position": list(call.position), "id": call.id, "key": call.key, "forced": call.reason == "forced",
        "inputs": values_sent(call.inputs),
    }


def call_received(step: Bound, sent: Sent) -> Call:
    """The call of a step."""
    reason = "forced" if sent["forced"] else ""
    return Call(step, tuple(sent["position"]), sent["id"], "run", reason, sent["key"], values_received(sent["inputs"]))


def values_sent(values: Mapping[str, Ref | tuple[Ref, ...] | None]) -> Sent:
    """The values on some ports, as references."""
    return {
        port: [ref_sent(each) for each in found] if isinstance(found, tuple) else found and ref_sent(found)
        for port, found in values.items()
    }


def values_received(sent: Sent) -> dict[str, Any]:
    """The references, by port."""
    return {
        port: tuple(map(ref_received, found)) if isinstance(found, list) else found and ref_received(found)
        for port, found in sent.items()
    }


def ref_sent(ref: Ref) -> Sent:
    """A reference into the store."""
    return {"digest": ref.digest, "info": dict(ref.info)}


def ref_received(sent: Sent) -> Ref:
    """The reference."""
    return Ref(sent["digest"], sent["info"])
