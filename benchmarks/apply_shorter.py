"""For `apply.py`: layers written by hand that run a shorter sequence, and the operations that a layer costs."""

import copy
from collections import Counter
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from skipsearch import Policy, apply_policy

IMAGE = 999


class ShorterLayer(LlamaDecoderLayer):
    """The layer over half of the image tokens and all others, which the first such layer cuts off for good."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """The layer's forward."""
        kept, cuts = self.kept, self.cuts
        if hidden_states.shape[1] > 1:
            if self.is_first:
                hidden_states = hidden_states.index_select(1, kept)
                cuts["positions"] = tuple(part.index_select(1, kept) for part in arguments["position_embeddings"])
            arguments |= {"position_embeddings": cuts["positions"], "position_ids": None}
        return super().forward(hidden_states, **arguments)


def shorter_by_hand(model: t.PreTrainedModel, inputs: dict[str, Tensor], first: int) -> t.PreTrainedModel:
    """The model with the same weights, whose layers from the first on run half of the image tokens."""
    other = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    image = inputs["input_ids"][0] == IMAGE
    kept = (~image | (image.cumsum(0) % 2 == 0)).nonzero()[:, 0]
    cuts: dict[str, Any] = {}
    for layer in other.get_decoder().layers[first:]:
        layer.__class__ = ShorterLayer
        layer.kept, layer.cuts, layer.is_first = kept, cuts, not cuts
        cuts["positions"] = None
    return other


class Operations(TorchDispatchMode):
    """Counts what torch computes; a view computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        self.found[operation.name()] += not operation.is_view
        return operation(*args, **(kwargs or {}))


def operations_a_layer(
    model: nn.Module, inputs: dict[str, Tensor], choice: dict[str, Any], selection: dict[str, str]
) -> int:
    """The operations of a prefill that one more layer with a choice costs beyond those of the dense layer."""
    counts = []
    for layers in ((1, 2), (1, 2, 3)):
        policy = Policy.model_validate({"layers": dict.fromkeys(layers, choice), "token_selection": selection})
        with torch.inference_mode(), apply_policy(model, policy), Operations() as operations:
            model(**inputs, use_cache=False, logits_to_keep=1)
        counts.append(operations.found.total())
    return counts[1] - counts[0]
