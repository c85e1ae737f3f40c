"""`skip_layers.json` of SWIFT and of Self-Speculative Decoding: by model, the sublayers that a draft leaves out.

Read by `get_cache_configuration` in `model/swift/utils.py` of hemingkx/SWIFT (arXiv:2410.06916), under the key
`MODEL_TASK`, and by the notebooks of dilab-zju/self-speculative-decoding (arXiv:2309.08168), under the key `MODEL`:
`{"llama-2-13b_cnndm": {"attention": [2, 5], "mlp": [9]}}`.
"""

import json
from pathlib import PurePath

from ...policies.errors import PolicyError
from ...policies.metadata import ModelRef
from ...policies.policy import Policy
from ...policies.wording import nearest, short
from .sublayers import Given, layer_numbers, policy_of, skipped

FILE = "skip_layers.json"
SIGN = "for each model the keys `attention` and `mlp`"
KEYS = {"attention", "mlp"}


def matches(given: Given) -> bool:
    """True for a mapping of which every value has the two keys."""
    return bool(given.keys) and all(isinstance(value, dict) and {*value} == KEYS for value in given.keys.values())


def write(policy: Policy) -> str:
    """The text of a policy; its key is the last part of the model's id.

    Raises:
        ExportError: the policy has other choices.
    """
    attention, ffn = skipped(policy)
    lines = ",\n".join(
        f"    {json.dumps(key)}: {json.dumps(layers)}" for key, layers in (("attention", attention), ("mlp", ffn))
    )
    name = json.dumps(PurePath(policy.model.id or "model").name)
    return f"{{\n  {name}: {{\n{lines}\n  }}\n}}\n"


def read(given: Given) -> Policy:
    """One policy of a text.

    Raises:
        PolicyError: the text has several and none is named, lacks the named one, or has mistakes.
    """
    document = given.document.check()
    names = [str(key) for key in document.data]
    if given.entry is None and len(names) != 1:
        details = [f"found {', '.join(names) or 'none'}"]
        raise PolicyError(f"{given.name} has {len(names)} policies, expected one", details, "name one with --entry")
    name = names[0] if given.entry is None else given.entry
    if name not in names:
        raise PolicyError(f"{given.name} has no policy {short(name)}", [nearest(name, names)])
    key = next(key for key in document.data if str(key) == name)
    entry = document.data[key]
    if not isinstance(entry, dict) or {*entry} != KEYS:
        raise document.failure([document.problem((key,), "expected the keys attention and mlp, and no other")])
    problems = [
        problem for part in entry for problem in layer_numbers(document, (key, part), entry[part], given.num_layers)
    ]
    if problems:
        raise document.failure(problems)
    return policy_of(entry["attention"], entry["mlp"], ModelRef(num_layers=given.num_layers))
