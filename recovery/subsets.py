"""Training adapters under sampled subsets of skipped attentions, until it shows which attentions are redundant (EAS).

In the first half of the steps, each step draws which attentions are skipped, and their adapters train; the others run.
From a quarter of the steps on, a bandit updates the scores of the attentions, by which the subsets are drawn: every
third step it compares the losses of several subsets on the batch of the step. In the second half the attentions with
the highest scores stay skipped, and their adapters train alone.
"""

import json
import random
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..policies.errors import UsageError
from ..policies.policy import Policy
from ..policies.trained.adapters import Adapters, adapted_layers
from .redundancy import draw_subset, draw_subsets, most_redundant, probabilities, updated
from .trainer import PolicyTrainer

SCORES: Final = "scores.json"
EVERY: Final = 3  # steps between two updates of the scores
# EAS steps by 1 over thousands of updates; a short training has few.
STEP: Final = 20.0


def refuse_too_few(policy: Policy, size: int) -> None:
    """Refuse to choose among attentions where there is no choice.

    Raises:
        UsageError: the policy has no more adapters than are to be kept.
    """
    found = len(adapted_layers(policy))
    if found <= size:
        details = [f"found {found} layers that skip their attention alone, expected more than the {size} to keep"]
        hint = "name all attentions that may be skipped in the policy, or leave --skip out"
        raise UsageError("there is no attention to choose", details, hint)


class SubsetTrainer(PolicyTrainer):
    """Trains adapters under sampled subsets, and then those of the attentions that are the most redundant.

    Args:
        arguments: The arguments of `PolicyTrainer`; the policy has an adapter in each layer whose attention may go.
        size: How many attentions are skipped.

    Attributes:
        scores: By layer, how redundant its attention is.
    """

    def __init__(self, *arguments: Any, size: int) -> None:
        super().__init__(*arguments)
        self._size = size
        self._updated_at = -1
        self.scores = dict.fromkeys(adapted_layers(self._handle.policy), 0.0)

    @property
    def chosen(self) -> list[int]:
        """The layers whose attentions stay skipped, ascending."""
        return sorted(most_redundant(self.scores, self._size))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss under the subset of the step; see `PolicyTrainer`."""
        step = self.state.global_step
        if step >= self.args.max_steps // 2:
            subset = self.chosen
        else:
            if 4 * step >= self.args.max_steps and step % EVERY == 0 and step != self._updated_at:
                self._update(model, inputs)
                self._updated_at = step
            subset = draw_subset(probabilities(self.scores), self._size, self._draws("step"))
        self._handle.use_adapters(subset)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _draws(self, purpose: str) -> random.Random:
        """Draws that are the same in every process, in every forward of a step, and after an interruption."""
        return random.Random(f"{self.args.seed} {self.state.global_step} {purpose}")

    @torch.no_grad()
    def _update(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Update the scores by the losses of several subsets on a batch."""
        subsets, losses = draw_subsets(probabilities(self.scores), self._size, self._draws("update")), []
        model.eval()
        for subset in subsets:
            self._handle.use_adapters(subset)
            losses.append(super().compute_loss(model, dict(inputs)).detach())
        model.train()
        # Each process has another batch.
        rewards: Any = self.accelerator.reduce(torch.stack(losses).neg().exp(), reduction="mean")
        self.scores = updated(self.scores, subsets, rewards.tolist(), STEP)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the trained parts and the scores."""
        super()._save(output_dir, state_dict)
        scores = {str(index): score for index, score in self.scores.items()}
        (Path(output_dir or str(self.args.output_dir)) / SCORES).write_text(json.dumps(scores), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the trained parts and the scores of a checkpoint."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        found = json.loads((Path(resume_from_checkpoint) / SCORES).read_text(encoding="utf-8"))
        self.scores = {int(index): score for index, score in found.items()}


def with_chosen(policy: Policy, chosen: list[int], adapters: Adapters) -> Policy:
    """The policy with adapters in some of its layers; the attentions of the others run.

    Args:
        policy: The policy, with an adapter in each layer that could be chosen.
        chosen: The layers.
        adapters: The adapters; those of other layers are removed.
    """
    others = set(adapted_layers(policy)).difference(chosen)
    for index in others:
        del adapters[str(index)]
    layers = {
        index: choice.model_copy(update={"attention": "run"}) if index in others else choice
        for index, choice in policy.layers.items()
    }
    return policy.model_copy(update={"layers": layers})
