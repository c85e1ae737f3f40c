"""Applying a policy to a transformers model, and removing it again."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .choice import KEEP, LayerChoice, WidthSelection
from .errors import PolicyError
from .families.layers import HANDLE, decoder_layers, layer_list, leave_to_handle, take_back
from .policy import Policy
from .quantized.read import read_bytes
from .quantized.weights import quantized_swap
from .runtime.calls import CallTracker
from .runtime.compatibility import transformers_model
from .runtime.layer.roles import roles
from .runtime.layer.wrap_model import choose_widths, hand_on, wrapped_layers
from .runtime.outputs import Attentions
from .runtime.requests import Needs
from .runtime.tokens import ForwardTokens, image_token_ids
from .scores.score import Record
from .scores.token_selection import TokenSelection
from .trained.adapted_layer import AdaptedLayer
from .trained.adapters import Adapters, trained_adapters
from .trained.routers import Routers, trained_routers
from .trained.swap import trained_swap
from .wiring.paired import pairs_of


class LayerStep(NamedTuple):
    """What one layer does in a forward.

    Attributes:
        choice: Its choice, in canonical form.
        selection: How it ranks image tokens, where it leaves some out.
        record: What it records for a later layer that ranks image tokens by it; None for nothing.
        width: How it ranks channels and heads, where it runs a share of them.
        weights: The trained or quantised weights that the model runs with; see `PolicyHandle.weights`.
    """

    choice: LayerChoice
    selection: TokenSelection | None = None
    record: Record | None = None
    width: WidthSelection | None = None
    weights: str | None = None

    @property
    def computes(self) -> bool:
        """False where the whole layer is skipped for all tokens."""
        return roles(self.choice).computes


class PolicyHandle:
    """A policy that is applied to a model; also a context manager that removes it on exit.

    Attributes:
        model: The transformers model, which runs under the policy.
        policy: The policy, in canonical form.
        layers: The model's decoder layers.
        needs: What the policy needs to know of a forward.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        routers: Routers | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.model = model
        self.policy = policy.canonical()
        trained, quantized = trained_swap(model, policy), quantized_swap(model, policy)
        self._swaps = [swap for swap in (trained, quantized) if swap is not None]
        routers = trained_routers(model, self.policy) if routers is None else routers
        adapters = trained_adapters(model, self.policy) if adapters is None else adapters
        self._added = [part for part in (routers, adapters) if part is not None]
        with torch.no_grad():
            self.layers = decoder_layers(model)
        self._wrapped = wrapped_layers(model, self.policy, self.layers, routers, adapters)
        self._pairs = pairs_of(self._wrapped)
        self.needs = Needs(
            phases=any(wrapped.planner.treats_answers_apart for wrapped in self._wrapped),
            images=any(wrapped.planner.needs_ids for wrapped in self._wrapped),
            ranks=any(wrapped.choice.token_ratio is not None for wrapped in self._wrapped),
            evicts=any(wrapped.roles.evicts for wrapped in self._wrapped),
            grids=any(wrapped.choice.window is not None for wrapped in self._wrapped),
            means=any(wrapped.means for wrapped in self._wrapped),
        )
        self._calls = CallTracker(model, image_token_ids(model), self.needs)
        for wrapped in self._wrapped:
            wrapped.calls = self._calls
            if wrapped.head_attention is not None:
                wrapped.head_attention.slots = 1 + max(layer.slot for layer in self.layers)
        hand_on(model, self.layers, self._wrapped)
        self._attentions = Attentions(self.layers, self._wrapped, self._calls)
        self._tracks_calls = any(wrapped.planner.fixed_plan is None for wrapped in self._wrapped)
        self._hooks: list[Any] = []
        self._installed = False
        for layer in self.layers:
            vars(layer.module)[HANDLE] = self
        leave_to_handle(model)
        choose_widths(self._wrapped, quantized)
        self._install()

    @property
    def prompt_ends(self) -> Tensor | None:
        """One past the place of each row's last prompt token, shape (batch,); None where it is not set.

        Counted from the first token of the padded input; tokens that a cache holds already count too. Set it before a
        forward that scores a prompt and an answer together: then the prompt alone selects image tokens, and the answer
        belongs to the decode phase. Set it also before forwards that bring a prompt in pieces. It holds in the thread
        that set it, until it is set to None.
        """
        return self._calls.prompt_ends

    @prompt_ends.setter
    def prompt_ends(self, ends: Tensor | None) -> None:
        self._calls.prompt_ends = ends

    @property
    def image_tokens(self) -> int | None:
        """The number of image tokens in each row of a prompt without padding; None where it is not set.

        With it a forward asks the device for no number. So a prefill compiles to one graph, and a CUDA graph can
        capture it. A prompt with another number, or with padding, fails. It holds in the thread that set it, until it
        is set to None.
        """
        return self._calls.image_tokens

    @image_tokens.setter
    def image_tokens(self, count: int | None) -> None:
        self._calls.image_tokens = count

    def remove(self) -> None:
        """Restore the model. Calling this twice does no harm.

        Raises:
            ModelError: linear layers of which a share runs were replaced since the policy was applied.
        """
        if self._installed:
            self._uninstall()
        for wrapped in self._wrapped:
            for part in wrapped.narrowed:
                part.release()
        marked = [layer for layer in self.layers if vars(layer.module).get(HANDLE) is self]
        for layer in marked:
            del vars(layer.module)[HANDLE]
        if marked:
            take_back(self.model, self.layers)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Lift the policy in this context, to run the dense model; no other policy can be applied meanwhile."""
        lifted = self._installed
        if lifted:
            self._uninstall()
        try:
            yield
        finally:
            if lifted and applied_policy(self.model) is self:
                self._install()

    def use_adapters(self, layers: Collection[int]) -> None:
        """Run the adapters of some layers, and the attentions of all others that have one, until the next call.

        For training alone: `policy` and `steps()` go on to name all adapters.
        """
        for wrapped in self._wrapped:
            if isinstance(wrapped, AdaptedLayer):
                wrapped.active = wrapped.layer.index in layers

    @property
    def tokens(self) -> ForwardTokens | None:
        """The tokens of the running forward; None outside a forward, and where all tokens are of one class."""
        call = self._calls.current
        return None if call is None else call.tokens

    @property
    def weights(self) -> str | None:
        """What the model runs with now in place of its own weights; None for its own.

        The SHA-256 of trained weights, or what the policy quantises them to.
        """
        if not self._installed:
            return None
        if self.policy.weights is not None:
            return self.policy.weights.sha256
        return self.policy.model.quantization if self._swaps else None

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights that the model reads now, and of routers and adapters; see `quantized.read`."""
        added = self._added if self._installed else []
        return read_bytes(self.model, self._wrapped if self._installed else []) + read_bytes(nn.ModuleList(added), [])

    def steps(self) -> list[LayerStep]:
        """What each layer does now.

        The output of a layer depends on nothing but the steps up to it, the input and its prompt ends.
        """
        if not self._installed:
            return [LayerStep(KEEP) for _ in self.layers]
        recorded = {wrapped.layer.index: wrapped.record for wrapped in self._wrapped}
        return [
            LayerStep(
                choice,
                None if choice.token_ratio is None else self.policy.token_selection,
                recorded.get(index),
                self.policy.width_selection if choice.has_width else None,
                self.weights,
            )
            for index, choice in enumerate(self.policy.choices(len(self.layers)))
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _install(self) -> None:
        self._installed = True
        for swap in self._swaps:
            swap.exchange()
        for wrapped in self._wrapped:
            wrapped.install()
        for pair in self._pairs:
            pair.install()
        alters = any(wrapped.choice.skips_attention or wrapped.heads is not None for wrapped in self._wrapped)
        if alters or self._tracks_calls:
            # Hooks run in the order they were registered: this one reads the call before the tracker forgets it.
            self._hooks.append(self.model.get_decoder().register_forward_hook(self._attentions.fill, with_kwargs=True))
        if self._tracks_calls:
            self._hooks += self._calls.install()

    def _uninstall(self) -> None:
        for wrapped in self._wrapped:
            for part in wrapped.narrowed:
                # Before anything is restored, so that an error leaves the policy whole.
                part.check_current()
        self._installed = False
        for wrapped in self._wrapped:
            wrapped.uninstall()
        for swap in self._swaps:
            swap.exchange()
        if self._tracks_calls:
            self._calls.uninstall()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def applied_policy(model: PreTrainedModel) -> PolicyHandle | None:
    """The handle of the policy that a model runs under; None where there is none.

    Works for copies and pickles of a model, and for any other object that has the same layers.
    """
    handles = (vars(layer).get(HANDLE) for layer in layer_list(model))
    return next((handle for handle in handles if handle is not None), None)


def apply_policy(
    model: PreTrainedModel,
    policy: Policy | str | Path,
    routers: Routers | None = None,
    adapters: Adapters | None = None,
) -> PolicyHandle:
    """Apply a policy to a model, so that the model computes only what the policy leaves of it.

    Wraps the decoder layers in place; weights, module names and hooks stay. Use it as a context manager, or keep the
    handle and call `remove()`; the model is then restored bit for bit.

    Args:
        model: Any transformers model with a decoder that skipsearch can wrap, or a wrapper of one, such as the result
            of torch.compile or of PEFT; call it as before.
        policy: The policy, or its file or folder. Weights that were trained under it, or that it says are quantised,
            replace the model's own as long as it is applied; a model that is quantised so already keeps its own.
        routers: Routers in training, where the policy ranks image tokens by them; None reads those beside the policy.
        adapters: Adapters in training, where the policy has them in place of attentions; None reads those beside it.

    Returns:
        The handle.

    Raises:
        PolicyError: the model, or another one that has its layers, already runs under a policy; the policy cannot be
            read, or its trained weights, or its ranking of channels; or the model is a draft whose policy would change
            the order of the channels or heads that it shares with its model.
        PolicyMismatch: the policy, its trained weights or its ranking were made for another model, or the policy is for
            weights that are quantised in another way.
        ModelError: it is no transformers model, or its layers cannot be wrapped; the message names the family. Or the
            policy asks for quantised weights, and it cannot be quantised.
    """
    inner = transformers_model(model)
    if applied_policy(inner) is not None:
        raise PolicyError(
            f"{type(inner).__name__} already runs under a policy",
            ["one is applied to its layers, perhaps through another object that has them, or is lifted by `dense()`"],
            "remove that one first: call `remove()` on its handle, which `applied_policy(model)` finds, or leave its "
            "`with` block",
        )
    return PolicyHandle(inner, policy if isinstance(policy, Policy) else Policy.load(policy), routers, adapters)
