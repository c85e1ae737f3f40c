"""Which choices the layers of a model allow, tried one by one on a small model of its build."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from ...evaluators.prompts import generate
from ...policies.apply import apply_policy
from ...policies.choice import CHOICES, LayerChoice
from ...policies.errors import ModelError, PolicyError, SkipsearchError
from ...policies.families.layers import DecoderLayer, decoder_layers
from ...policies.families.model_errors import is_of_model
from ...policies.policy import Policy
from ...policies.runtime.compatibility import check_kind
from ...policies.runtime.tokens import image_token_ids
from ...policies.scores.token_selection import TokenSelection
from ...policies.windows.grids import grid_reader, of_llava_next, of_patch_grids
from ...policies.wording import first_line
from .small_model import SmallModel

TEXT, IMAGE_TOKENS, STEPS = 5, 8, 2  # of the prompt: text tokens before and after the image tokens; tokens to generate
GRID = (3, 4)  # rows and columns of an image of a model that takes pictures of any size
KINDS = "mm_token_type_ids"  # the input of some models that says which tokens are of an image
ROUNDING = 1e-3
OFFERED: Mapping[str, LayerChoice] = {
    "attention": LayerChoice(attention="skip"),
    "ffn": LayerChoice(ffn="skip"),
    "skip_layer": CHOICES["skip_layer"],
    "wiring": LayerChoice(wiring="parallel"),
    "ffn_ratio": LayerChoice(ffn_ratio=0.5),
    "token_ratio": LayerChoice(token_ratio=0.5),
}
PAIR = "wiring: pair"
# Keys that a space has in comments.
OPTIONAL: Mapping[str, LayerChoice] = {
    "head_ratio": LayerChoice(head_ratio=0.5),
    "window": LayerChoice(window=1),
    PAIR: LayerChoice(wiring="pair"),
}
FURTHER: Mapping[str, LayerChoice] = {
    "norm: shared": LayerChoice(wiring="parallel", norm="shared"),
    "phase: decode": LayerChoice(attention="skip", phase="decode"),
    "phase: prefill": LayerChoice(ffn="skip", phase="prefill"),
    "attention: keys_only": LayerChoice(attention="keys_only", phase="prefill"),
    "attention: queries_only": LayerChoice(attention="queries_only", phase="prefill"),
    "freeze_image": CHOICES["freeze_image"],
    "tokens: image": LayerChoice(ffn="skip", tokens="image"),
    "rest: attention": LayerChoice(token_ratio=0.5, rest="attention"),
    "evict: true": LayerChoice(token_ratio=0.5, rest="attention", evict=True),
}


@dataclass(frozen=True)
class Support:
    """Where a choice works.

    Attributes:
        layers: The layers that allow it.
        reason: Why the others do not; empty where all do.
    """

    layers: frozenset[int]
    reason: str = ""


@dataclass(frozen=True)
class Allowed:
    """What was found out about a family.

    Attributes:
        num_layers: The number of its decoder layers.
        layer_names: The classes of its layers, in the order of their first appearance.
        offered: By key of a space, where it works.
        optional: The same for keys that a space has in comments.
        further: The same for choices that a space may have too.
        selections: The values of `token_selection.reselect` that work.
        no_images: Why choices about image tokens are left out; empty where they were tried.
    """

    num_layers: int
    layer_names: tuple[str, ...]
    offered: Mapping[str, Support]
    optional: Mapping[str, Support]
    further: Mapping[str, Support]
    selections: tuple[str, ...] = ()
    no_images: str = ""


@dataclass
class TestedModel:
    """A small model, its input, and what it computes without a policy.

    Attributes:
        model: The model.
        layers: Its layers, taken apart.
        inputs: A prompt of one row.
        dense: The logits of each generated token, shape (steps, vocabulary).
        rounding: How far cached and uncached logits may differ.
    """

    model: PreTrainedModel
    layers: Sequence[DecoderLayer]
    inputs: dict[str, Tensor]
    dense: Tensor = field(init=False)
    rounding: float = field(init=False)

    def __post_init__(self) -> None:
        self.dense, again = logits(self.model, self.inputs)
        spread = float(self.dense[-1].abs().max())
        self.rounding = max(ROUNDING * max(spread, 1.0), 10 * float((self.dense[-1] - again).abs().max()))

    def problem(self, policy: Policy) -> str:
        """Why a policy does not work; empty where it does: finite, other than dense, and the same with a cache."""
        try:
            with apply_policy(self.model, policy) as handle:
                handle.prompt_ends = torch.tensor([self.inputs["input_ids"].shape[1]])
                cached, again = logits(self.model, self.inputs)
                handle.prompt_ends = None
        except SkipsearchError as cause:
            return "; ".join([cause.what, *cause.details])
        except Exception as cause:
            if not is_of_model(cause):
                raise
            return f"the model fails under it: {first_line(cause)}"
        if not cached.isfinite().all():
            return "the model computes numbers under it that are not finite"
        if torch.equal(cached, self.dense):
            return "it changes nothing in this family"
        difference = float((cached[-1] - again).abs().max())
        if not difference <= self.rounding:
            return f"logits with a cache and without differ by {difference:.2g} under it"
        return ""

    def support(self, choice: LayerChoice) -> Support:
        """Where a choice works, by the kind of each layer and by a run with the choice in all layers that allow it."""
        reasons: dict[int, str] = {}
        for layer in self.layers:
            try:
                check_kind(layer, choice)
            except PolicyError as cause:
                reasons[layer.index] = cause.details[0]
        layers = frozenset(range(len(self.layers))) - {*reasons}
        reason = next(iter(reasons.values()), "")
        found = self.problem(Policy(layers={index: choice for index in layers})) if layers else ""
        return Support(frozenset(), found) if found else Support(layers, reason)

    def support_of_pairs(self, choice: LayerChoice) -> Support:
        """All layers where any two neighbours of the small model form a pair, else none."""
        begins = range(len(self.layers) - 1)
        found = next(filter(None, (self.problem(Policy(layers={index: choice})) for index in begins)), "")
        return Support(frozenset(() if found else range(len(self.layers))), found)


def allowed(small: SmallModel, name: str) -> Allowed:
    """Try every choice on a small model.

    Args:
        small: The small model.
        name: The model that it stands for, for messages.

    Raises:
        ModelError: the model does not generate from token ids, or none of its layers allows a choice.
    """
    layers = decoder_layers(small.model)
    tested, no_images = under_test(small.model, layers, name)
    tried = {**OFFERED, **OPTIONAL, **FURTHER}
    tried = {key: choice for key, choice in tried.items() if not (no_images and of_images(choice))}
    found = {key: support_of(tested, choice) for key, choice in tried.items()}
    if not any(found[key].layers for key in OFFERED if key in found):
        reasons = [f"{key}: {found[key].reason}" for key in OFFERED if key in found]
        raise ModelError(f"no layer of {name} allows a choice", reasons, "choose a model of another family")
    places = {key: of_large(small, one, key == PAIR) for key, one in found.items()}
    offered, optional, further = (
        {key: one for key, one in places.items() if key in keys} for keys in (OFFERED, OPTIONAL, FURTHER)
    )
    names = tuple(dict.fromkeys(type(layer.module).__name__ for layer in layers))
    selected = selections(tested, found)
    return Allowed(len(small.stands_for), names, offered, optional, further, selected, no_images)


def support_of(tested: TestedModel, choice: LayerChoice) -> Support:
    """Where a choice works on a small model."""
    if choice == OPTIONAL[PAIR]:
        return tested.support_of_pairs(choice)
    if choice.window is None:
        return tested.support(choice)
    try:
        on_grids = windowed(tested)
    except Exception as cause:
        if not is_of_model(cause):
            raise
        # As in `under_test`; a family may also need the picture itself.
        reason = f"the small model does not run on a whole grid of image tokens: {first_line(cause)}"
        return Support(frozenset(), reason)
    return on_grids.support(choice)


def of_large(small: SmallModel, found: Support, paired: bool) -> Support:
    """Where a choice works in the large model, from where it works in the small one; the last layer begins no pair."""
    total = len(small.stands_for)
    layers = (index for index in range(total - paired) if small.stands_for[index] in found.layers)
    return replace(found, layers=frozenset(layers))


def of_images(choice: LayerChoice) -> bool:
    """True for a choice about image tokens."""
    return choice.token_ratio is not None or choice.window is not None or choice.tokens == "image"


def windowed(tested: TestedModel) -> TestedModel:
    """The model with a prompt of which the image tokens are whole grids; the same one where no grid is known."""
    model: Any = tested.model
    reader, config = grid_reader(model.config), model.config
    if reader is None:
        return tested
    sizes: dict[str, Tensor] = {}
    if reader is of_patch_grids:
        merged = config.vision_config.spatial_merge_size
        sizes["image_grid_thw"] = torch.tensor([[1, *(merged * side for side in GRID)]])
    if reader is of_llava_next:
        sizes["image_sizes"] = torch.tensor([[config.vision_config.image_size] * 2])
    grids = islice(reader(config, sizes), 2 if reader is of_llava_next else 1)
    inputs = prompt(image_token_ids(model), sum(grid.tokens for grid in grids))
    if sizes and KINDS in inspect.signature(model.forward).parameters:
        sizes[KINDS] = torch.isin(inputs["input_ids"], torch.tensor(image_token_ids(model))).long()
    return TestedModel(model, tested.layers, {**inputs, **sizes})


def under_test(model: PreTrainedModel, layers: Sequence[DecoderLayer], name: str) -> tuple[TestedModel, str]:
    """A model to test with image tokens in its prompt, or without, and then the reason why.

    Raises:
        ModelError: the model does not generate from token ids.
    """
    images = image_token_ids(model)
    reason = "" if images else "no token of its prompts stands for a part of an image"
    if images and any(layer.kind == "cross" for layer in layers):
        images, reason = (), "its layers attend to the image directly, so a prompt has no image tokens"
    if images:
        try:
            return TestedModel(model, layers, prompt(images)), ""
        except Exception as cause:
            if not is_of_model(cause):
                raise
            # The forward of a family can raise anything where a prompt has image tokens and no image.
            reason = f"the small model does not run on image tokens without an image: {first_line(cause)}"
    try:
        return TestedModel(model, layers, prompt(())), reason
    except Exception as cause:
        if not is_of_model(cause):
            raise
        what = f"{name} does not generate from token ids, so no choice can be tried"
        raise ModelError(what, [first_line(cause)], "choose a model that generates text from a prompt") from cause


def prompt(images: tuple[int, ...], count: int = IMAGE_TOKENS) -> dict[str, Tensor]:
    """A prompt of one row: text, image tokens where the model has any, text.

    Args:
        images: The ids of tokens that stand for parts of an image.
        count: How many image tokens it has.
    """
    text = [token for token in range(11, 11 + 2 * TEXT + len(images)) if token not in images][: 2 * TEXT]
    ids = [*text[:TEXT], *images[:1] * count, *text[TEXT:]]
    tensor = torch.tensor([ids])
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}


def logits(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of generated tokens, shape (steps, vocabulary), and of the last one without a cache, (vocabulary,)."""
    # A generated token is text; a model of random weights may think otherwise.
    unwanted = [*image_token_ids(model)] or None
    out: Any = generate(model, dict(inputs), STEPS, output_logits=True, suppress_tokens=unwanted)
    whole = out.sequences[:, :-1]
    with torch.no_grad():
        uncached = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        if KINDS in inputs:
            uncached[KINDS] = functional.pad(inputs[KINDS], (0, STEPS - 1))
        again: Any = model(**uncached, use_cache=False)
    return torch.cat(out.logits), again.logits[0, -1]


def selections(tested: TestedModel, offered: Mapping[str, Support]) -> tuple[str, ...]:
    """The values of `reselect` under which token ratios work."""
    layers = offered["token_ratio"].layers if "token_ratio" in offered else frozenset()
    policies = {
        reselect: Policy(
            layers={index: OFFERED["token_ratio"] for index in layers if index},
            token_selection=TokenSelection(reselect=reselect),
        )
        for reselect in ("each_layer", "once")
    }
    return tuple(name for name, policy in policies.items() if layers and not tested.problem(policy))
