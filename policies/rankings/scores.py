"""The file of a ranking of channels, which lies beside a policy: one score for each channel of an FFN.

A safetensors file has a float32 tensor `layers.N.ffn` for each ranked layer N, of shape (channels,). The channels of a
mixture are those of expert 0, of expert 1 and so on, and then those of the shared expert. Its metadata say how it was
made, as JSON under the key `skipsearch`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, float32

from ..choice import has_width
from ..errors import PolicyError, PolicyMismatch
from ..families.channels import channel_groups
from ..families.layers import DecoderLayer
from ..policy import Policy
from .files import HINT, checked_content, digest

SCHEMA: Final = "skipsearch/ranking/v1"
# By layer, the score of each channel, float32, shape (channels,).
Scores: TypeAlias = Mapping[int, Tensor]

# By SHA-256, the files that policies name in this process without a folder, as on the workers of a search.
_known: dict[str, bytes] = {}


def ranking_file(scores: Scores, facts: Mapping[str, Any]) -> bytes:
    """The content of a file.

    Args:
        scores: By layer, the score of each channel.
        facts: How they were made, as plain data.
    """
    # One key, because safetensors writes several in any order, and the SHA-256 of equal rankings would differ.
    metadata = {"skipsearch": json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)}
    return save({f"layers.{layer}.ffn": tensor.contiguous() for layer, tensor in sorted(scores.items())}, metadata)


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
    """The scores that a policy ranks channels by; empty where it needs none.

    Raises:
        PolicyError: it names no file, or the file is missing, cannot be read, or has another SHA-256; or the policy
            has a share of heads, which have no energies.
        PolicyMismatch: the file holds no ranking.
    """
    selection = policy.width_selection
    if selection.ranking != "energy" or not has_width(policy.layers):
        return {}
    with_heads = [index for index, choice in policy.layers.items() if choice.head_ratio is not None]
    if with_heads:
        found = f"found head_ratio in layer {', '.join(map(str, with_heads))} with width_selection: {{ranking: energy}}"
        hint = "rank by `weights` or `first`, or leave `head_ratio` out"
        raise PolicyError("heads cannot be ranked by energy", [found], hint)
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
        raise PolicyError("the policy names no ranking of channels", [found], hint)
    if policy.folder is None and selection.sha256 in _known:
        return _known[selection.sha256]
    if policy.folder is None:
        wanted = f"expected {selection.file} with SHA-256 {selection.sha256}"
        hint = "load the policy from its file, as in `apply_policy(model, FILE)`, or say where: `policy.beside(FOLDER)`"
        raise PolicyError("the ranking of the policy's channels is not beside it", [wanted], hint)
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
        expected = "expected tensors layers.N.ffn of float32 and one dimension, without NaN or infinity"
        raise PolicyMismatch(f"{name} holds no ranking of channels", [*wrong[:5], expected], HINT)
    return {int(key.split(".")[1]): tensor for key, tensor in tensors.items()}


def is_score(key: str, tensor: Tensor) -> bool:
    """True for a tensor that has a score for each channel of a layer."""
    named = re.fullmatch(r"layers\.\d+\.ffn", key) is not None
    return named and tensor.dtype == float32 and tensor.ndim == 1 and bool(tensor.isfinite().all())


def describe(tensor: Tensor) -> str:
    """The dtype and the shape of a tensor, and that it is not finite."""
    text = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
    return text if tensor.isfinite().all() else f"{text} with NaN or infinity"


def check_scores(scores: Scores, layers: Sequence[DecoderLayer]) -> None:
    """Refuse the ranking of another model.

    Args:
        scores: The scores, by layer.
        layers: The layers that are ranked by them.

    Raises:
        PolicyMismatch: a layer has no scores, or another number of channels.
    """
    problems = []
    for layer in layers:
        channels = sum(group[0].channels for group in channel_groups(layer.sublayers))
        found = len(scores[layer.index]) if layer.index in scores else None
        if found is None:
            problems.append(f"layer {layer.index}: found no scores, expected {channels}")
        elif found != channels:
            problems.append(f"layer {layer.index}: found {found} scores, the FFN has {channels} channels")
    if problems:
        raise PolicyMismatch("the ranking of channels does not fit the model", problems[:5], HINT)
