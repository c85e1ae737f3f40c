"""EvoPress's `layer_drop_config.txt`: one line a layer, which names what is left out of it.

Written by `evo_drop_search.py` and read by `drop_layers_from_config` in `src/model_utils.py` of IST-DASLab/EvoPress
(arXiv:2410.14649). That reader ignores a line that is none of the four words, so such a file is refused here.
"""

from ...policies.choice import LAST_LAYER
from ...policies.errors import PolicyError
from ...policies.metadata import ModelRef
from ...policies.policy import Policy
from ...policies.wording import short
from .sublayers import Given, depth, policy_of, skipped

FILE = "layer_drop_config.txt"
SIGN = "a line for each layer out of none, attn, mlp and attn+mlp"
WORDS = {"none": (False, False), "attn": (True, False), "mlp": (False, True), "attn+mlp": (True, True)}


def matches(given: Given) -> bool:
    """True for a text whose first line is one of the four words."""
    return given.text.strip().partition("\n")[0].strip() in WORDS


def write(policy: Policy) -> str:
    """The text of a policy.

    Raises:
        ExportError: the policy has other choices, or does not say how many layers the model has.
    """
    attention, ffn = skipped(policy)
    names = {state: word for word, state in WORDS.items()}
    return "".join(f"{names[index in attention, index in ffn]}\n" for index in range(depth(policy)))


def read(given: Given) -> Policy:
    """The policy of a text.

    Raises:
        PolicyError: a line is none of the four words, or their number is not that of the model's layers.
    """
    lines = [line.strip() for line in given.text.rstrip().split("\n")]
    wrong = {number: line for number, line in enumerate(lines, 1) if line not in WORDS}
    if wrong:
        details = [
            f"{given.name}:{number}:1  found {short(line)}, expected {', '.join(WORDS)}"
            for number, line in wrong.items()
        ]
        raise PolicyError(f"{given.name} is no drop list of EvoPress", details[:20])
    if not len(lines) <= LAST_LAYER + 1 or given.num_layers not in (None, len(lines)):
        found = f"found {len(lines)} lines, expected {given.num_layers or LAST_LAYER + 1}, one for each layer"
        raise PolicyError(f"{given.name} is for another number of layers", [found])
    states = [WORDS[line] for line in lines]
    attention = [index for index, (skips, _) in enumerate(states) if skips]
    return policy_of(attention, [i for i, (_, skips) in enumerate(states) if skips], ModelRef(num_layers=len(lines)))
