"""Small nodes for engine tests: each does one thing that a test can count or see."""

from __future__ import annotations

import errno
import os
import time
import weakref
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from nodes import Boxes, File, Image, Masks, Model, Node, Score, Sink, Source, Text
from nodes.errors import OutOfMemory, UserError

calls: list[str] = []
"""The name of each toy call, in order."""


class Invert(Node):
    """Each pixel turned into its opposite, plus `add`."""

    version: ClassVar[str] = "1"
    add: int = 0

    def run(self, image: Image) -> Image:
        calls.append("Invert")
        return Image(255 - image.pixels + np.uint8(self.add))


class BrightSpot(Node):
    """A box around all pixels brighter than `threshold`; none is no error."""

    version: ClassVar[str] = "1"
    threshold: int = 200

    def run(self, image: Image) -> Boxes:
        calls.append("BrightSpot")
        ys, xs = np.nonzero(image.pixels.max(axis=2) > self.threshold)
        if not len(xs):
            return Boxes(np.zeros((0, 4)), (), np.zeros(0))
        return Boxes(np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]), ("spot",), np.ones(1))


class Fussy(Node):
    """Passes pictures on, several at once, and fails on those whose first pixel is 13."""

    version: ClassVar[str] = "1"

    def run(self, image: Image) -> Image:
        return self.run_batch([image])[0]

    def run_batch(self, image: list[Image]) -> list[Image]:
        calls.append(f"Fussy×{len(image)}")
        if any(each.pixels[0, 0, 0] == 13 for each in image):
            raise RuntimeError("thirteen")
        return image


class Rows(Node):
    """A picture cut into its rows."""

    version: ClassVar[str] = "1"

    def run(self, image: Image) -> list[Image]:
        return [Image(row[None]) for row in image.pixels]


class Stack(Node):
    """Pictures of one width on top of each other."""

    version: ClassVar[str] = "1"

    def run(self, images: list[Image]) -> Image:
        calls.append("Stack")
        return Image(np.concatenate([image.pixels for image in images]))


class Tolerant(Node):
    """How many pictures came."""

    version: ClassVar[str] = "1"
    tolerates_missing: ClassVar[bool] = True

    def run(self, images: list[Image]) -> Score:
        return Score(float(len(images)), "count")


class Pairs(Node):
    """Two lists of pictures, the first pixels of those that belong together in one row."""

    version: ClassVar[str] = "1"
    tolerates_missing: ClassVar[bool] = True
    aligned: ClassVar[bool] = True

    def run(self, left: list[Image], right: list[Image]) -> Image:
        return Image(np.stack([[a.pixels[0, 0], b.pixels[0, 0]] for a, b in zip(left, right, strict=True)]))


class Measured(NamedTuple):
    mean: Score
    words: Text


class Measure(Node):
    """The mean of all values, as a number and in words."""

    version: ClassVar[str] = "1"

    def run(self, image: Image) -> Measured:
        mean = float(image.pixels.mean())
        return Measured(Score(mean, "mean"), Text(f"mean {mean:.0f}"))


class Say(Node):
    """A text."""

    version: ClassVar[str] = "1"
    text: str
    times: int = 1

    def run(self) -> Text:
        calls.append("Say")
        return Text(self.text * self.times)


class Add(Node):
    """A picture with a number added to each value."""

    version: ClassVar[str] = "1"
    amount: float

    def run(self, image: Image) -> Image:
        return Image((image.pixels + self.amount).clip(0, 255).astype(np.uint8))


class Paint(Node):
    """A plain picture of 20×20 pixels."""

    version: ClassVar[str] = "1"
    red: int
    green: int = 0
    blue: int = 0

    def run(self) -> Image:
        return Image(np.full((20, 20, 3), (self.red, self.green, self.blue), np.uint8))


class Bright(Node):
    """One mask: all pixels brighter than `threshold`."""

    version: ClassVar[str] = "1"
    threshold: int

    def run(self, image: Image) -> Masks:
        inside = image.pixels.max(axis=2) > self.threshold
        return Masks(inside[None] * np.uint8(255), ("bright",), np.ones(1))


class Caption(Node):
    """A picture with a text beside it, which is not drawn."""

    version: ClassVar[str] = "1"
    text: str

    def run(self, image: Image) -> Image:
        return image.with_info(caption=self.text)


class Wrong(Node):
    """Returns what it does not declare."""

    version: ClassVar[str] = "1"

    def run(self, image: Image) -> Boxes:
        return image  # type: ignore[return-value]


class Grey(Source):
    """A file of text, each number a grey pixel of one row."""

    version: ClassVar[str] = "1"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    def run(self, file: Path) -> Image:
        calls.append("Grey")
        return Image(np.array([[[int(number)] for number in line.split()] for line in file.read_text().splitlines()], np.uint8))


class Patient(Node):
    """Passes a picture on once `calls` holds as many toy calls of a kind as it waits for; says so if they never come."""

    version: ClassVar[str] = "1"
    kind: str
    count: float

    def run(self, image: Image) -> Image:
        ends = time.monotonic() + 10
        while calls.count(self.kind) < self.count:
            if time.monotonic() > ends:
                raise RuntimeError(f"only {calls.count(self.kind)} × {self.kind}")
            time.sleep(0.001)
        return image


class Write(Sink):
    """A picture's bytes as a file."""

    version: ClassVar[str] = "1"

    def run(self, image: Image) -> File:
        calls.append("Write")
        return File(image.pixels.reshape(-1), ".raw")


class Plate:
    """What a hungry node holds while it is at work."""


plates: weakref.WeakSet[Plate] = weakref.WeakSet()


class Hungry(Node):
    """Passes pictures on, and has memory for `most` at once: a plate for each, with those that are still about."""

    version: ClassVar[str] = "1"
    most: int

    def run(self, image: Image) -> Image:
        return self.run_batch([image])[0]

    def run_batch(self, image: list[Image]) -> list[Image]:
        calls.append(f"Hungry×{len(image)}")
        mine = [Plate() for _ in image]
        plates.update(mine)
        if len(plates) > self.most:
            raise OutOfMemory("memory is too short for the toy")
        return image


class Describe(Node):
    """The words and the picture's first pixel, several at once whose words may differ."""

    version: ClassVar[str] = "1"
    words: str

    def run(self, image: Image) -> Text:
        return self.run_batch([image], [self.words])[0]

    def run_batch(self, image: list[Image], words: list[str]) -> list[Text]:
        calls.append(f"Describe×{len(image)}")
        return [Text(f"{text}: {each.pixels[0, 0, 0]}") for each, text in zip(image, words, strict=True)]


class Slow(Node):
    """Passes a picture on after a while."""

    version: ClassVar[str] = "1"

    def run(self, image: Image) -> Image:
        calls.append("Slow")
        time.sleep(0.02)
        return image


class Echo(Node):
    """A text after those that come."""

    version: ClassVar[str] = "1"
    text: str

    def run(self, left: Text | None = None, right: Text | None = None) -> Text:
        return Text((left.value if left else "")[-9:] + (right.value if right else "")[-9:] + self.text)


class Ponder(Node):
    """A picture's opposite after a while, from a node that has a model and so is made by a worker. What it begins is a line in
    the file that PONDERED names. It fails on 13, and 66 is the end of its process."""

    version: ClassVar[str] = "1"
    model: Model = Model(role="ponder")
    seconds: float = 0.0
    words: str = ""

    def run(self, image: Image) -> Image:
        calls.append("Ponder")
        first = int(image.pixels[0, 0, 0])
        if log := os.environ.get("PONDERED"):
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {first}\n")
        time.sleep(self.seconds)
        if first == 13:
            raise RuntimeError("thirteen")
        if first == 66:
            os._exit(66)
        return Image(255 - image.pixels).with_info(words=self.words)


class Flaky(Node):
    """Passes pictures on, after it has failed `times` times: of the network, or of what the user did."""

    version: ClassVar[str] = "1"
    times: int
    network: bool = True

    def run(self, image: Image) -> Image:
        calls.append("Flaky")
        if calls.count("Flaky") <= self.times:
            try:
                raise (
                    ConnectionResetError("the other side hung up") if calls.count("Flaky") % 2
                    else OSError(errno.ENETUNREACH, "Network is unreachable")
                )
            except OSError as error:
                raise (RuntimeError if self.network else UserError)("no answer") from error
        return image


class Cards(Node):
    """Plain pictures of one pixel, of the greys `first`, `first + 1`, …, and `words`. They are made several at once; those of
    13 fail."""

    version: ClassVar[str] = "1"
    counted: ClassVar[tuple[str, ...]] = ("count", "first")
    first: int
    count: int = 1
    words: str = ""

    def run(self) -> list[Image]:
        return self.run_batch([self.first], [self.words])[0]

    def run_batch(self, first: list[int], words: list[str]) -> list[list[Image]]:
        calls.append(f"Cards×{len(first)}")
        if 13 in first:
            raise RuntimeError("thirteen")
        return [
            [Image(np.full((1, 1, 3), grey + i, np.uint8), info={"words": text}) for i in range(self.count)]
            for grey, text in zip(first, words, strict=True)
        ]


class Far(Cards):
    """Cards from a node that has a model, and so is made by a worker."""

    version: ClassVar[str] = "1"
    model: Model = Model(role="far")


class Rolled(NamedTuple):
    faces: list[Image]
    words: list[Text]


class Dice(Node):
    """The faces of a die, each with its number in words; as many for one throw as `wrong` says."""

    version: ClassVar[str] = "1"
    counted: ClassVar[tuple[str, ...]] = ("throws", "seed")
    throws: int
    seed: int = 0
    wrong: int = 1

    def run(self) -> Rolled:
        calls.append("Dice")
        seeds = range(self.seed, self.seed + self.throws * self.wrong)
        faces = [seed % 6 + 1 for seed in seeds]
        return Rolled([Image(np.full((1, 1, 3), face, np.uint8)) for face in faces], [Text(f"a {face}") for face in faces])
