"""What a request costs under a policy, from the shapes of the weights and the words of the policy alone.

FLOPs, where a multiply-add is two: every matrix costs 2 * rows * columns for each token that goes through it, attention
2 * (width of a key + width of a value) for each head and each pair of a query and a key, with no discount for masks. A
router and a shared expert see every token, of the other experts each token sees its top k. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from families import IMAGE, Family, layer_list
from skipsearch.policies.policy import LayerChoice, Policy

CLASSES = {"both": {"image", "text", "answer"}, "prefill": {"image", "text"}, "decode": {"answer"}}
KINDS = {"all": {"image", "text", "answer"}, "image": {"image"}, "text": {"text", "answer"}}
# Latent attention stores tokens small, and makes keys and values of all of them with this matrix at every step.
LATENT = "kv_b_proj"
# What the parts of a layer that mix tokens are called.
MIXERS = ("att", "conv", "mamba")


@dataclass(frozen=True)
class Costs:
    """Of one row: FLOPs of the prefill and of the step after it, bytes that the prefill leaves in the cache."""

    prefill: int = 0
    decode: int = 0
    cache: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.prefill + other.prefill, self.decode + other.decode, self.cache + other.cache)


def costs(model: Any, family: Family, policy: Policy, ids: list[int], mixers: Mapping[int, Costs] = {}) -> Costs:
    """The costs of the decoder's layers for one prompt.

    `mixers` has what the layers cost that have no attention between tokens, in the dense model and without their FFN.
    """
    total, survivors = Costs(), set(range(len(ids)))
    images = [place for place, token in enumerate(ids) if token == IMAGE]
    for number, layer in enumerate(layer_list(model)):
        choice = policy.choice(number)
        among = [place for place in images if place in survivors]
        processed = survivors - (set(among) - kept(among, len(images), choice))
        if policy.token_selection.reselect == "once":
            survivors = processed
        classes = scope(choice)
        concerned = {place for place in processed if ("image" if place in images else "text") in classes}
        attended = processed - (concerned if choice.attention == "skip" else set())
        fed = processed - (concerned if choice.ffn == "skip" else set())
        # The step after the prompt has one query, which is text.
        steps = int("answer" not in classes or choice.attention == "run")
        fed_steps = int("answer" not in classes or choice.ffn == "run")
        if number not in mixers:
            total += attention_costs(model, layer, attended, steps, family.windows[number], len(ids))
        elif attended:
            total += mixers[number]
        total += Costs(len(fed) * ffn_flops(layer), fed_steps * ffn_flops(layer))
    return total


def scope(choice: LayerChoice) -> set[str]:
    """The classes of tokens that a choice concerns."""
    return CLASSES[choice.phase] & KINDS[choice.tokens]


def kept(among: list[int], count: int, choice: LayerChoice) -> set[int]:
    """The image tokens that a layer processes, at even distances; `count` of them are in the prompt."""
    if choice.token_ratio is None or "image" not in scope(choice):
        return set(among)
    wanted = min(int(Fraction(str(choice.token_ratio)) * count), len(among))
    return {i for n, i in enumerate(among) if (n + 1) * wanted // len(among) > n * wanted // len(among)}


def attention_costs(
    model: Any, layer: nn.Module, attended: set[int], steps: int, window: int | None, length: int
) -> Costs:
    """The costs of attention between these tokens of a prompt, and of the step after it."""
    shape, queries = AttentionShape.of(model, layer), len(attended)
    # What a window will not reach any more is forgotten: the next query, at `length`, sees `window - 1` earlier ones.
    stored = len([place for place in attended if window is None or place > length - window])
    # A layer that stores some tokens and not others notes their places, in 8 bytes each.
    places = 8 * stored if 0 < queries < length else 0
    size = next(layer.parameters()).element_size()
    return Costs(
        shape.flops(queries, queries), steps * shape.flops(1, stored + 1), stored * shape.stored * size + places
    )


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of one attention sublayer.

    Attributes:
        query: FLOPs of the matrices that each query goes through.
        latent: FLOPs of the matrix that each key goes through.
        pair: FLOPs of one query and one key.
        stored: Numbers in the cache for each token.
    """

    query: int
    latent: int
    pair: int
    stored: int

    def flops(self, queries: int, keys: int) -> int:
        return queries * self.query + keys * self.latent + queries * keys * self.pair if queries else 0

    @classmethod
    def of(cls, model: Any, layer: nn.Module) -> AttentionShape:
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        key, value = width, width
        groups = key_heads(config)
        stored = groups * (key + value)
        matrices = dict(matrices_of(layer, attention=True))
        latent = 0
        if any(LATENT in name for name in matrices):
            key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
            latent = sum(size for name, size in matrices.items() if LATENT in name)
            stored = config.kv_lora_rank + config.qk_rope_head_dim
        return cls(2 * (sum(matrices.values()) - latent), 2 * latent, 2 * heads * (key + value), stored)


def key_heads(config: Any) -> int:
    """How many heads of keys are stored."""
    if getattr(config, "new_decoder_architecture", False):
        # Falcon stores one copy for each head of queries.
        return int(config.num_attention_heads)
    if getattr(config, "multi_query", False):
        return 1
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def ffn_flops(layer: nn.Module) -> int:
    """FLOPs of one token in the FFN."""
    return 2 * sum(size for _, size in matrices_of(layer, attention=False))


def matrices_of(layer: nn.Module, attention: bool) -> Iterator[tuple[str, int]]:
    """The matrices of one of the sublayers and how many numbers of each one token meets."""
    for name, weight in layer.named_parameters():
        if any(word in name for word in MIXERS) is not attention or name.endswith("bias"):
            continue
        if weight.dim() == 2:
            yield name, weight.numel()
        elif weight.dim() == 3:
            # One matrix for each expert.
            yield name, weight.numel() // weight.shape[0] * experts_of(layer)


def experts_of(layer: nn.Module) -> int:
    """How many experts each token is sent to."""
    names = ("top_k", "num_experts_per_tok")
    return next(int(getattr(part, name)) for part in layer.modules() for name in names if hasattr(part, name))
