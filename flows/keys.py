"""What the cache knows a call by: a tagged digest of the node, its version, params, model, and the contents it is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from nodes.base import UNKEYED, Model, Node

Digest = str
"""SHA-256 in hex."""

Inputs = Mapping[str, Digest | Sequence[Digest] | None]
"""For each port the digest of its contents, those of a list, or None for an optional port left open."""


def digest(tag: str, value: Any) -> Digest:
    """The SHA-256 of a JSON value under a tag, so that no two kinds of thing share a digest. 1, 1.0 and True differ."""
    text = json.dumps([tag, value], sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    raise TypeError(f"{type(value).__name__} cannot be part of a cache key")


def identity(node: Node, models: Mapping[Model, str]) -> dict[str, Any]:
    """What a node is to the cache, apart from its inputs: class, version, the params that matter, and its models.

    `models` gives the identity of each model.
    """
    unkeyed = {name for base, name in UNKEYED.items() if isinstance(node, base)}
    params, used = {}, {}
    for name in type(node).model_fields:
        value = getattr(node, name)
        if isinstance(value, Model):
            used[name] = models[value]
        elif name not in unkeyed:
            params[name] = value
    return {"node": type(node).__name__, "version": node.version, "params": params, "models": used}


def step_key(identity_digest: Digest, inputs: Inputs) -> Digest:
    """The key of one call of a node on contents. An open port counts like a port that is not there, so that a node may
    gain optional ports without losing its cache."""
    given = {name: list(found) if not isinstance(found, str) else found for name, found in inputs.items() if found is not None}
    return digest("Step", [identity_digest, given])


