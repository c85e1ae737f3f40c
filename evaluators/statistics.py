"""Statistics of the dense model's layers, by which published baselines rank them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from ..policies.families.layers import DecoderLayer
    from ..policies.runtime.watch import AttentionCall

# torch is imported where a model is at hand, so that reading statistics does not need it.


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one decoder layer of the dense model, means over all tokens of all prompts.

    Attributes:
        block_influence: 1 - cos(x, y) of the layer's input and output: Block Influence of ShortGPT (arXiv:2403.03853).
            The lower, the less the layer changes.
        attention_cosine: cos(x, x + A(x)), the similarity of LLM-Drop (arXiv:2406.15786); A includes its norm. The
            higher, the less the attention changes.
        ffn_cosine: cos(x', x' + F(x')), the same for the FFN; x' is the layer's input where the layer is parallel.
        attention_rank: ARank of γ-MoD (arXiv:2410.13859): rank of the attention weights below the diagonal, mean over
            heads and prompts, at most the number of tokens - 1. None where the layer has no attention between tokens,
            or the rank was not requested.
        frozen_divergence: KL(dense || image tokens frozen in this layer alone) of the first answer token, in nats, mean
            over the prompts: the layer contribution of ShortV (arXiv:2504.00502). None where it was not requested.
    """

    block_influence: float
    attention_cosine: float
    ffn_cosine: float
    attention_rank: float | None = None
    frozen_divergence: float | None = None


@dataclass
class StatisticSums:
    """Sums of one layer's statistics over the tokens and prompts so far."""

    cosines: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("block", "attention", "ffn"), 0.0))
    tokens: int = 0
    ranks: list[float] = field(default_factory=list)

    def means(self) -> LayerStatistics:
        """The statistics of the layer."""
        block, attention, ffn = (total / self.tokens for total in self.cosines.values())
        return LayerStatistics(1 - block, attention, ffn, sum(self.ranks) / len(self.ranks) if self.ranks else None)


def layer_statistics(
    model: "PreTrainedModel", prompts: Sequence[Mapping[str, "Tensor"]], ranks: bool = True
) -> list[LayerStatistics]:
    """Run a dense model once on each prompt, and compute the statistics of its layers; leaves the model unchanged.

    Args:
        model: A model without a policy.
        prompts: Inputs of batch 1, without padding, such as `Subject.prompts`. The baselines were published with 128 to
            256 of them; a few give nearly the same order.
        ranks: Whether to compute attention ranks, which takes a singular value decomposition for every head.

    Returns:
        One entry a decoder layer, first to last.

    Raises:
        ModelError: the layers of the model cannot be taken apart.
    """
    import torch

    from ..policies.families.layers import decoder_layers

    with torch.no_grad():
        layers = decoder_layers(model)
        sums = [StatisticSums() for _ in layers]
        with ExitStack() as hooks:
            for layer, layer_sums in zip(layers, sums, strict=True):
                hooks.enter_context(summed_statistics(layer, layer_sums, ranks))
            for prompt in prompts:
                model(**on_device(prompt, model), use_cache=False)
    return [layer_sums.means() for layer_sums in sums]


def on_device(prompt: Mapping[str, "Tensor"], model: "PreTrainedModel") -> dict[str, "Tensor"]:
    """A prompt on the model's device, in its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in prompt.items()
    }


@contextmanager
def summed_statistics(layer: "DecoderLayer", sums: StatisticSums, ranks: bool) -> Iterator[None]:
    """Add the statistics of every call of a layer in this context to its sums."""
    from ..policies.families.anatomy import first

    def add_call(module: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = dict(zip(layer.parameters, args, strict=False)) | kwargs
        add_statistics(layer, sums, arguments.pop("hidden_states"), arguments, first(output), ranks)

    hook = layer.module.register_forward_hook(add_call, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def add_statistics(
    layer: "DecoderLayer", sums: StatisticSums, x: "Tensor", arguments: dict[str, Any], y: "Tensor", ranks: bool
) -> None:
    """Add the statistics of one call of a layer to its sums.

    Args:
        layer: The layer.
        sums: Its sums.
        x: The hidden states that entered it, shape (1, tokens, width).
        arguments: All other arguments.
        y: The hidden states that left it.
        ranks: Whether to compute the rank of its attention.
    """
    from torch.nn.functional import cosine_similarity

    from ..policies.runtime.watch import recorded_attention

    parts = layer.sublayers
    # The attention is computed a second time, because the layer's output has both sublayers added together.
    with recorded_attention(parts.attention) as calls:
        attention = parts.norm_and_attend(x, arguments).float()
    x, y = x.float(), y.float()
    pairs = {
        "block": (x, y),
        "attention": (x, x + attention),
        "ffn": (x, y - attention) if parts.parallel else (x + attention, y),
    }
    for name, (before, after) in pairs.items():
        sums.cosines[name] += float(cosine_similarity(before, after, dim=-1).double().sum())
    sums.tokens += x.shape[1]
    if ranks and calls and layer.kind == "attention":
        sums.ranks.append(mean_rank(calls[-1]))


def mean_rank(call: "AttentionCall") -> float:
    """Rank of the attention weights below the diagonal, mean over the heads; float32, with torch's tolerance."""
    import torch

    repeats = call.query.shape[1] // call.key.shape[1]
    key = call.key.float().repeat_interleave(repeats, dim=1)
    logits = call.query.float() @ key.transpose(-1, -2) * call.scaling
    if call.softcap is not None:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    allowed = torch.ones_like(logits, dtype=torch.bool).tril()
    if call.mask is not None:
        mask = call.mask[..., : key.shape[2]]
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    # An attention sink scales each row, which does not change the rank of the matrix.
    return float(torch.linalg.matrix_rank(weights.tril(-1)).double().mean())
