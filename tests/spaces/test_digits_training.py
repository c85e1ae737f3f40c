"""The training of the digits model goes on where it was interrupted."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from skipsearch.spaces.digits import train

STEPS = 5


def losses(kept: Path | None, stop: int = STEPS) -> tuple[list[float], torch.Tensor]:
    """Train a layer on numbers of both generators, and stop before a step; the losses, and the weights at the end."""
    torch.manual_seed(0)
    rng, layer, found = np.random.default_rng(0), nn.Linear(4, 1), []
    for step, update in train.steps_of("a stage", STEPS, [layer], 0.1, rng, kept):
        if step == stop:
            break
        inputs = torch.rand(8, 4) * torch.tensor(rng.random((8, 4)), dtype=torch.float32)
        loss = (layer(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        update(loss)
        found.append(loss.item())
    return found, layer.weight.detach()


def test_an_interrupted_stage_has_the_losses_and_weights_of_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "KEPT_EVERY", 2)
    whole, weights = losses(None)
    file = tmp_path / "stage.pt"
    begun, _ = losses(file, stop=3)
    rest, resumed = losses(file)
    assert begun == whole[:3] and rest == whole[2:]
    assert torch.equal(resumed, weights)
