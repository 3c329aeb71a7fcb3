"""Models in memory: loaded once, the one not used for longest goes first, with the options that a pipeline gives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil

from nodes import Detect, Embed, Image, Model, models, resident
from nodes.errors import ModelError, OutOfMemory
from nodes.models import filled, identity
from nodes.resident import Place, held, shortage
from nodes.vision import load_vision
from tests.conftest import EXAMPLES


@pytest.fixture(autouse=True)
def nothing_loaded() -> None:
    resident.release()
    resident.loads.clear()


@pytest.fixture
def cat() -> Image:
    with pil.open(EXAMPLES / "cat-blue.png") as picture:
        return Image.from_pil(picture)


def load_detector(place: resident.Place) -> object:
    return load_vision(place, "AutoModelForObjectDetection")


def test_a_model_is_loaded_once_for_all_that_use_it(toybox: Mapping[str, str], cat: Image) -> None:
    detect = Detect(model=Model(role="detect", source=toybox["detect"]))
    detect.prepare()
    first = detect.run(cat)
    assert Detect(model=Model(role="other", source=toybox["detect"]), threshold=0.6).run(cat) == first
    assert [source for source, _ in resident.loads] == [toybox["detect"]]


def test_the_model_not_used_for_longest_goes_when_room_is_short(
    toybox: Mapping[str, str], cat: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = Detect(model=Model(role="detect", source=toybox["detect"]))
    embed = Embed(model=Model(role="embed", source=toybox["embed"]))
    monkeypatch.setenv("PHOTOLOOM_MODEL_MEMORY", "1")
    for node in (detect, embed, detect):
        node.run(cat)
    assert len(resident.loads) == 2, "there is room for both"
    monkeypatch.setenv("PHOTOLOOM_MODEL_MEMORY", "0.003")
    Embed(model=Model(role="embed", source=toybox["embed"], channels_last=True)).prepare()
    detect.run(cat)
    assert [source for source, _ in resident.loads].count(toybox["detect"]) == 2, "it went, and was loaded again"


def test_a_budget_that_is_no_number_is_refused(toybox: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    Detect(model=Model(role="detect", source=toybox["detect"])).prepare()
    monkeypatch.setenv("PHOTOLOOM_MODEL_MEMORY", "lots")
    with pytest.raises(ModelError) as error:
        Embed(model=Model(role="embed", source=toybox["embed"])).prepare()
    assert str(error.value) == 'PHOTOLOOM_MODEL_MEMORY: expected a number of GB, got "lots"'


def test_memory_that_is_short_is_said_in_our_words_and_frees_what_is_not_used(toybox: Mapping[str, str], cat: Image) -> None:
    import torch

    detect = Model(role="detect", source=toybox["detect"])
    Detect(model=detect).run(cat)
    errors = torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("… can't allocate memory: …")
    for error in errors:
        with pytest.raises(OutOfMemory, match="memory is too short for the model .*dino"), \
                shortage(Model(role="embed", source=toybox["embed"])):
            raise error
    Detect(model=detect).run(cat)
    assert len(resident.loads) == 2
    with pytest.raises(RuntimeError, match="another"), shortage(detect):
        raise RuntimeError("another")


def test_a_models_options_come_from_the_set_or_the_step_and_are_part_of_its_identity(toybox: Mapping[str, str]) -> None:
    options = {"detect": {"source": toybox["detect"], "dtype": "bfloat16", "channels_last": True}}
    found = filled(Model(role="detect"), options)
    assert (found.dtype, found.channels_last, found.source) == ("bfloat16", True, toybox["detect"])
    assert filled(Model(role="detect", dtype="float32"), options).dtype == "float32"

    def digest(path: Path) -> str:
        return path.name

    known = {
        identity(filled(model, {"detect": toybox["detect"]}), digest) for model in (
            Model(role="detect"), Model(role="detect", dtype="bfloat16"), Model(role="detect", channels_last=True),
        )
    }
    assert len(known) == 3
    assert identity(filled(Model(role="detect", offload="model"), {"detect": toybox["detect"]}), digest) in known
    assert identity(filled(Model(role="detect", dtype="float32"), {"detect": toybox["detect"]}), digest) in known


@pytest.mark.parametrize(("options", "message"), [
    ({"source": "x", "dtyp": "float32"}, 'models: detect: dtyp: unknown option; did you mean "dtype"?'),
    ({"source": "x", "dtype": "int8"}, "models: detect: dtype: expected 'auto', 'float32', 'float16' or 'bfloat16'"),
    ({"source": "x", "compile": "yes"}, "models: detect: compile: expected a valid boolean"),
])
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as error:
        filled(Model(role="detect"), {"detect": options})
    assert str(error.value) == message


def test_options_change_how_a_model_runs_and_hardly_what_it_finds(toybox: Mapping[str, str], cat: Image) -> None:
    plain = Embed(model=Model(role="embed", source=toybox["embed"])).run(cat)
    for options in ({"channels_last": True}, {"attention": "eager"}, {"dtype": "bfloat16"}):
        found = Embed(model=Model(role="embed", source=toybox["embed"], **options)).run(cat)
        cosine = plain.vector @ found.vector / np.linalg.norm(plain.vector) / np.linalg.norm(found.vector)
        assert cosine > 0.999, options
    with held(Model(role="detect", source=toybox["detect"], dtype="bfloat16"), load_detector) as detector:  # type: ignore[type-var]
        assert str(detector.model.dtype) == "torch.bfloat16"  # type: ignore[attr-defined]


class Loading:
    """Models of which each takes a while to be loaded, and is then worked with; what began and ended, in order."""

    modules: tuple[()] = ()

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, list[str]()

    def load(self, place: Place) -> Loading:
        self.told.append(f"load {place.folder.name}")
        time.sleep(0.1)
        self.told.append(f"loaded {place.folder.name}")
        return self

    def work(self, name: str, **options: Any) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        with held(Model(role="x", source=str(self.folder / name), **options), self.load):
            self.told.append(f"work {name}")
            time.sleep(0.1)
            self.told.append(f"worked {name}")


def begin(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_models_are_loaded_one_at_a_time_whoever_asks(tmp_path: Path) -> None:
    toys = Loading(tmp_path)
    for thread in [begin(partial(toys.work, name)) for name in "abc"]:
        thread.join(20)
    loads = [line for line in toys.told if line.startswith("load")]
    assert [first.split()[1] == second.split()[1] for first, second in zip(loads[::2], loads[1::2], strict=True)] == [True] * 3
    assert any(toys.told.index(f"work {a}") < toys.told.index(f"loaded {b}") for a in "abc" for b in "abc"), "others work on"


def test_nobody_works_while_a_model_of_another_dtype_is_loaded(tmp_path: Path) -> None:
    toys = Loading(tmp_path)
    toys.work("a")
    for _ in range(3):
        toys.told.clear()
        resident.release()
        works = [begin(partial(toys.work, "a")), begin(partial(toys.work, "b", dtype="bfloat16"))]
        for thread in works:
            thread.join(20)
        began, ended = toys.told.index("load b"), toys.told.index("loaded b")
        assert not {"work a", "worked a"} & set(toys.told[began:ended])
        assert (toys.told.index("work a") < began) == (toys.told.index("worked a") < began), "it does not begin meanwhile"


def test_a_model_may_be_loaded_by_who_works_with_another(tmp_path: Path) -> None:
    toys = Loading(tmp_path)
    (tmp_path / "a").mkdir()
    with held(Model(role="x", source=str(tmp_path / "a"), dtype="float16"), toys.load):
        toys.work("b", dtype="bfloat16")
    assert toys.told[-1] == "worked b"


class Nvml:
    """A driver's library that knows of two GPUs, or is of a kernel that does not run."""

    def __init__(self, wrong: int) -> None:
        self._wrong = wrong

    def nvmlInit_v2(self) -> int:
        return self._wrong

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0


def test_gpus_are_those_that_the_driver_counts_and_the_environment_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Nvml:
        raise OSError(f"{name}: cannot open shared object file")

    found = []
    for library in (lambda name: Nvml(0), lambda name: Nvml(18), absent):
        monkeypatch.setattr("ctypes.CDLL", library)
        found.append(models.gpus.__wrapped__())
    assert found == [2, 0, 0]
    monkeypatch.setattr(models, "gpus", lambda: 2)
    for visible, is_cpu in (("", True), ("-1", True), ("1", False)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert models.device_is_cpu() is is_cpu
    assert models.dtype_of(Model(role="x")) == "float16"


def test_a_gpu_that_torch_cannot_use_is_told(toybox: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(resident, "device_is_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError) as error:
        Embed(model=Model(role="embed", source=toybox["embed"])).prepare()
    assert str(error.value) == (
        f'model "{toybox["embed"]}": there is a GPU, and torch {torch.__version__} cannot use it; install a torch that can, or '
        "set CUDA_VISIBLE_DEVICES to nothing to work on the processor"
    )


def test_offload_without_a_gpu_is_refused(toybox: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "device_is_cpu", lambda: True)
    with pytest.raises(ModelError) as error:
        Embed(model=Model(role="embed", source=toybox["embed"], offload="model")).prepare()
    assert str(error.value) == f'model "{toybox["embed"]}": offload moves a model off a GPU, and there is none here'
