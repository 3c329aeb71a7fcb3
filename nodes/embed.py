"""Say what pictures look like, as vectors that can be compared."""

from __future__ import annotations

from typing import Any, ClassVar

from nodes.artifacts import Embedding, Image
from nodes.base import Model, Node
from nodes.resident import Place, held
from nodes.vision import Vision, load_vision


class Embed(Node):
    """What a picture looks like: DINOv2 (Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without
    Supervision").

    `vector` float32 (D,) is the class token and `patches` float32 (h, w, D) the grid of patch tokens, both after the
    final layer norm, at the model's own scale (not of length 1, since values are kept to three digits). Cosine
    similarity is `a @ b / (|a| |b|)`; `Nearest` does it. What part of the picture the model sees is the processor's:
    the public checkpoints look at the central square.

    Raises:
        ModelError: the model is absent or is not DINOv2.
    """

    version: ClassVar[str] = "1"
    model: Model = Model(role="embed")

    def prepare(self) -> None:
        with held(self.model, _load):
            pass

    def run(self, image: Image) -> Embedding:
        return self.run_batch([image])[0]

    def run_batch(self, image: list[Image]) -> list[Embedding]:
        """One result for each picture, of whatever shapes."""
        with held(self.model, _load) as embedder:
            return embedder.batched(image, lambda inputs, _: _embeddings(embedder, inputs["pixel_values"]))


def _embeddings(embedder: Vision, pixels: Any) -> list[Embedding]:
    """The class token and the patch grid of each picture (N, 3, h, w)."""
    config = embedder.model.config
    height, width = pixels.shape[2] // config.patch_size, pixels.shape[3] // config.patch_size
    first = 1 + int(getattr(config, "num_register_tokens", 0))
    states = embedder.model(pixel_values=pixels).last_hidden_state.float().cpu().numpy()
    return [Embedding(state[0], state[first:].reshape(height, width, -1)) for state in states]


def _load(place: Place) -> Vision:
    return load_vision(place, "AutoModel", ("dinov2", "dinov2_with_registers"))
