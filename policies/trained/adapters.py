"""Adapters in place of skipped attentions, and their file beside the policy.

The propagation-of-information adapter of EAS (arXiv:2403.15226). With u = N2 x of each token and the mean ū over the
prompt tokens of the row, padding apart:

    ā = W_a ū + b_a,   g = softmax((W_g ū + b_g) / 10),   z = ½ (W_c u + b_c + ā)
    P(u) = u + g_1 (W_B z + b_B) + g_2 (W_D z + b_D),     y = x + F(P(N2 x))

W_B and W_D have two blocks on their diagonal, and begin at zero: then the layer is one that skips its attention. The
mean and the gate belong to the prompt and stay as they are while an answer is generated, so all of it holds for a row
alone, in a batch, with a cache and in training. A frozen adapter has constants in place of ā and g; then P is affine.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from ..errors import ModelError, PolicyError
from ..families.layers import layer_list
from ..policy import Policy
from .files import ADAPTERS
from .modules import LayerModules
from .swap import read_tensors

BLOCKS: Final = 2
EXPERTS: Final = 2
TEMPERATURE: Final = 10.0


class Adapter(nn.Module):
    """The adapter of one layer.

    Args:
        width: The width of the hidden states, even.
        rank: The width in between, even.

    Attributes:
        down: W_c and b_c.
        mean: W_a and b_a.
        gate: W_g and b_g.
        up: The blocks of W_B and W_D side by side, shape (blocks, width / blocks, experts * rank / blocks).
        up_bias: b_B and b_D, shape (experts, width).
        frozen: ā and g, shape (rank + experts,), where they are constants; else None.
    """

    frozen: Tensor | None

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.mean, self.gate = nn.Linear(width, rank), nn.Linear(width, rank), nn.Linear(width, EXPERTS)
        self.up = nn.Parameter(torch.zeros(BLOCKS, width // BLOCKS, EXPERTS * rank // BLOCKS))
        self.up_bias = nn.Parameter(torch.zeros(EXPERTS, width))
        self.register_buffer("frozen", None)
        for one in (self.down, self.mean, self.gate):
            nn.init.xavier_uniform_(one.weight)
            nn.init.zeros_(one.bias)

    @property
    def rank(self) -> int:
        """The width in between."""
        return self.down.out_features

    @property
    def constants(self) -> Tensor:
        """What a frozen adapter has in the place of `pooled`, shape (1, rank + experts)."""
        return cast(Tensor, self.frozen)[None]

    def pooled(self, normed: Tensor, prompt: Tensor) -> Tensor:
        """ā and g of each row, at least in float32, shape (batch, rank + experts).

        Args:
            normed: N2 x, shape (batch, tokens, width).
            prompt: The tokens of the prompt, padding apart, shape (batch, tokens).
        """
        dtype = torch.promote_types(normed.dtype, torch.float32)
        inside = normed.to(dtype).masked_fill(~prompt[..., None], 0.0)
        mean = inside.sum(dim=1) / prompt.sum(dim=1, keepdim=True).clamp_min(1)
        gates = (applied(self.gate, mean) / TEMPERATURE).softmax(dim=-1)
        return torch.cat([applied(self.mean, mean).to(dtype), gates.to(dtype)], dim=-1)

    def forward(self, normed: Tensor, pooled: Tensor) -> Tensor:
        """P(u) of tokens.

        Args:
            normed: u = N2 x, shape (batch, tokens, width).
            pooled: ā and g of each row, shape (batch or 1, rank + experts).
        """
        shift, gates = pooled.to(normed).split([self.rank, EXPERTS], dim=-1)
        z = 0.5 * (applied(self.down, normed) + shift[:, None])
        blocks = z.unflatten(-1, (BLOCKS, 1, self.rank // BLOCKS))
        weighed = (blocks * gates[:, None, None, :, None]).flatten(-2)
        update = torch.einsum("btkr,kdr->btkd", weighed, self.up.to(weighed)).flatten(-2)
        return normed + (update + (gates @ self.up_bias.to(gates))[:, None]).to(normed.dtype)

    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """The up and the down matrix and the bias of a frozen adapter, P(u) = u + up down u + bias.

        In float64 on the CPU.

        Returns:
            Shapes (width, rank), (rank, width) and (width,).
        """
        precise = (self.constants[0], self.up, self.up_bias, self.down.weight, self.down.bias)
        constants, blocks, up_bias, down, down_bias = (part.detach().cpu().double() for part in precise)
        shift, gates = constants.split([self.rank, EXPERTS])
        by_expert = blocks.unflatten(-1, (EXPERTS, self.rank // BLOCKS))
        up = 0.5 * torch.block_diag(*torch.einsum("kder,e->kdr", by_expert, gates))
        return up, down, up @ (down_bias + shift) + gates @ up_bias


def applied(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in the dtype and on the device of its input."""
    return linear(x, layer.weight.to(x), layer.bias.to(x))


class Adapters(LayerModules):
    """Adapters by the number of their layer, as text; float32."""

    noun, file = "adapters", ADAPTERS

    @classmethod
    def of(cls, model: PreTrainedModel, policy: Policy, rank: int) -> "Adapters":
        """Adapters that change nothing yet, on the CPU, for the layers of a policy that have one.

        Raises:
            ModelError: the model has hidden states of odd width.
        """
        width = model.config.get_text_config().hidden_size
        if width % BLOCKS:
            found = f"found hidden_size {width}, expected an even number"
            raise ModelError(f"{type(model).__name__} takes no adapters", [found], "train with --method lora")
        return cls({str(index): Adapter(width, rank) for index in adapted_layers(policy)})

    @property
    def each(self) -> Iterator[tuple[int, Adapter]]:
        """Each layer's number and adapter."""
        return ((int(name), self.of_layer(int(name))) for name in self)

    def of_layer(self, index: int) -> Adapter:
        """The adapter of a layer."""
        return cast(Adapter, self[str(index)])

    @classmethod
    def read(cls, folder: Path, layers: Sequence[int], width: int) -> "Adapters":
        """Read the adapters of some layers from a folder.

        Raises:
            PolicyMismatch: they are those of other layers, or of another width.
        """
        adapters, found = cls(), read_tensors(folder / ADAPTERS)
        for index in layers:
            down = found.get(f"{index}.down.weight")
            adapter = Adapter(width, BLOCKS if down is None else len(down))
            if f"{index}.frozen" in found:
                adapter.frozen = torch.zeros(adapter.rank + EXPERTS)
            adapters[str(index)] = adapter
        adapters.take(found, folder)
        return adapters


def adapted_layers(policy: Policy) -> list[int]:
    """The layers that have an adapter in place of their attention."""
    return [index for index, choice in policy.canonical().layers.items() if choice.attention == "adapter"]


def without_adapters(policy: Policy) -> Policy:
    """The policy with skipped attentions in place of adapters, which is what it computes before they are trained."""
    layers = {
        index: choice.model_copy(update={"attention": "skip"}) if choice.attention == "adapter" else choice
        for index, choice in policy.layers.items()
    }
    return policy.model_copy(update={"layers": layers})


def trained_adapters(model: PreTrainedModel, policy: Policy) -> Adapters | None:
    """The adapters that belong to a policy, in the dtype of their layers and beside them; None where it has none.

    Raises:
        PolicyError: there are none beside the policy, or they are other ones.
        PolicyMismatch: they do not fit the policy or the model.
    """
    layers = adapted_layers(policy)
    if not layers:
        return None
    if policy.weights is None or not policy.weights.adapters:
        raise PolicyError(
            "the policy has adapters in place of attentions, and none were trained",
            ["found attention: adapter without adapters beside the policy"],
            "train them with `skipsearch recover POLICY --method adapter`, or skip the attention",
        )
    policy.check_fits(len(layer_list(model)), type(model).__name__)
    with torch.inference_mode(False):
        width = model.config.get_text_config().hidden_size
        adapters = Adapters.read(policy.weights.check(policy.folder), layers, width)
        for index, adapter in adapters.each:
            weight = next(layer_list(model)[index].parameters())
            # A frozen one is folded into the FFN in full precision.
            dtype = model.dtype if adapter.frozen is None else torch.float32
            adapter.to(device="cpu" if weight.is_meta else weight.device, dtype=dtype)
    return adapters.requires_grad_(False)
