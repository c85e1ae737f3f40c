"""The configuration of a model made small: few heads, narrow layers, a short vocabulary, few experts, the same depth.

What a layer is made of, and how many layers of each kind there are, stays. The width of a head stays too, because
rotary positions are divided by it. Names decide what a number is, since no configuration says it otherwise.
"""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedConfig

EXPERTS, EXPERTS_OF_A_TOKEN, VOCABULARY = 4, 2, 1024

MAIN_HEADS = (
    "num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads",
    "encoder_attention_heads",
)  # fmt: skip
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
MAIN_WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "hidden_dim", "dim_model")
IS_VOCABULARY = re.compile(r"vocab(ulary)?_size")
IS_TOKEN = re.compile(r"_ids?$|_ind(ex|ices)$")
IS_EXPERTS_OF_A_TOKEN = re.compile(r"experts?_per_tok|top_?k(_experts)?$|^moe_k$")
IS_EXPERTS = re.compile(r"experts$")
IS_GROUPS = re.compile(r"^(n_group|num_expert_group|topk_group)$")
IS_KEY_HEADS = re.compile(r"(key_value|kv).*heads$")
IS_HEADS = re.compile(r"heads$")
IS_INNER_WIDTH = re.compile(r"intermediate|ffn|inner|_ff$|^dff$")
IS_WIDTH = re.compile(r"(size|dim|width|channels|d_ssm|hidden)$")
# Sizes of pictures and windows, widths of what shrinks in number instead, and dimensions of a recurrence's state.
IS_OTHER_SIZE = re.compile(r"head|image|patch|kernel|chunk|window|block|rank|merge|group|batch|stride|state|ngram|feat")


def shrunk(config: PreTrainedConfig, heads: int) -> PreTrainedConfig:
    """A copy of a configuration, and of those inside it, with small numbers.

    Args:
        config: The configuration.
        heads: How many heads each attention shall have.
    """
    small = copy.deepcopy(config)
    parts = list({id(part): part for part in nested(small)}.values())
    tokens, usual = short_vocabulary(parts), factor_of(small.get_text_config(), heads) or 1
    for part in parts:
        narrowed = narrower(part, factor_of(part, heads) or usual, heads)
        for name, value in numbers(part):
            change = tokens if IS_TOKEN.search(name) else narrowed(name)
            vars(part)[name] = [change(one) for one in value] if isinstance(value, list) else change(value)
    return small


def nested(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from nested(value)


def numbers(config: PreTrainedConfig) -> list[tuple[str, Any]]:
    """The whole numbers of a configuration and its lists of them, by name."""
    return [
        (name, value)
        for name, value in vars(config).items()
        if is_count(value) or (isinstance(value, list) and value and all(map(is_count, value)))
    ]


def is_count(value: Any) -> bool:
    """True for a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def short_vocabulary(parts: list[PreTrainedConfig]) -> Callable[[int], int]:
    """New ids, one each, for the tokens that a short vocabulary does not have."""
    found = set()
    for part in parts:
        for name, value in numbers(part):
            if IS_TOKEN.search(name):
                found |= {one for one in (value if isinstance(value, list) else [value]) if one >= VOCABULARY // 2}
    new = {token: VOCABULARY - 1 - place for place, token in enumerate(sorted(found)[: VOCABULARY // 2])}
    return lambda token: new.get(token, token)


def factor_of(part: PreTrainedConfig, heads: int) -> int | None:
    """By what the heads of a configuration are divided; None where it has none."""
    given = first_of(part, MAIN_HEADS)
    return given and (given if given % heads else given // heads)


def shares_keys(config: PreTrainedConfig) -> bool:
    """True where several heads share their keys, and not all of them the same ones."""
    text = config.get_text_config()
    heads, groups = (first_of(text, names) for names in (MAIN_HEADS, KEY_HEADS))
    return heads is not None and groups is not None and 1 < groups < heads


def first_of(part: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    """The first number of some names that a configuration has."""
    return next((vars(part)[name] for name in names if is_count(vars(part).get(name))), None)


def narrower(part: PreTrainedConfig, factor: int, kept: int) -> Callable[[str], Callable[[int], int]]:
    """How the numbers of a configuration change, by name: heads and widths by one factor, experts to a few.

    Args:
        part: The configuration.
        factor: The factor.
        kept: The number of heads that remain.
    """
    heads, width = first_of(part, MAIN_HEADS) or 0, first_of(part, MAIN_WIDTHS) or 0
    of_head = first_of(part, ("head_dim",))
    # Where the width of a head is a number of its own, the hidden states need not be as wide as all heads.
    free = of_head is not None and of_head * heads != width

    def scaled(value: int) -> int:
        return rounded(value / factor) if free or value % factor else max(value // factor, 1)

    def change(name: str) -> Callable[[int], int]:
        if IS_VOCABULARY.search(name):
            return lambda value: min(value, VOCABULARY)
        if IS_EXPERTS_OF_A_TOKEN.search(name):
            return lambda value: min(value, EXPERTS_OF_A_TOKEN)
        if IS_EXPERTS.search(name):
            return lambda value: min(value, 1 if "shared" in name else EXPERTS)
        if IS_GROUPS.search(name):
            return lambda value: min(value, 1)
        if IS_KEY_HEADS.search(name):
            return lambda value: kept if value >= heads else min(value, kept // 2)
        if name in MAIN_HEADS or IS_HEADS.search(name):
            return lambda value: max(value // factor, 1)
        if IS_INNER_WIDTH.search(name):
            return lambda value: rounded(value / factor)
        if name in MAIN_WIDTHS or name.endswith("d_ssm"):
            return scaled
        if IS_WIDTH.search(name) and width and not IS_OTHER_SIZE.search(name):
            return lambda value: scaled(value) if value >= width else value
        return lambda value: value

    return change


def rounded(width: float) -> int:
    """A width as a multiple of 16 numbers, which some kernels need."""
    return max(round(width / 16), 1) * 16
