"""The file of a ranking, which lies beside a policy: a score for each channel of an FFN and group of an attention.

A safetensors file has a float32 tensor `layers.N.ffn` for each layer N with ranked channels, of shape (channels,), and
`layers.N.attention` for each one with ranked heads, of shape (groups,). The channels of a mixture are those of expert
0, of expert 1 and so on, and then those of the shared expert. Its metadata say how it was made, as JSON under the key
`skipsearch`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, float32

from ..choice import has_width
from ..errors import PolicyError, PolicyMismatch
from ..families.channels import channel_groups
from ..families.heads import find_heads
from ..families.layers import DecoderLayer
from ..policy import Policy
from .files import HINT, checked_content, digest

SCHEMA: Final = "skipsearch/ranking/v1"


@dataclass(frozen=True)
class Scores:
    """The scores of a ranking, by layer.

    Attributes:
        channels: Of each channel of the FFN, float32, shape (channels,).
        heads: Of each group of heads of the attention, float32, shape (groups,).
    """

    channels: Mapping[int, Tensor] = field(default_factory=dict)
    heads: Mapping[int, Tensor] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a file and their names."""
        for sublayer, scores in (("ffn", self.channels), ("attention", self.heads)):
            yield from ((f"layers.{layer}.{sublayer}", tensor) for layer, tensor in sorted(scores.items()))


# By SHA-256, the files that policies name in this process without a folder, as on the workers of a search.
_known: dict[str, bytes] = {}


def ranking_file(scores: Scores, facts: Mapping[str, Any]) -> bytes:
    """The content of a file.

    Args:
        scores: The scores.
        facts: How they were made, as plain data.
    """
    # One key, because safetensors writes several in any order, and the SHA-256 of equal rankings would differ.
    metadata = {"skipsearch": json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)}
    return save({name: tensor.contiguous() for name, tensor in scores.tensors()}, metadata)


def remember(content: bytes) -> str:
    """Let policies without a folder have a ranking in this process.

    Returns:
        The SHA-256 by which they name it.

    Raises:
        PolicyMismatch: the file holds no ranking.
    """
    read_scores(content, "the ranking")
    name = digest(content)
    _known[name] = content
    return name


def ranking_scores(policy: Policy) -> Scores:
    """The scores that a policy ranks channels and heads by; empty where it needs none.

    Raises:
        PolicyError: it names no file, or the file is missing, cannot be read, or has another SHA-256.
        PolicyMismatch: the file holds no ranking.
    """
    selection = policy.width_selection
    if selection.ranking != "energy" or not has_width(policy.layers):
        return Scores()
    name = str((policy.folder or Path()) / (selection.file or ""))
    return read_scores(ranking_content(policy), name)


def ranking_content(policy: Policy) -> bytes:
    """The content of the file that a policy names.

    Raises:
        PolicyError: it names none, or the file is missing, cannot be read, or has another SHA-256.
    """
    selection = policy.width_selection
    if selection.file is None or selection.sha256 is None:
        found = "found width_selection: {ranking: energy} without file and sha256"
        hint = "make a ranking with `skipsearch rank MODEL --tasks …`, and write what it prints into the policy"
        raise PolicyError("the policy names no ranking by energy", [found], hint)
    if policy.folder is None and selection.sha256 in _known:
        return _known[selection.sha256]
    if policy.folder is None:
        wanted = f"expected {selection.file} with SHA-256 {selection.sha256}"
        hint = "load the policy from its file, as in `apply_policy(model, FILE)`, or say where: `policy.beside(FOLDER)`"
        raise PolicyError("the ranking of the policy is not beside it", [wanted], hint)
    return checked_content(policy.folder / selection.file, selection.sha256)


def read_scores(content: bytes, name: str) -> Scores:
    """The scores in the content of a file.

    Args:
        content: The content.
        name: Of the file, for messages.

    Raises:
        PolicyMismatch: it holds no ranking.
    """
    try:
        tensors = load(content)
    except SafetensorError as cause:
        raise PolicyMismatch(f"{name} is no safetensors file", [str(cause)], HINT) from None
    wrong = [f"found {key} {describe(tensor)}" for key, tensor in tensors.items() if not is_score(key, tensor)]
    if wrong or not tensors:
        expected = "expected tensors layers.N.ffn and layers.N.attention of float32 and one dimension, without NaN"
        raise PolicyMismatch(f"{name} holds no ranking", [*wrong[:5], expected], HINT)
    found: dict[str, dict[int, Tensor]] = {"ffn": {}, "attention": {}}
    for key, tensor in tensors.items():
        _, layer, sublayer = key.split(".")
        found[sublayer][int(layer)] = tensor
    return Scores(found["ffn"], found["attention"])


def is_score(key: str, tensor: Tensor) -> bool:
    """True for a tensor that has a score for each channel of a layer, or for each of its groups of heads."""
    named = re.fullmatch(r"layers\.\d+\.(ffn|attention)", key) is not None
    return named and tensor.dtype == float32 and tensor.ndim == 1 and bool(tensor.isfinite().all())


def describe(tensor: Tensor) -> str:
    """The dtype and the shape of a tensor, and that it is not finite."""
    text = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
    return text if tensor.isfinite().all() else f"{text} with NaN or infinity"


def check_scores(scores: Scores, channels: Sequence[DecoderLayer], heads: Sequence[DecoderLayer]) -> None:
    """Refuse the ranking of another model.

    Args:
        scores: The scores.
        channels: The layers whose channels are ranked by them.
        heads: The layers whose heads are ranked by them.

    Raises:
        PolicyMismatch: a layer has no scores, or another number of channels or groups of heads.
    """
    counts = {layer.index: sum(group[0].channels for group in channel_groups(layer.sublayers)) for layer in channels}
    problems = [*misfits(scores.channels, counts, "channels")]
    groups = {layer.index: find_heads(layer.sublayers.attention).groups for layer in heads}
    problems += misfits(scores.heads, groups, "groups of heads")
    if problems:
        raise PolicyMismatch("the ranking does not fit the policy and the model", problems[:5], HINT)


def misfits(scores: Mapping[int, Tensor], counts: Mapping[int, int], noun: str) -> Iterator[str]:
    """What is wrong with the scores of one kind.

    Args:
        scores: The scores, by layer.
        counts: How many there must be, by layer.
        noun: What they are scores of.
    """
    for layer, count in counts.items():
        if layer not in scores:
            yield f"layer {layer}: found no scores of {noun}, expected {count}"
        elif len(scores[layer]) != count:
            yield f"layer {layer}: found {len(scores[layer])} scores of {noun}, the layer has {count}"
