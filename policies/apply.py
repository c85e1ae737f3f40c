"""Running a transformers model under a policy, and taking it off again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .choice import KEEP, LayerChoice
from .errors import PolicyError, PolicyMismatch
from .layers import DecoderLayer, decoder_layers
from .policy import Policy, TokenSelection
from .tokens import EVERYONE, Prompt, image_token_ids, scope
from .wrap import Forward, WrappedLayer

MARK = "_skipsearch_policy"


class Step(NamedTuple):
    """What one layer does in a forward.

    Attributes:
        choice: Its choice, in canonical form.
        selection: How it ranks image tokens, where it leaves some out.
        scored: True where a later layer ranks its tokens by this layer's attention.
    """

    choice: LayerChoice
    selection: TokenSelection | None = None
    scored: bool = False

    @property
    def computes(self) -> bool:
        """False where the whole layer is skipped."""
        return not self.choice.skips_layer or scope(self.choice) != EVERYONE


class PolicyHandle:
    """A policy that is applied to a model; also a context manager that removes it on exit.

    Attributes:
        model: The model, which computes what the policy leaves of it.
        policy: The policy, in canonical form.
        prompt_ends: One past the place of each row's last prompt token in the padded input, shape (batch,). To be set
            before a forward that scores a prompt and an answer together, so that the prompt alone selects image
            tokens, and the answer is of the decode phase; None where the whole input is prompt.
    """

    def __init__(self, model: PreTrainedModel, policy: Policy) -> None:
        self.model = model
        self.policy = policy.canonical()
        self.prompt_ends: Tensor | None = None
        self._shared = Forward()
        self._wrapped = wrapped_layers(model, self.policy, self._shared)
        self._needs_ids = any(wrapped.needs_ids for wrapped in self._wrapped)
        self._image_ids = image_token_ids(model)
        self._hooks: list[Any] = []
        self._removed = False
        self._install()

    def remove(self) -> None:
        """Give the model back as it was. Calling this twice does no harm."""
        self._removed = True
        if self._installed:
            self._uninstall()

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Lift the policy for a while, to compare with the dense model."""
        lifted = self._installed
        if lifted:
            self._uninstall()
        try:
            yield
        finally:
            if lifted and not self._removed:
                self._install()

    @property
    def prompt(self) -> Prompt | None:
        """The tokens of the forward that is running; None outside one, and where all are of one class."""
        return self._shared.prompt

    def steps(self) -> list[Step]:
        """What each layer does now: with the input and its prompt ends, all that the output of the last depends on."""
        layers = decoder_layers(self.model)
        if not self._installed:
            return [Step(KEEP) for _ in layers]
        scored = {wrapped.layer.index for wrapped in self._wrapped if wrapped.scored}
        return [
            Step(choice, None if choice.token_ratio is None else self.policy.token_selection, index in scored)
            for index, choice in enumerate(self.policy.choices(len(layers)))
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def _installed(self) -> bool:
        return vars(self.model).get(MARK) is self

    def _install(self) -> None:
        for wrapped in self._wrapped:
            wrapped.patch.set(wrapped.run)
        if any(wrapped.steady is None for wrapped in self._wrapped):
            before = self.model.register_forward_pre_hook(self._enter, with_kwargs=True)
            after = self.model.register_forward_hook(self._leave, always_call=True)
            self._hooks = [before, after]
        vars(self.model)[MARK] = self

    def _uninstall(self) -> None:
        for wrapped in self._wrapped:
            wrapped.patch.undo()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        del vars(self.model)[MARK]

    def _enter(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(input_ids, Tensor) and (self._needs_ids or self.prompt_ends is not None):
            mask = kwargs.get("attention_mask")
            self._shared.prompt = Prompt.read(input_ids, mask, self._image_ids, self.prompt_ends)
            self._shared.known = True

    def _leave(self, *_: Any) -> None:
        self._shared.prompt = None
        self._shared.known = False


def apply_policy(model: PreTrainedModel, policy: Policy) -> PolicyHandle:
    """Make a model compute only what a policy leaves of it.

    Works by wrapping the decoder layers in place; weights, module names and hooks stay. Use it as a context manager,
    or keep the handle and call `remove()`; the model is then as it was, bit for bit.

    Args:
        model: Any transformers model with a decoder that skipsearch can wrap.
        policy: The policy.

    Returns:
        The handle.

    Raises:
        PolicyError: the model already runs under a policy.
        PolicyMismatch: the policy was made for another model.
        ModelError: the model's layers cannot be wrapped; the message names the family.
    """
    if MARK in vars(model):
        raise PolicyError(
            f"{type(model).__name__} already runs under a policy",
            hint="remove that one first: call `remove()` on its handle, or leave its `with` block",
        )
    return PolicyHandle(model, policy)


def wrapped_layers(model: PreTrainedModel, policy: Policy, shared: Forward) -> list[WrappedLayer]:
    """Wrap the layers that differ from keep, and those whose attention ranks the tokens of a later one."""
    with torch.no_grad():
        layers = decoder_layers(model)
    policy.check_fits(len(layers), type(model).__name__)
    choices = policy.choices(len(layers))
    check_images(model, layers, choices)
    for layer, choice in zip(layers, choices, strict=True):
        check_kind(layer, choice)
    scored = scored_layers(policy, layers)
    removed = first_removal(policy, choices)
    return [
        WrappedLayer(layer, choice, policy.token_selection, layer.index in scored, shared)
        for layer, choice in zip(layers, choices, strict=True)
        if not choice.is_keep or layer.index in scored or layer.index > removed
    ]


def check_images(model: PreTrainedModel, layers: Sequence[DecoderLayer], choices: list[LayerChoice]) -> None:
    """Refuse choices about image tokens where there are none.

    Raises:
        PolicyMismatch: naming the first such choice.
    """
    about = [c for c in choices if c.token_ratio is not None or c.tokens == "image"]
    # Where layers attend to the image, it is not among the tokens, but for one that marks its place.
    if about and (not image_token_ids(model) or any(layer.kind == "cross" for layer in layers)):
        raise PolicyMismatch(
            f"a choice about image tokens is nothing in {type(model).__name__}, which has none",
            [f"layer {choices.index(about[0])} has {about[0].label}"],
            "leave token_ratio and `tokens: image` out of policies and spaces for text models",
        )


def check_kind(layer: DecoderLayer, choice: LayerChoice) -> None:
    """Refuse what a layer without attention between tokens cannot do.

    Raises:
        PolicyMismatch: naming the layer, its kind and the choice.
    """
    limited = scope(choice) != EVERYONE
    if layer.kind == "linear" and limited and choice.attention == "skip":
        reason, hint = (
            "a recurrence that some tokens skip has no state for the others",
            "leave `phase` and `tokens` out",
        )
    elif layer.kind == "cross" and (limited or choice.token_ratio is not None):
        reason, hint = "attention to the image is for all tokens and both phases", "leave `phase` and `tokens` out"
    elif layer.kind == "cross" and choice.attention == "skip" and choice.ffn == "run":
        reason, hint = "a decode step leaves the layer out where nothing of the image is stored", "use skip_layer there"
    else:
        return
    raise PolicyMismatch(
        f"{choice.label} cannot be done in layer {layer.index}, a {type(layer.module).__name__}", [reason], hint
    )


def scored_layers(policy: Policy, layers: Sequence[DecoderLayer]) -> set[int]:
    """The layers whose attention ranks the image tokens of a later one: the nearest that reads some of them."""
    if policy.token_selection.score != "attention":
        return set()
    reading, scored = -1, set()
    for layer, choice in zip(layers, policy.choices(len(layers)), strict=True):
        if choice.token_ratio:
            scored.add(reading)
        skips = scope(choice) if choice.attention == "skip" else frozenset()
        if layer.kind == "attention" and choice.token_ratio != 0 and not skips & {"image", "text"}:
            reading = layer.index
    return scored - {-1}


def first_removal(policy: Policy, choices: list[LayerChoice]) -> int:
    """The first layer that removes image tokens for good; beyond the last where none does."""
    removing = [index for index, choice in enumerate(choices) if choice.token_ratio is not None]
    return removing[0] if removing and policy.token_selection.reselect == "once" else len(choices)
