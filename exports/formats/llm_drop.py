"""LLM-Drop's keys of a `config.json`: the layers whose attention, and those whose FFN, are dropped.

Read by the files `configuration_dropped_*.py` in `src/llmtuner/compression/prune/models` of CASE-Lab-UMD/LLM-Drop
(arXiv:2406.15786): each list holds layer numbers in any order, or one true or false for each layer.
"""

import json
from typing import Any

from ...policies.choice import LAST_LAYER
from ...policies.document import Document, Problem
from ...policies.metadata import ModelRef
from ...policies.policy import Policy
from ...policies.wording import short
from .sublayers import Given, depth, layer_numbers, policy_of, skipped

FILE = "drop_lists.json"
SIGN = "the keys `drop_attn_list` and `drop_mlp_list`, as in its config.json"
LISTS = ("drop_attn_list", "drop_mlp_list")


def matches(given: Given) -> bool:
    """True for a mapping that has one of the lists."""
    return any(name in given.keys for name in LISTS)


def write(policy: Policy) -> str:
    """The keys of a policy, to merge into the `config.json` of the model.

    Raises:
        ExportError: the policy has other choices, or does not say how many layers the model has.
    """
    lists = dict(zip(LISTS, skipped(policy), strict=True))
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in lists.items()]
    return "{\n" + ",\n".join([f'  "num_hidden_layers": {depth(policy)}', *lines]) + "\n}\n"


def read(given: Given) -> Policy:
    """The policy of a `config.json`, or of a part of one.

    Raises:
        PolicyError: a list has mistakes, or the model has another number of layers.
    """
    document = given.document.check()
    total = document.data.get("num_hidden_layers", given.num_layers)
    problems: list[Problem] = []
    if total is not None and (type(total) is not int or not 1 <= total <= LAST_LAYER + 1):
        raise document.failure([document.problem(("num_hidden_layers",), f"found {short(total)}, expected a number")])
    if given.num_layers not in (None, total):
        problems.append(document.problem(("num_hidden_layers",), f"found {total}, expected {given.num_layers}"))
    attention, ffn = (document.data.get(name) or [] for name in LISTS)
    for name, value in zip(LISTS, (attention, ffn), strict=True):
        problems += list_problems(document, name, value, total)
    if problems:
        raise document.failure(problems)
    return policy_of(numbers(attention), numbers(ffn), ModelRef(num_layers=total))


def list_problems(document: Document, name: str, value: Any, num_layers: int | None) -> list[Problem]:
    """The mistakes in one of the lists."""
    if not is_logical(value):
        return layer_numbers(document, (name,), value, num_layers)
    if num_layers in (None, len(value)):
        return []
    found = f"found {len(value)} entries, expected {num_layers}, one for each layer"
    return [document.problem((name,), found)]


def is_logical(value: Any) -> bool:
    """True for a list of true and false."""
    return isinstance(value, list) and bool(value) and all(isinstance(entry, bool) for entry in value)


def numbers(value: list[Any]) -> list[int]:
    """The layer numbers of a list of either kind."""
    return [index for index, drops in enumerate(value) if drops] if is_logical(value) else value
