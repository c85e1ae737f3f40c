"""Checks that a model can run under a policy, before anything is wrapped."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..choice import LayerChoice, Ranking
from ..errors import ModelError, PolicyMismatch
from ..families.channels import Group, channel_groups, shared_weight, why_not_narrow
from ..families.heads import find_heads, why_not_fewer_heads
from ..families.layers import DecoderLayer
from ..windows.grids import grid_reader
from .layer.roles import roles
from .layer.shorter import first_handed_on
from .tokens import ALL_CLASSES, image_token_ids, scope


def transformers_model(model: Any) -> PreTrainedModel:
    """The transformers model inside an object, such as the result of torch.compile or of PEFT.

    Raises:
        ModelError: there is none, or the object runs copies of it.
    """
    if isinstance(model, nn.DataParallel):
        raise ModelError(
            f"a policy cannot be applied to {type(model).__name__}",
            [f"it runs copies of {type(model.module).__name__}, which share the original's layers"],
            "apply the policy to `model.module`, and run one process a device",
        )
    parts = model.modules() if isinstance(model, nn.Module) else ()
    found = next((part for part in parts if isinstance(part, PreTrainedModel)), None)
    if found is None:
        raise ModelError(
            "a policy is applied to a transformers model",
            [f"found {type(model).__name__}, expected a PreTrainedModel or what wraps one"],
            "load it first, such as with `AutoModelForCausalLM.from_pretrained`",
        )
    return found


def check_images(model: PreTrainedModel, layers: Sequence[DecoderLayer], choices: list[LayerChoice]) -> None:
    """Refuse choices about image tokens for a model that has none among its tokens.

    Raises:
        PolicyMismatch: naming the first such choice.
    """
    about_images = [
        choice
        for choice in choices
        if choice.token_ratio is not None or choice.window is not None or choice.tokens == "image"
    ]
    # Where layers attend to the image directly (Mllama), the sequence holds one token that marks its place.
    if about_images and (not image_token_ids(model) or any(layer.kind == "cross" for layer in layers)):
        raise PolicyMismatch(
            f"{type(model).__name__} has no image tokens, so no choice can be about them",
            [f"layer {choices.index(about_images[0])} has {about_images[0].label}"],
            "leave token_ratio, window and `tokens: image` out of policies and spaces for this model",
        )


def check_shared(model: PreTrainedModel, layers: Sequence[DecoderLayer], choices: list[LayerChoice]) -> None:
    """Refuse to change the order of channels or heads in weights that other parts of the model have too.

    Raises:
        PolicyMismatch: naming the first such layer.
    """
    for layer, choice in zip(layers, choices, strict=True):
        groups: dict[str, Sequence[Group]] = {}
        if choice.ffn_ratio is not None:
            groups["ffn_ratio"] = channel_groups(layer.sublayers)
        if choice.head_ratio is not None:
            groups["head_ratio"] = [[*find_heads(layer.sublayers.attention).layers]]
        for key, own in groups.items():
            found = shared_weight(model, own)
            if found is not None:
                raise PolicyMismatch(
                    f"{choice.label} cannot be done in layer {layer.index}, a {type(layer.module).__name__}",
                    [f"another part of the model has its {found} too"],
                    f"leave `{key}` out there",
                )


def check_pairs(model: PreTrainedModel, layers: Sequence[DecoderLayer], choices: list[LayerChoice]) -> None:
    """Refuse pairs of layers of which the second one does not get what the first one returns.

    Raises:
        PolicyMismatch: naming the first such pair.
    """
    begins = [index for index, choice in enumerate(choices) if choice.wiring == "pair"]
    first = first_handed_on(model, layers) if begins else 0
    for index in begins:
        if "cross" in (layers[index].kind, layers[index + 1].kind):
            reason = "one of them attends to an image, and the decoder leaves it out where there is none"
        elif index < first:
            reason = "the decoder changes the hidden states between them"
        else:
            continue
        raise PolicyMismatch(
            f"layers {index} and {index + 1} of {type(model).__name__} cannot form a pair",
            [reason],
            f"leave `wiring: pair` out of layer {index}",
        )


def check_windows(model: PreTrainedModel, choices: list[LayerChoice], removal: int) -> None:
    """Refuse windows where the grid of the image tokens is not known, or not all of them are there.

    Args:
        model: The model.
        choices: The choice of each layer, in canonical form.
        removal: The first layer that removes image tokens for good; the number of layers where none does.

    Raises:
        PolicyMismatch: naming the first such layer.
    """
    windows = [index for index, choice in enumerate(choices) if choice.window is not None]
    if windows and grid_reader(model.config) is None:
        raise PolicyMismatch(
            f"the grid of the image tokens of {type(model).__name__} is not known, so no token has neighbours",
            [f"layer {windows[0]} has {choices[windows[0]].label}, model type {model.config.model_type}"],
            "leave `window` out of policies and spaces for this model",
        )
    late = next((index for index in windows if index > removal), None)
    if late is not None:
        raise PolicyMismatch(
            "a window cannot follow a removal of image tokens",
            [f"layer {late} has {choices[late].label}, layer {removal} removes image tokens for good"],
            "write `token_selection: {reselect: each_layer}`, or leave `window` out from there on",
        )


def check_kind(layer: DecoderLayer, choice: LayerChoice, ranking: Ranking = "weights") -> None:
    """Refuse a choice that a layer cannot compute: a recurrence, attention to an image, or one of another build.

    Raises:
        PolicyMismatch: naming the layer, its kind and the choice.
    """
    does = roles(choice)
    limited = scope(choice) != ALL_CLASSES
    if layer.kind != "attention" and (does.seen_only or does.alone or does.evicts):
        reason = "it does not store a key for each token"
        hint = "leave `keys_only`, `queries_only` and evictions out there"
    elif does.seen_only and not layer.twins.has_keys:
        reason, hint = "its attention does not show its keys before it attends", "leave `keys_only` out there"
    elif does.alone and not layer.twins.attends_alone:
        reason = "its attention does not take its attention function from transformers' table"
        hint = "leave `queries_only` out there"
    elif choice.window is not None and (found := why_no_window(layer, choice)) is not None:
        reason, hint = found, "leave `window` out there"
    elif layer.kind == "linear" and choice.attention == "skip" and (limited or choice.rest == "attention"):
        reason = "a recurrence that some tokens skip has no state for the others"
        hint = "leave `phase` and `tokens` out"
    elif layer.kind != "attention" and choice.attention == "adapter":
        reason, hint = (
            "an adapter takes the place of an attention between tokens",
            "leave `attention: adapter` out there",
        )
    elif layer.kind == "cross" and (limited or choice.token_ratio is not None):
        reason = "attention to the image is for all tokens and both phases"
        hint = "leave `phase` and `tokens` out"
    elif layer.kind == "cross" and choice.attention == "skip" and choice.ffn == "run":
        reason = "a decode step leaves the layer out where nothing of the image is stored"
        hint = "use skip_layer there"
    elif choice.ffn_ratio is not None and (found := why_not_narrow(layer.sublayers, ranking != "first")) is not None:
        reason, hint = found, "leave `ffn_ratio` out there"
    elif choice.head_ratio is not None and (found := why_not_heads(layer, choice, ranking)) is not None:
        reason, hint = found, "leave `head_ratio` out there"
    else:
        return
    raise PolicyMismatch(
        f"{choice.label} cannot be done in layer {layer.index}, a {type(layer.module).__name__}", [reason], hint
    )


def why_no_window(layer: DecoderLayer, choice: LayerChoice) -> str | None:
    """Why image tokens of a layer cannot see through the window of a choice; None where they can."""
    attention = layer.sublayers.attention
    if choice.ranks_images:
        return "its image tokens beyond a ratio are no neighbours of those that it keeps"
    if choice.head_ratio is not None and roles(choice).all_heads:
        return "its heads are divided between the tokens in scope and others"
    if choice.attention == "queries_only":
        return "no token sees its neighbours where they are seen by themselves only"
    if layer.kind != "attention" or not layer.twins.attends_alone:
        return "its attention does not take its attention function from transformers' table"
    config = getattr(attention, "config", None)
    if getattr(attention, "sliding_window", getattr(config, "sliding_window", None)):
        return "its attention is not causal over the whole sequence"
    return None


def why_not_heads(layer: DecoderLayer, choice: LayerChoice, ranking: Ranking) -> str | None:
    """The reason why a layer cannot do the `head_ratio` of its choice; None where it can."""
    does = roles(choice)
    if does.seen_only or does.alone or does.evicts:
        return "tokens that are only seen, that attend alone, or that leave the cache take part with all heads"
    return why_not_fewer_heads(layer, choice.head_ratio or 1.0, bool(does.all_heads), ranking != "first")
