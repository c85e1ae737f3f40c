"""A policy as a draft of its own model, for transformers' assisted generation.

A draft guesses tokens that the model then checks in one forward. So the answer is the model's own, and a policy that
agrees with it often makes the answer come faster.
"""

import copy
import functools
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .apply import applied_policy, apply_policy
from .caches.cache import find_cache
from .errors import ModelError, PolicyMismatch
from .families.layers import HANDLE, decoder_layers, layer_list
from .policy import Policy
from .runtime.compatibility import transformers_model
from .runtime.layer.wrap_model import DRAFT
from .runtime.requests import PROMPT_END
from .runtime.tokens import image_token_ids
from .windows.grids import grid_reader, of_llava_next

# Families whose assisted generation in transformers is wrong without any policy, by the type of their model.
UNDRAFTABLE = {
    "paligemma": "all tokens of its prompt see each other, and transformers takes the draft's tokens for prompt",
}


def draft(model: Any, policy: Policy) -> PreTrainedModel:
    """Make a draft of a model: a second tree of modules over the same tensors, which runs under a policy.

    Pass it to the model's own `generate(..., assistant_model=...)`. The answer is what the model alone would give. The
    draft has no weights of its own, except those that its policy quantises. Its configuration, its generation
    configuration and its hooks are copies of what the model has now. The model itself may run under another policy,
    which the draft does not take over.

    Args:
        model: A transformers model, or a wrapper of one; it stays as it is.
        policy: The policy of the draft.

    Returns:
        The draft; `applied_policy(draft)` is its handle. `generation_config.num_assistant_tokens` of the draft says how
        many tokens it guesses at a time.

    Raises:
        PolicyMismatch: the policy was made for another model, or has trained weights.
        ModelError: transformers cannot cut back what the model remembers, its weights are loaded layer by layer, or its
            layers cannot be wrapped.
    """
    refuse_trained(policy)
    twin = dense_draft(model)
    refuse_hidden_grids(twin, policy)
    apply_policy(twin, policy)
    return twin


def refuse_trained(policy: Policy) -> None:
    """Refuse a policy with trained weights: a draft has the tensors of its target, which would change with it.

    Raises:
        PolicyMismatch: it has some.
    """
    if policy.weights is not None:
        reason = "a draft shares the tensors of its target, and this policy replaces some of them"
        hint = "load the model twice, and apply the policy to the one that is the assistant"
        raise PolicyMismatch("a policy with trained weights is no draft", [reason], hint)


def refuse_hidden_grids(model: PreTrainedModel, policy: Policy) -> None:
    """Refuse windows where only `image_sizes` says how image tokens lie: transformers keeps it from assistants.

    Raises:
        ModelError: naming the first layer with a window.
    """
    windows = [index for index, choice in policy.layers.items() if choice.window is not None]
    if windows and grid_reader(model.config) is of_llava_next:
        raise ModelError(
            f"a draft of {type(model).__name__} cannot have windows",
            [f"layer {windows[0]} has one, and transformers hands no `image_sizes` to an assistant"],
            "leave `window` out of the draft's policy",
        )


def dense_draft(model: Any) -> PreTrainedModel:
    """The draft of `draft` without a policy, for programs that apply one policy after the other to it.

    Raises:
        ModelError: as in `draft`.
    """
    target = transformers_model(model)
    refuse_undraftable(target)
    twin = second_tree(target)
    vars(twin)[DRAFT] = True
    if image_token_ids(twin):
        give_images(twin)
    return twin


@torch.no_grad()
def refuse_undraftable(model: PreTrainedModel) -> None:
    """Refuse a model for which no draft can work.

    Raises:
        ModelError: naming its class and the reason.
    """
    name, hint = type(model).__name__, "generate without an assistant"
    offloaded = sum(weight.device.type == "meta" for weight in model.parameters())
    if not model.can_generate():
        reason, hint = "it has no `generate`", "load it with a class that has one"
    elif model._is_stateful:
        reason = "it has recurrent layers, whose states cannot be cut back to an earlier token"
    elif offloaded:
        reason = f"{offloaded} of its tensors are offloaded, and a draft would load each of them again"
        hint = "load it with a device map that keeps all weights on devices"
    elif model.config.model_type in UNDRAFTABLE:
        reason = UNDRAFTABLE[model.config.model_type]
    elif any(layer.kind == "cross" for layer in decoder_layers(model)):
        reason = "it has layers that attend to the image, and transformers cuts what they store back with the text"
    else:
        return
    raise ModelError(f"{name} cannot be drafted for", [reason], hint)


def second_tree(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the modules of a model over the same parameters and buffers, without the policy that it runs under.

    Raises:
        ModelError: a module makes copies of its tensors all the same.
    """
    handle = applied_policy(model)
    with nullcontext() if handle is None else handle.dense():
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        # The marks of a policy on the layers are not copied with what they refer to.
        copied = copy.deepcopy(model, {**tensors, id(handle): handle})
    if handle is not None:
        for layer in layer_list(copied):
            vars(layer).pop(HANDLE, None)
    own = [
        name
        for name, tensor in (*copied.named_parameters(), *copied.named_buffers())
        if tensors.get(id(tensor)) is not tensor
    ]
    if own:
        raise ModelError(
            f"{type(model).__name__} cannot share its weights with a draft",
            [f"its modules copy {', '.join(own[:3])}{' and others' if len(own) > 3 else ''}"],
            "load it without the library that replaced these modules",
        )
    return copied


def give_images(model: PreTrainedModel) -> None:
    """Let the first forward of a draft have the images, which transformers keeps from assistants.

    The draft never guesses an image token: the model would look for the image of each one in its first check.
    """
    original: Any = model.prepare_inputs_for_generation
    ids = image_token_ids(model)

    @functools.wraps(original)
    def prepare(input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        cache = find_cache(kwargs)
        seen = 0 if cache is None else cache.get_seq_length()
        if not seen:
            setattr(cache, PROMPT_END, input_ids.shape[1])
        kwargs |= {"is_first_iteration": not seen}
        inputs: dict[str, Any] = original(input_ids, *args, **kwargs)
        if seen:
            refuse_images(inputs["input_ids"][:, : max(getattr(cache, PROMPT_END) - seen, 0)], ids)
        return inputs

    def suppress(module: nn.Module, args: Any, output: Any) -> None:
        known = torch.tensor([token for token in ids if token < output.logits.shape[-1]], device=output.logits.device)
        output.logits = output.logits.index_fill(-1, known, float("-inf"))

    vars(model)["prepare_inputs_for_generation"] = prepare
    model.register_forward_hook(suppress)


def refuse_images(again: Tensor, image_ids: tuple[int, ...]) -> None:
    """Refuse to read image tokens of a prompt again.

    Args:
        again: The ids of prompt tokens that were cut back, shape (batch, tokens).
        image_ids: The ids of image tokens.

    Raises:
        ModelError: there is an image token among them.
    """
    if torch.isin(again, torch.tensor(image_ids, device=again.device)).any():
        raise ModelError(
            "a draft cannot read an image token again without its image",
            ["the last token of the prompt is an image token, and the draft goes on from before it"],
            "end the prompt with text, as chat templates do",
        )
