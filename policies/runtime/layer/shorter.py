"""Hidden states that stay cut from layer to layer: they are put back where something needs all tokens, and at the end.

A layer that processes a selection of tokens returns the shorter hidden states. A layer after it that processes the same
selection goes on with them, as the dense layer would with a shorter prompt. Any other layer puts them back first.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from ...families.layers import DecoderLayer, argument_names
from ..attend import Split, Tokens
from ..selection import AllOrNone, Selection, ShorterStates
from ..tokens import ForwardTokens


class Plan(NamedTuple):
    """Which tokens each sublayer of a layer processes in one forward.

    Attributes:
        attended: The tokens that the attention processes.
        fed: The tokens that the FFN processes.
        parallel: The tokens whose FFN reads the layer's input; a mask of shape (batch, tokens), or one flag for all.
        split: How the tokens take part in the attention; None where those of `attended` do in full, and no others.
        narrow: The tokens of `fed` that go through a share of the FFN's channels.
        wide: The other tokens of `fed`.
        all_heads: The tokens of `attended` that all heads serve, where the attention has a share of its heads.
        merged: The layer's input, where removed tokens were merged into others; None where none was.
        gates: What the FFN's update is multiplied by, shape (batch, fed tokens, 1); None where nothing is.
        prompt: The tokens of the prompt, shape (batch, tokens), over which an adapter takes its mean; else None.
    """

    attended: Tokens
    fed: Tokens
    parallel: bool | Tensor
    split: Split | None = None
    narrow: Tokens = AllOrNone.NONE
    wide: Tokens = AllOrNone.NONE
    all_heads: Tokens = AllOrNone.NONE
    merged: Tensor | None = None
    gates: Tensor | None = None
    prompt: Tensor | None = None


DENSE = Plan(AllOrNone.ALL, AllOrNone.ALL, False, wide=AllOrNone.ALL)


def cut_to_plan(plan: Plan, tokens: ForwardTokens, hidden: Tensor) -> tuple[Tensor, Plan, Selection | None]:
    """Cut hidden states to the tokens of a plan, where all that it runs runs for the same ones.

    Args:
        plan: Which tokens of the forward the parts of a layer process.
        tokens: The tokens of the forward; `shorter` follows.
        hidden: What enters the layer, shape (batch, tokens, width), cut as `tokens.shorter` says.

    Returns:
        The hidden states, the plan for the tokens in them, and which these are; None for all of them.
    """
    attended, fed, parallel, split = plan[:4]
    if split is None and attended is fed is AllOrNone.NONE:
        return hidden, plan, None
    chosen = fed if attended is AllOrNone.NONE else attended
    alike = plan.narrow is AllOrNone.NONE or plan.narrow is fed
    alike = alike and (plan.all_heads is AllOrNone.NONE or plan.all_heads is chosen)
    same = split is None and alike and (fed is chosen or fed is AllOrNone.NONE) and isinstance(parallel, bool)
    if same and isinstance(chosen, Selection):
        if tokens.shorter is None or tokens.shorter.selection is not chosen:
            whole = tokens.whole(hidden)
            hidden, tokens.shorter = chosen.cut(whole, -2), ShorterStates(whole, chosen)
        runs = {True: AllOrNone.ALL, False: AllOrNone.NONE}
        narrow, wide = runs[plan.narrow is chosen], runs[plan.wide is chosen]
        cut = plan._replace(attended=runs[attended is chosen], fed=runs[fed is chosen], narrow=narrow, wide=wide)
        cut = cut._replace(all_heads=runs[plan.all_heads is chosen])
        return hidden, cut, chosen
    whole, tokens.shorter = tokens.whole(hidden), None
    return whole, plan, None


def is_read(*layers: nn.Module) -> bool:
    """True where a hook of a user, or transformers' record of hidden states, sees what enters or leaves the layers."""
    hooks = [hook for layer in layers for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())]
    if any(getattr(hook, "__module__", None) != output_capturing.__name__ for hook in hooks):
        return True
    # accelerate's own hook moves tensors to the layer's device, whatever their length.
    moves = (getattr(layer, "_hf_hook", None) for layer in layers)
    if any(hook is not None and type(hook).__name__ != "AlignDevicesHook" for hook in moves):
        return True
    return bool(hooks) and "hidden_states" in (output_capturing._active_collector.get() or ())


def first_handed_on(model: PreTrainedModel, layers: Sequence[DecoderLayer]) -> int:
    """The first layer from which on each one gets what the one before it returned; the number of layers if none is.

    Qwen3-VL adds what its vision tower saw to the states between its first layers.
    """
    if not all(layer.hands_on for layer in layers[:-1]):
        return len(layers)
    added = [name for name in argument_names(model.get_decoder()) if name.startswith("deepstack")]
    if not added:
        return 0
    indexes: Any = getattr(getattr(model.config, "vision_config", None), "deepstack_visual_indexes", None)
    return len(indexes) if added == ["deepstack_visual_embeds"] and indexes is not None else len(layers)
