"""The toybox trainers' checkpoints: a training that was interrupted goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models import training


class Tied(nn.Module):
    """Two layers that share their weights, as a language model's first and last do; they lie in memory by columns, as those
    of a convolution may."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.last.weight = self.first.weight = nn.Parameter(torch.randn(3, 3).T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.norm(self.first(x)))
        return found


def steps(trained: training.Training, count: int) -> None:
    random = torch.Generator().manual_seed(trained.step)
    for _ in range(count):
        trained.learn(trained.model(torch.randn(8, 3, generator=random)).square().mean())
        trained.step += 1


def begun() -> training.Training:
    torch.manual_seed(1)
    return training.Training("tied", Tied(), minutes=1, rate=1e-2)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WORK", tmp_path)
    whole = begun()
    steps(whole, 5)
    whole.spent = 0.1 + 0.2
    whole.save()
    steps(whole, 5)

    resumed = begun()
    assert (resumed.step, resumed.spent) == (5, 0.1 + 0.2)
    steps(resumed, 5)
    for one, other in ((whole.model.state_dict(), resumed.model.state_dict()), (whole.average.state, resumed.average.state)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert [file.name for file in tmp_path.iterdir()] == ["tied.safetensors"]
