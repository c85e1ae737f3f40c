"""mergekit's `passthrough` merges of one model: slices of the layers to keep.

Keys as in `mergekit/config.py` of arcee-ai/mergekit (0.1.5): `layer_range` has its end exclusive, and the parameter
`scale` multiplies the tensors whose names contain a `filter`, the first that matches. A scale of 0 on the output
projection skips a sublayer (`o_proj` and `down_proj`, as in Block Expansion, arXiv:2401.02415); its weights stay, as
zeros. mergekit renumbers the layers, and of the configuration it changes the number of layers alone.
"""

from itertools import groupby
from typing import Any

import yaml

from ...policies.errors import ExportError
from ...policies.metadata import ModelRef
from ...policies.policy import Policy
from .mergekit_slices import Slices
from .sublayers import Given, depth, policy_of, skipped

FILE = "mergekit.yaml"
SIGN = "the key `merge_method`"
ATTENTION_OUT, FFN_OUT = "o_proj", "down_proj"


def matches(given: Given) -> bool:
    """True for a mapping that has a merge method."""
    return "merge_method" in given.keys


def write(policy: Policy) -> str:
    """The merge of a policy.

    Raises:
        ExportError: the policy has other choices, keeps no layer, does not say how many layers the model has, or its
            model has no name that mergekit can read.
    """
    without = dict(zip((ATTENTION_OUT, FFN_OUT), skipped(policy), strict=True))
    states = [tuple(name for name in without if index in without[name]) for index in range(depth(policy))]
    slices = []
    for zeroed, group in groupby(range(len(states)), states.__getitem__):
        layers = [*group]
        source: dict[str, Any] = {"model": reference(policy.model), "layer_range": [layers[0], layers[-1] + 1]}
        if zeroed:
            filters: list[dict[str, Any]] = [{"filter": name, "value": 0.0} for name in zeroed]
            source["parameters"] = {"scale": [*filters, {"value": 1.0}]}
        if len(zeroed) < len(without):
            slices.append({"sources": [source]})
    if not slices:
        raise ExportError("the policy keeps no layer", hint="mergekit needs one")
    text: str = yaml.safe_dump(
        {"merge_method": "passthrough", "slices": slices}, sort_keys=False, default_flow_style=None, width=120
    )
    return text


def reference(model: ModelRef) -> str:
    """The model as mergekit writes it, `ID` or `ID@REVISION`.

    Raises:
        ExportError: there is no id, or mergekit would read something else.
    """
    if model.id is None:
        hint = "name the model in the policy, as in `model: {id: Qwen/Qwen3-8B}`"
        raise ExportError("mergekit loads the model by its hub id or folder, and there is none", hint=hint)
    if {"+", "@"} & {*model.id}:
        found = f"found {model.id!r}; mergekit reads what follows + as a LoRA, and what follows @ as a revision"
        raise ExportError("mergekit cannot read the name of the model", [found], "move it to another folder")
    return model.id if model.revision is None else f"{model.id}@{model.revision}"


def read(given: Given) -> Policy:
    """The policy of a merge.

    Raises:
        PolicyError: the merge does something else than leave out sublayers of one model, or has mistakes, or the number
            of layers is not given.
    """
    slices = Slices(given.document.check(), given.num_layers)
    slices.require_one_model()
    attention, ffn = slices.zeroed(f"self_attn.{ATTENTION_OUT}"), slices.zeroed(f"mlp.{FFN_OUT}")
    removed = {*range(slices.num_layers)} - slices.kept
    path, _, revision = slices.model.partition("@")
    model = ModelRef(id=path, revision=revision or None, num_layers=slices.num_layers)
    return policy_of(removed | attention, removed | ffn, model)
