"""What a request costs under a policy, from the shapes of the weights and the words of the policy alone.

FLOPs, where a multiply-add is two: every matrix costs 2 * rows * columns for each token that goes through it, attention
2 * (width of a key + width of a value) for each head and each pair of a query and a key, with no discount for masks. A
router and a shared expert see every token, of the other experts each token sees its top k. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

from slow_heads import attention_of, shape_of
from slow_widths import units
from torch import nn

from families import IMAGE, Family, layer_list
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.policy import Policy

CLASSES = {"both": {"image", "text", "answer"}, "prefill": {"image", "text"}, "decode": {"answer"}}
KINDS = {"all": {"image", "text", "answer"}, "image": {"image"}, "text": {"text", "answer"}}
# Latent attention stores tokens small, and makes keys and values of all of them with this matrix at every step.
LATENT = "kv_b_proj"
# Matrices that keys and values do not need; of a fused one, the first rows, as many as the output matrix has columns.
WITHOUT_KEYS = ("q_proj", "q_a_proj", "q_b_proj", "o_proj", "out_proj", "attn.c_proj", ".dense.")
FUSED, OUTPUT = "qkv_proj", "o_proj"
# What tokens do that a ratio leaves out: in the attention, and in the FFN.
REST = {
    "skip": ("skip", "skip"),
    "keys_only": ("keys_only", "skip"),
    "attention": ("run", "skip"),
    "ffn": ("skip", "run"),
}
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
    images = {place for place, token in enumerate(ids) if token == IMAGE}
    for number, layer in enumerate(layer_list(model)):
        choice = policy.choice(number)
        among = sorted(images & survivors)
        rest = set(among) - kept(among, len(images), choice)
        does = doing(choice, survivors, images, rest)
        evicted = rest if choice.evict or choice.phase == "decode" else set()
        if policy.token_selection.reselect == "once" and choice.phase != "decode":
            survivors = survivors - rest
        taking = {
            role: {i for i, (own, _) in does.items() if own == role} for role in ("run", "keys_only", "queries_only")
        }
        fed = [i for i, (_, own) in does.items() if own == "run"]
        narrow = set(fed) & concerned_by(choice, images, rest, len(ids))
        # The step after the prompt has one query, which is text.
        step, step_fed = (choice.attention, choice.ffn) if "answer" in scope(choice) else ("run", "run")
        if number not in mixers:
            at = (layer, family.windows[number], len(ids))
            total += attention_costs(AttentionShape.of(model, layer, kept_share(choice)), taking, evicted, step, at)
            if choice.head_ratio is not None and choice.attention == "run":
                # The other heads: what the choice does not concern, among itself.
                outside = {**taking, "run": taking["run"] - concerned_by(choice, images, rest, len(ids))}
                others = AttentionShape.of(model, layer, kept_share(choice), others=True)
                step = "skip" if "answer" in scope(choice) else "run"
                total += attention_costs(others, outside, set(), step, at)
            if choice.window is not None and images:
                pairs = window_pairs(len(ids), sorted(images), family, choice.window) - len(taking["run"]) ** 2
                total += Costs(pairs * AttentionShape.of(model, layer).pair)
        elif taking["run"]:
            total += mixers[number]
        whole, part = ffn_flops(layer), narrow_flops(layer, choice)
        step_part = part if "answer" in scope(choice) else whole
        prefill = len(narrow) * part + (len(fed) - len(narrow)) * whole
        total += Costs(prefill, step_part if step_fed == "run" else 0)
    return total


def window_pairs(length: int, images: list[int], family: Family, window: int) -> int:
    """Pairs of a query and a key: text sees all, a block of image tokens the text before the last one and its own keys.

    A grid is cut into blocks of at most 4 x 4 tokens; all have the size and the keys of the largest.
    """
    text, count, size, keys = images[-1] + 1 - len(images), 0, 0, 0
    for grid in family.grids:
        parts = [-(-side // 4) for side in grid]
        sides = [-(-side // part) for side, part in zip(grid, parts, strict=True)]
        reach = [min(own + 2 * window, side) for own, side in zip(sides, grid, strict=True)]
        count += prod(parts)
        size, keys = max(size, prod(sides)), max(keys, prod(reach))
    count *= len(images) // sum(map(prod, family.grids))
    return (length - len(images)) * length + count * size * (keys + text)


def concerned_by(choice: LayerChoice, images: set[int], rest: set[int], length: int) -> set[int]:
    """The tokens of a prompt that a choice concerns; those beyond a ratio have their own."""
    concerned = {i for i in range(length) if ("image" if i in images else "text") in scope(choice)}
    return concerned if choice.phase == "decode" else concerned - rest


def kept_share(choice: LayerChoice) -> Fraction:
    """The share of the heads that every token has."""
    return Fraction(str(choice.head_ratio)) if choice.head_ratio and choice.attention == "run" else Fraction(1)


def doing(choice: LayerChoice, tokens: set[int], images: set[int], rest: set[int]) -> dict[int, tuple[str, str]]:
    """What each token of a prompt does in the attention and in the FFN."""
    classes = scope(choice)
    does: dict[int, tuple[str, str]] = {}
    for place in tokens:
        concerned = ("image" if place in images else "text") in classes
        does[place] = (choice.attention, choice.ffn) if concerned else ("run", "run")
        if place in rest and choice.phase != "decode":
            does[place] = REST[choice.rest]
    return does


def scope(choice: LayerChoice) -> set[str]:
    """The classes of tokens that a choice concerns."""
    return CLASSES[choice.phase] & KINDS[choice.tokens]


def kept(among: list[int], count: int, choice: LayerChoice) -> set[int]:
    """The image tokens that a layer processes, at even distances; `count` of them are in the prompt."""
    if choice.token_ratio is None or choice.tokens == "text":
        return set(among)
    wanted = min(int(Fraction(str(choice.token_ratio)) * count), len(among))
    return {i for n, i in enumerate(among) if (n + 1) * wanted // len(among) > n * wanted // len(among)}


def attention_costs(
    shape: AttentionShape,
    taking: Mapping[str, set[int]],
    evicted: set[int],
    step: str,
    at: tuple[nn.Module, int | None, int],
) -> Costs:
    """The costs of attention between the tokens of a prompt, and of the step after it.

    `taking` has the tokens of each role, `step` the role of the token after the prompt; `at` has the layer, its window
    and the length of the prompt.
    """
    layer, window, length = at
    asking, lone, frozen = (len(taking[role]) for role in ("run", "queries_only", "keys_only"))
    seen = taking["run"] | taking["keys_only"]
    # What a window will not reach any more is forgotten: the next query, at `length`, sees `window - 1` earlier ones.
    stored = len([place for place in seen - evicted if window is None or place > length - window])
    # A layer that stores some tokens and not others notes their places, in 8 bytes each.
    places = 8 * stored if 0 < len(seen - evicted) < length else 0
    size = next(layer.parameters()).element_size()
    prefill = shape.flops(asking, len(seen)) + shape.lone_flops(lone, len(seen)) + frozen * shape.key
    decode = {
        "run": shape.flops(1, stored + 1),
        "queries_only": shape.lone_flops(1, stored),
        "keys_only": shape.key,
        "skip": 0,
    }
    return Costs(prefill, decode[step], stored * shape.stored * size + places)


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of one attention sublayer.

    Attributes:
        query: FLOPs of the matrices that each token goes through that asks.
        key: FLOPs of the matrices that each token goes through that is seen only.
        latent: FLOPs of the matrix that each key goes through.
        pair: FLOPs of one query and one key.
        stored: Numbers in the cache for each token.
    """

    query: int
    key: int
    latent: int
    pair: int
    stored: int

    def flops(self, queries: int, keys: int) -> int:
        return queries * self.query + keys * self.latent + queries * keys * self.pair if queries else 0

    def lone_flops(self, queries: int, keys: int) -> int:
        """FLOPs of queries that each see these keys and their own."""
        return queries * (self.query + self.latent + (keys + 1) * self.pair) + (keys * self.latent if queries else 0)

    @classmethod
    def of(cls, model: Any, layer: nn.Module, share: Fraction = Fraction(1), others: bool = False) -> AttentionShape:
        """The sizes of an attention with a share of its groups of heads, or with the others."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        whole = shape_of(attention_of(layer)).groups
        count = whole - int(share * whole) if others else int(share * whole)
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        key, value = width, width
        groups = key_heads(config)
        matrices = dict(matrices_of(layer, attention=True))
        shared = {name: of_all_heads(name, groups, heads) for name in matrices}
        matrices = {name: int(size * (part + (1 - part) * Fraction(count, whole)))
                    for (name, size), part in zip(matrices.items(), shared.values(), strict=True)}  # fmt: skip
        stored = (groups if groups == 1 else groups * count // whole) * (key + value)
        heads = heads * count // whole
        latent = 0
        if any(LATENT in name for name in matrices):
            key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
            latent = sum(size for name, size in matrices.items() if LATENT in name)
            stored = config.kv_lora_rank + config.qk_rope_head_dim
        unused = sum(size for name, size in matrices.items() if any(word in name for word in WITHOUT_KEYS))
        if any(FUSED in name for name in matrices):
            unused += next(size for name, size in matrices.items() if OUTPUT in name)
        every = sum(matrices.values()) - latent
        return cls(2 * every, 2 * (every - unused), 2 * latent, 2 * heads * (key + value), stored)


def of_all_heads(name: str, keys: int, heads: int) -> Fraction:
    """The share of a matrix that belongs to all heads: keys and values where there is one head of them, latent ones."""
    if "q_a_proj" in name or "kv_a_proj" in name:
        return Fraction(1)
    if keys == 1 and "query_key_value" in name:
        return Fraction(2, heads + 2)
    return Fraction(1) if keys == 1 and ("k_proj" in name or "v_proj" in name) else Fraction(0)


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


def narrow_flops(layer: nn.Module, choice: LayerChoice) -> int:
    """FLOPs of one token in the FFN with the first channels, of which a choice keeps the same share in each expert."""
    if choice.ffn_ratio is None:
        return ffn_flops(layer)
    saved, ratio = 0, Fraction(str(choice.ffn_ratio))
    for unit in units(layer):
        sent = Fraction(experts_of(layer), unit.experts) if unit.experts else 1
        saved += sent * unit.size * (unit.channels - int(ratio * unit.channels))
    return int(ffn_flops(layer) - 2 * saved)


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
