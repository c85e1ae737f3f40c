"""Routers of a policy: linear scores of the layers that leave image tokens out, and their file beside the policy.

A router is r = w·x + b on the hidden state x that enters its layer (p-MoD, arXiv:2412.04449), or on N1 x, one for all
layers (γ-MoD, arXiv:2410.13859). It begins at zero: then every token counts the same, and the first ones are kept.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import PolicyError
from ..policy import Policy
from ..scores.table import ROUTER
from .files import ROUTERS
from .modules import LayerModules

SHARED: Final = "shared"


class Routers(LayerModules):
    """Routers by the number of their layer, as text, or one under `shared`; float32.

    Args:
        layers: The numbers of the layers.
        width: The width of the hidden states.
        shared: Whether all layers share one router.

    Attributes:
        losses: In training, one entry for each layer of the last forward: the cross-entropy between the router's σ(r)
            and whether the layer kept a token, mean over image tokens, in nats (γ-MoD's masked routing learning).
    """

    noun, file = "routers", ROUTERS

    def __init__(self, layers: Sequence[int], width: int, shared: bool = False) -> None:
        super().__init__({name: nn.Linear(width, 1) for name in ([SHARED] if shared else map(str, layers))})
        self.losses: list[Tensor] = []
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def of(cls, model: PreTrainedModel, policy: Policy) -> "Routers":
        """Routers at zero, on the CPU, for the layers of a policy that rank image tokens by them."""
        options = policy.token_selection.router
        is_shared = options is not None and options.shared
        return cls(routed_layers(policy), model.config.get_text_config().hidden_size, is_shared)

    def of_layer(self, index: int) -> nn.Module:
        """The router of a layer."""
        return self[SHARED] if SHARED in self else self[str(index)]


def routed_layers(policy: Policy) -> list[int]:
    """The layers that rank image tokens by a router, in canonical form."""
    if policy.token_selection.score != ROUTER:
        return []
    return [index for index, choice in policy.canonical().layers.items() if choice.token_ratio is not None]


def trained_routers(model: PreTrainedModel, policy: Policy) -> Routers | None:
    """The routers that belong to a policy; None where it ranks by none.

    Raises:
        PolicyError: there are none beside the policy, or they are other ones.
        PolicyMismatch: they do not fit the policy or the model.
    """
    if not routed_layers(policy):
        return None
    if policy.weights is None or not policy.weights.routers:
        raise PolicyError(
            "the policy ranks image tokens by routers, and none were trained",
            ["found token_selection: {score: router} without routers beside the policy"],
            "train them with `skipsearch recover POLICY --method router`, or rank by another score",
        )
    with torch.inference_mode(False):
        routers = Routers.of(model, policy)
        routers.load(policy.weights.check(policy.folder))
    return routers.requires_grad_(False)
