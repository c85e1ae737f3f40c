"""Running a transformers model under a policy, and taking it off again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .choice import KEEP, LayerChoice
from .errors import ModelError, PolicyError, PolicyMismatch
from .families.layers import DecoderLayer, decoder_layers, layer_list
from .policy import Policy, TokenSelection
from .runtime.calls import Calls
from .runtime.outputs import Attentions
from .runtime.requests import Needs
from .runtime.tokens import EVERYONE, Prompt, image_token_ids, scope
from .runtime.wrap import WrappedLayer

# The attribute of a layer that says whose it is.
CLAIM = "_skipsearch_policy"


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
        model: The transformers model, which computes what the policy leaves of it.
        policy: The policy, in canonical form.
    """

    def __init__(self, model: PreTrainedModel, policy: Policy) -> None:
        self.model = model
        self.policy = policy.canonical()
        with torch.no_grad():
            self._layers = decoder_layers(model)
        self._wrapped = wrapped_layers(model, self.policy, self._layers)
        needs = Needs(
            phases=any(wrapped.phased for wrapped in self._wrapped),
            images=any(wrapped.needs_ids for wrapped in self._wrapped),
            ranks=any(wrapped.choice.token_ratio is not None for wrapped in self._wrapped),
        )
        self._calls = Calls(model, image_token_ids(model), needs)
        for wrapped in self._wrapped:
            wrapped.calls = self._calls
        self._attentions = Attentions(self._layers, self._wrapped, self._calls)
        self._reads = any(wrapped.steady is None for wrapped in self._wrapped)
        self._hooks: list[Any] = []
        self._installed = False
        for layer in self._layers:
            vars(layer.module)[CLAIM] = self
        self._install()

    @property
    def prompt_ends(self) -> Tensor | None:
        """One past the place of each row's last prompt token, shape (batch,); None where nothing is said.

        Counted from the first token of the padded input, with those that a cache holds already. To be set before a
        forward that scores a prompt and an answer together, so that the prompt alone selects image tokens, and the
        answer is of the decode phase; and before forwards that bring a prompt in pieces. It holds in the thread that
        set it, until it is set to None.
        """
        return self._calls.prompt_ends

    @prompt_ends.setter
    def prompt_ends(self, ends: Tensor | None) -> None:
        self._calls.prompt_ends = ends

    def remove(self) -> None:
        """Give the model back as it was. Calling this twice does no harm."""
        if self._installed:
            self._uninstall()
        for layer in self._layers:
            if vars(layer.module).get(CLAIM) is self:
                del vars(layer.module)[CLAIM]

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Lift the policy for a while, to compare with the dense model; no other one can be applied meanwhile."""
        lifted = self._installed
        if lifted:
            self._uninstall()
        try:
            yield
        finally:
            if lifted and applied_policy(self.model) is self:
                self._install()

    @property
    def prompt(self) -> Prompt | None:
        """The tokens of the forward that is running; None outside one, and where all are of one class."""
        call = self._calls.now
        return None if call is None else call.prompt

    def steps(self) -> list[Step]:
        """What each layer does now: with the input and its prompt ends, all that the output of the last depends on."""
        if not self._installed:
            return [Step(KEEP) for _ in self._layers]
        scored = {wrapped.layer.index for wrapped in self._wrapped if wrapped.scored}
        return [
            Step(choice, None if choice.token_ratio is None else self.policy.token_selection, index in scored)
            for index, choice in enumerate(self.policy.choices(len(self._layers)))
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _install(self) -> None:
        self._installed = True
        for wrapped in self._wrapped:
            wrapped.patch.set(wrapped.run)
        if any(wrapped.choice.attention == "skip" for wrapped in self._wrapped) or self._reads:
            # Before the call is forgotten.
            self._hooks.append(self.model.get_decoder().register_forward_hook(self._attentions.fill, with_kwargs=True))
        if self._reads:
            self._hooks += self._calls.install()

    def _uninstall(self) -> None:
        self._installed = False
        for wrapped in self._wrapped:
            wrapped.patch.undo()
        if self._reads:
            self._calls.uninstall()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def applied_policy(model: PreTrainedModel) -> PolicyHandle | None:
    """The handle of the policy that a model runs under, or a copy or pickle of such a model; None where there is none.

    Also found through any other object that has the same layers.
    """
    claims = (vars(layer).get(CLAIM) for layer in layer_list(model))
    return next((claim for claim in claims if claim is not None), None)


def apply_policy(model: PreTrainedModel, policy: Policy) -> PolicyHandle:
    """Make a model compute only what a policy leaves of it.

    Works by wrapping the decoder layers in place; weights, module names and hooks stay. Use it as a context manager,
    or keep the handle and call `remove()`; the model is then as it was, bit for bit.

    Args:
        model: Any transformers model with a decoder that skipsearch can wrap, or what wraps one, such as the result of
            torch.compile or of PEFT; call it as before.
        policy: The policy.

    Returns:
        The handle.

    Raises:
        PolicyError: the model, or another one that has its layers, already runs under a policy.
        PolicyMismatch: the policy was made for another model.
        ModelError: it is no transformers model, or its layers cannot be wrapped; the message names the family.
    """
    inner = transformers_model(model)
    if applied_policy(inner) is not None:
        raise PolicyError(
            f"{type(inner).__name__} already runs under a policy",
            ["one is applied to its layers, perhaps through another object that has them, or is lifted by `dense()`"],
            "remove that one first: call `remove()` on its handle, which `applied_policy(model)` finds, or leave its "
            "`with` block",
        )
    return PolicyHandle(inner, policy)


def transformers_model(model: Any) -> PreTrainedModel:
    """The transformers model that an object is, or wraps.

    Raises:
        ModelError: there is none, or what wraps it runs copies of it.
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


def wrapped_layers(model: PreTrainedModel, policy: Policy, layers: Sequence[DecoderLayer]) -> list[WrappedLayer]:
    """Wrap the layers that differ from keep, and those whose attention ranks the tokens of a later one."""
    policy.check_fits(len(layers), type(model).__name__)
    choices = policy.choices(len(layers))
    check_images(model, layers, choices)
    for layer, choice in zip(layers, choices, strict=True):
        check_kind(layer, choice)
    scored = scored_layers(policy, layers)
    removed = first_removal(policy, choices)
    return [
        WrappedLayer(layer, choice, policy.token_selection, layer.index in scored)
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
