"""What the dense model's own layers do to its tokens: the statistics that published rules rank layers by."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from ..policies.families.layers import DecoderLayer
    from ..policies.runtime.watch import AttentionCall

# torch is imported where a model is at hand, so that reading statistics stays light.


@dataclass(frozen=True)
class LayerStatistics:
    """One decoder layer of the dense model, means over all tokens of all prompts.

    Attributes:
        block_influence: 1 - cos(x, y) of what enters and leaves the layer: Block Influence of ShortGPT
            (arXiv:2403.03853). The lower, the less the layer changes.
        attention_cosine: cos(x, x + A(x)), the similarity of LLM-Drop (arXiv:2406.15786), its norm belonging to the
            attention. The higher, the less the attention changes.
        ffn_cosine: The same of the FFN, whose input is the layer's where the layer is parallel.
        attention_rank: ARank of γ-MoD (arXiv:2410.13859): rank of the attention's weights below the diagonal, mean of
            the heads and prompts, at most the number of tokens - 1. None where the layer has none between tokens, or
            it was not asked for.
    """

    block_influence: float
    attention_cosine: float
    ffn_cosine: float
    attention_rank: float | None = None


@dataclass
class Sums:
    """What was seen of one layer so far."""

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
    """Run a dense model once on each prompt, and see what its layers do; the model is left as it was.

    Args:
        model: A model without a policy.
        prompts: Inputs of batch 1, without padding, such as `Subject.prompts`. The rules were published with 128 to 256
            of them; a few give nearly the same order.
        ranks: Whether to find attention ranks, which takes a singular value decomposition for every head.

    Returns:
        One entry a decoder layer, first to last.

    Raises:
        ModelError: the layers of the model cannot be taken apart.
    """
    import torch

    from ..policies.families.layers import decoder_layers

    with torch.no_grad():
        layers = decoder_layers(model)
        sums = [Sums() for _ in layers]
        with ExitStack() as hooks:
            for layer, found in zip(layers, sums, strict=True):
                hooks.enter_context(looking(layer, found, ranks))
            for prompt in prompts:
                model(**on_device(prompt, model), use_cache=False)
    return [found.means() for found in sums]


def on_device(prompt: Mapping[str, "Tensor"], model: "PreTrainedModel") -> dict[str, "Tensor"]:
    """A prompt as the model takes it."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in prompt.items()
    }


@contextmanager
def looking(layer: "DecoderLayer", sums: Sums, ranks: bool) -> Iterator[None]:
    """Add what a layer does to the sums, at every call in this context."""
    from ..policies.families.anatomy import first

    def look(module: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = dict(zip(layer.parameters, args, strict=False)) | kwargs
        add(layer, sums, arguments.pop("hidden_states"), arguments, first(output), ranks)

    hook = layer.module.register_forward_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def add(layer: "DecoderLayer", sums: Sums, x: "Tensor", arguments: dict[str, Any], y: "Tensor", ranks: bool) -> None:
    """Add one call of a layer to its sums.

    Args:
        layer: The layer.
        sums: Its sums.
        x: What entered it, shape (1, tokens, width).
        arguments: What else it was called with.
        y: What left it.
        ranks: Whether to find the rank of its attention.
    """
    from torch.nn.functional import cosine_similarity

    from ..policies.runtime.watch import recorded_attention

    parts = layer.sublayers
    # The attention is computed a second time, for the layer shows what both its sublayers add together.
    with recorded_attention(parts.attention) as notes:
        attention = parts.norm_and_attend(x, arguments).float()
    x, y = x.float(), y.float()
    seen = {
        "block": (x, y),
        "attention": (x, x + attention),
        "ffn": (x, y - attention) if parts.parallel else (x + attention, y),
    }
    for name, (before, after) in seen.items():
        sums.cosines[name] += float(cosine_similarity(before, after, dim=-1).double().sum())
    sums.tokens += x.shape[1]
    if ranks and notes and layer.kind == "attention":
        sums.ranks.append(rank(notes[-1]))


def rank(seen: "AttentionCall") -> float:
    """Rank of the attention's weights below the diagonal, mean of the heads; float32, torch's tolerance."""
    import torch

    repeats = seen.query.shape[1] // seen.key.shape[1]
    key = seen.key.float().repeat_interleave(repeats, dim=1)
    logits = seen.query.float() @ key.transpose(-1, -2) * seen.scaling
    if seen.softcap is not None:
        logits = torch.tanh(logits / seen.softcap) * seen.softcap
    allowed = torch.ones_like(logits, dtype=torch.bool).tril()
    if seen.mask is not None:
        mask = seen.mask[..., : key.shape[2]]
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    # The rank of a matrix does not change where a row is scaled: an attention with a sink has the same.
    return float(torch.linalg.matrix_rank(weights.tril(-1)).double().mean())
