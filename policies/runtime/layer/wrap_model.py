"""Which layers of a model are wrapped under a policy, and what they hand to each other."""

from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedModel

from ...choice import LayerChoice, has_width
from ...errors import PolicyError
from ...families.layers import DecoderLayer
from ...policy import Policy
from ...quantized.weights import QuantizedSwap
from ...rankings.scores import check_scores, ranking_scores
from ...scores.router import RouterOptions
from ...scores.score import Record
from ...scores.table import find_score
from ...trained.adapted_layer import AdaptedLayer
from ...trained.adapters import Adapters
from ...trained.routed_layer import RoutedLayer
from ...trained.routers import Routers
from ..compatibility import check_images, check_kind, check_pairs, check_shared, check_windows
from .roles import roles
from .shorter import first_handed_on
from .wrap import WrappedLayer

# The attribute of a model that has its weights from another one; see `draft`.
DRAFT = "_skipsearch_draft"


def wrapped_layers(
    model: PreTrainedModel,
    policy: Policy,
    layers: Sequence[DecoderLayer],
    routers: Routers | None,
    adapters: Adapters | None,
) -> list[WrappedLayer]:
    """Wrap the layers that differ from keep, record something, follow a removal of image tokens, or end a pair."""
    policy.check_fits(len(layers), type(model).__name__)
    choices = policy.choices(len(layers))
    check_images(model, layers, choices)
    check_windows(model, choices, first_removal(policy, choices))
    for layer, choice in zip(layers, choices, strict=True):
        check_kind(layer, choice, policy.width_selection.ranking)
    check_pairs(model, layers, choices)
    check_order(model, policy)
    if policy.width_selection.ranking != "first":
        check_shared(model, layers, choices)
    record = find_score(policy.token_selection.score).records
    recorded = set() if record is None else recorded_layers(policy, layers, record)
    removal = first_removal(policy, choices)
    made = [
        wrapped_layer(layer, choice, policy, record if layer.index in recorded else None, routers, adapters)
        for layer, choice in zip(layers, choices, strict=True)
        if not choice.is_keep
        or layer.index in recorded
        or layer.index > removal
        or (layer.index > 0 and choices[layer.index - 1].wiring == "pair")
    ]
    if policy.width_selection.ranking == "energy":
        give_scores(policy, made)
    return made


def give_scores(policy: Policy, wrapped: Sequence[WrappedLayer]) -> None:
    """Give layers that run a share of their channels or heads the scores by which these are ranked.

    Raises:
        PolicyError: see `ranking_scores`.
        PolicyMismatch: the ranking is of another model.
    """
    scores = ranking_scores(policy)
    channels = [one.layer for one in wrapped if one.narrow is not None]
    heads = [one.layer for one in wrapped if one.heads is not None]
    check_scores(scores, channels, heads)
    for one in wrapped:
        if one.narrow is not None:
            one.narrow.scores = scores.channels[one.layer.index]
        if one.heads is not None:
            one.heads.scores = scores.heads[one.layer.index]


def wrapped_layer(
    layer: DecoderLayer,
    choice: LayerChoice,
    policy: Policy,
    record: Record | None,
    routers: Routers | None,
    adapters: Adapters | None,
) -> WrappedLayer:
    """Wrap a layer, with its router where the policy ranks image tokens by one, and its adapter where it has one."""
    selection, width = policy.token_selection, policy.width_selection
    if adapters is not None and choice.attention == "adapter":
        adapter = adapters.of_layer(layer.index)
        return AdaptedLayer(layer, choice, selection, record, width, adapter=adapter)
    if routers is None or choice.token_ratio is None:
        return WrappedLayer(layer, choice, selection, record, width)
    options = selection.router or RouterOptions()
    return RoutedLayer(layer, choice, selection, record, width, routers=routers, options=options)


def check_order(model: PreTrainedModel, policy: Policy) -> None:
    """Refuse to change the order of channels or heads under the model that a draft shares its weights with.

    Raises:
        PolicyError: the model is a draft, and the policy would do that.
    """
    if DRAFT in vars(model) and has_width(policy.layers) and policy.width_selection.ranking != "first":
        raise PolicyError(
            "a draft cannot change the order of channels or heads, because it shares its weights with its model",
            [f"found width_selection: {{ranking: {policy.width_selection.ranking}}}, expected ranking: first"],
            "rank by `first`, or leave `ffn_ratio` and `head_ratio` out of the policy of a draft",
        )


def choose_widths(wrapped: Sequence[WrappedLayer], quantized: QuantizedSwap | None) -> None:
    """Choose the channels and heads that run, by weights without training, so that training changes no choice.

    Args:
        wrapped: The wrapped layers; the model has its own weights.
        quantized: The quantised weights that the model is to run with, which rank; None for its own.
    """
    swaps = [] if quantized is None else [quantized]
    for swap in swaps:
        swap.exchange()
    try:
        for part in (part for one in wrapped for part in one.narrowed):
            part.rank()
    finally:
        for swap in swaps:
            swap.exchange()


def hand_on(model: PreTrainedModel, layers: Sequence[DecoderLayer], wrapped: Sequence[WrappedLayer]) -> None:
    """Let layers hand hidden states that are cut to the next layer, where that one expects them.

    What enters a pair, passes between its layers and leaves it has all tokens.
    """
    first = first_handed_on(model, layers)
    paired = {
        index for one in wrapped if one.choice.wiring == "pair" for index in (one.layer.index, one.layer.index + 1)
    }
    for one, following in pairwise(wrapped):
        if paired & {one.layer.index, following.layer.index}:
            continue
        if (
            one.layer.index >= first
            and following.layer.index == one.layer.index + 1
            and following.planner.fixed_plan is None
        ):
            one.hands_to = following.layer.module


def recorded_layers(policy: Policy, layers: Sequence[DecoderLayer], record: Record) -> set[int]:
    """The layers that record something: before each token ratio, the nearest one that can."""
    nearest, recorded = -1, set()
    for layer, choice in zip(layers, policy.choices(len(layers)), strict=True):
        if choice.token_ratio:
            recorded.add(nearest)
        if can_record(layer, choice, record):
            nearest = layer.index
    return recorded - {-1}


def can_record(layer: DecoderLayer, choice: LayerChoice, record: Record) -> bool:
    """True where a layer attends to image tokens, gives them keys, or changes them, as a record asks for."""
    does = roles(choice)
    if record == "change":
        return does.moves_images
    return layer.kind == "attention" and (does.reads_images if record == "attention" else does.shows_images)


def first_removal(policy: Policy, choices: list[LayerChoice]) -> int:
    """The first layer that removes image tokens for good; the number of layers where none does."""
    removing = [index for index, choice in enumerate(choices) if choice.ranks_images]
    return removing[0] if removing and policy.token_selection.reselect == "once" else len(choices)
