"""Find the pictures that look most like one."""

from __future__ import annotations

import heapq
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from nodes.artifacts import Embedding, Image, Score
from nodes.base import Node
from nodes.errors import InputError


class Matches(NamedTuple):
    """Pictures, most similar first, and how similar each is."""

    images: list[Image]
    scores: list[Score]


class Nearest(Node):
    """The `count` pictures most similar to a query, by the cosine of their embeddings, best first.

    `candidates` and `images` go together, one embedding for each picture; of equally similar ones the earlier comes
    first. Fewer than `count` candidates give fewer results. A query that is among the candidates finds itself first.
    Embeddings are read one after another, and of the pictures only those chosen.

    Raises:
        InputError: the lists differ in length, or an embedding has not the length of the query's.
    """

    version: ClassVar[str] = "1"
    tolerates_missing: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    count: Annotated[int, Field(ge=1)] = 5

    def run(self, query: Embedding, candidates: list[Embedding], images: list[Image]) -> Matches:
        if len(candidates) != len(images):
            raise InputError(
                f"Nearest: {len(candidates)} candidates but {len(images)} images; each candidate needs its image"
            )
        best: list[tuple[float, int]] = []
        for index, candidate in enumerate(candidates):
            ranked = (_cosine(query, candidate, index), -index)
            if len(best) < self.count:
                heapq.heappush(best, ranked)
            else:
                heapq.heappushpop(best, ranked)
        order = sorted(best, reverse=True)
        scores = [Score(value, "cosine similarity") for value, _ in order]
        return Matches([images[-index] for _, index in order], scores)


def _cosine(query: Embedding, candidate: Embedding, index: int) -> float:
    """-1..1; 0 where a vector has no length."""
    if query.vector.shape != candidate.vector.shape:
        raise InputError(
            f"Nearest: candidate {index} has {len(candidate.vector)} numbers and the query {len(query.vector)}; "
            "both must come from the same model"
        )
    a, b = query.vector.astype(np.float64), candidate.vector.astype(np.float64)
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length else 0.0
