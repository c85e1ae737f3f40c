"""What every choice computes, written once more from the formulas: one row at a time, uncached, in plain loops.

Nothing here is fast, and nothing here uses skipsearch beyond the policy's own words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import transformers as t
from layer_formulas import a, f, n1, n2, parallel
from torch import Tensor, nn

from families import IMAGE, Family, layer_list, run
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.policy import Policy, TokenSelection

PHASES = {"prefill": {"image", "text"}, "decode": {"answer"}, "both": {"image", "text", "answer"}}
TOKENS = {"image": {"image"}, "text": {"text", "answer"}, "all": {"image", "text", "answer"}}


@dataclass
class Row:
    """One row on its way through the layers; `end` of its tokens are the prompt.

    Attributes:
        score: The attention score of each image token, from the layers that gave one.
        gone: The image tokens that were removed for good.
        answer: The places of answer tokens; all from `end` on where it is None.
    """

    ids: list[int]
    end: int
    answer: tuple[int, ...] | None = None
    score: dict[int, float] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def kind(self, i: int) -> str:
        """The class of a token."""
        if i >= self.end if self.answer is None else i in self.answer:
            return "answer"
        return "image" if self.ids[i] == IMAGE else "text"

    def scope(self, choice: LayerChoice) -> set[int]:
        """The tokens that the choice concerns."""
        return {i for i in range(len(self.ids)) if self.kind(i) in PHASES[choice.phase] & TOKENS[choice.tokens]}

    def divided(self, x: Tensor, choice: LayerChoice, selection: TokenSelection) -> tuple[set[int], set[int]]:
        """The image tokens that the layer's ratio keeps and those it leaves out, of all that were not removed."""
        images = [i for i in range(len(self.ids)) if self.kind(i) == "image"]
        candidates = [i for i in images if i not in self.gone]
        if choice.token_ratio is None or choice.tokens == "text":
            return set(candidates), set()
        wanted = min(int(Fraction(str(choice.token_ratio)) * len(images)), len(candidates))
        kept = self.chosen(x, candidates, wanted, selection.score)
        return kept, set(candidates) - kept

    def chosen(self, x: Tensor, candidates: list[int], wanted: int, kind: str) -> set[int]:
        """The candidates with the highest score, the first of equals."""
        count = len(candidates)
        if kind == "uniform" or (kind == "attention" and not self.score):
            return {i for n, i in enumerate(candidates) if (n + 1) * wanted // count > n * wanted // count}
        value = {i: float(x[i].norm()) if kind == "norm" else self.score.get(i, 0.0) for i in candidates}
        return set(sorted(candidates, key=lambda i: -value[i])[:wanted])

    def note(self, asking: list[int], seen: list[int], weights: Tensor | None) -> None:
        """Keep how much the last prompt token that asks attended to each image token."""
        images, prompt = [i for i in seen if self.kind(i) == "image"], [i for i in asking if i < self.end]
        # Where text asks nothing, or no image token is seen, the layer gives no score.
        if weights is not None and images and any(self.kind(i) == "text" for i in prompt):
            attention = weights[0].mean(0)[seen.index(prompt[-1])].tolist()
            self.score |= {i: attention[seen.index(i)] for i in images}


def reference(
    model: t.PreTrainedModel,
    family: Family,
    policy: Policy,
    inputs: dict[str, Tensor],
    end: int,
    answer: tuple[int, ...] | None = None,
) -> Tensor:
    """The logits of one unpadded row, shape (tokens, vocabulary), where `end` tokens are the prompt."""
    row = Row(inputs["input_ids"][0].tolist(), end, answer)

    def formula(number: int) -> Any:
        def replace(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dense: Any) -> Any:
            y = one_layer(layer, number, args[0], kwargs, family, policy, row)
            return (y, *dense[1:]) if isinstance(dense, tuple) else y

        return replace

    layers = layer_list(model)
    hooks = [layer.register_forward_hook(formula(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        return run(model, inputs, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


# What `rest` says of the attention and the FFN.
REST = {
    "skip": ("skip", "skip"),
    "keys_only": ("keys_only", "skip"),
    "attention": ("run", "skip"),
    "ffn": ("skip", "run"),
}


def one_layer(
    layer: nn.Module, number: int, x: Tensor, arguments: dict[str, Any], family: Family, policy: Policy, row: Row
) -> Tensor:
    """What a layer gives for its input under the policy."""
    choice = policy.choice(number)
    scope = row.scope(choice)
    kept, rest = row.divided(x[0], choice, policy.token_selection)
    only_evicts = choice.phase == "decode"
    does = {i: (choice.attention, choice.ffn) if i in scope else ("run", "run") for i in range(len(row.ids))}
    does |= {} if only_evicts else dict.fromkeys(rest, REST[choice.rest])
    does |= dict.fromkeys(row.gone, ("skip", "skip"))
    evicted = rest if only_evicts or (choice.evict and choice.phase == "both") else set()
    if policy.token_selection.reselect == "once" and not only_evicts:
        row.gone |= rest
    middle = x + attention(layer, x, arguments, does, evicted, (family, number, row))
    y = middle.clone()
    for i in (i for i, (_, ffn) in does.items() if ffn == "run"):
        if choice.wiring == "parallel" and i in scope and (only_evicts or i not in rest):
            normed = n1(layer, x[:, [i]]) if choice.norm == "shared" else n2(layer, x[:, [i]])
        else:
            normed = n2(layer, x[:, [i]] if parallel(layer) else middle[:, [i]])
        y[:, [i]] += f(layer, normed, narrow(arguments, [i]))
    return y


def attention(
    layer: nn.Module,
    x: Tensor,
    arguments: dict[str, Any],
    does: dict[int, tuple[str, str]],
    evicted: set[int],
    at: tuple[Family, int, Row],
) -> Tensor:
    """What the attention adds to each token: those that ask see all that are seen, a lone one sees itself besides."""
    asking = [i for i, (does_what, _) in does.items() if does_what == "run"]
    seen = [i for i, (does_what, _) in does.items() if does_what in ("run", "keys_only")]
    alone = [i for i, (does_what, _) in does.items() if does_what == "queries_only"]
    update = torch.zeros_like(x)
    for lone in [[], *([i] for i in alone)] if asking else [[i] for i in alone]:
        tokens = sorted(seen + lone)
        delta, weights = a(layer, x[:, tokens], arguments_for(tokens, arguments, evicted, x.dtype, at))
        for i in lone or asking:
            update[:, i] = delta[:, tokens.index(i)]
        if not lone:
            at[2].note(asking, seen, weights)
    return update


def arguments_for(
    tokens: list[int], arguments: dict[str, Any], evicted: set[int], dtype: torch.dtype, at: tuple[Family, int, Row]
) -> dict[str, Any]:
    """The attention's arguments for these tokens; from the first answer on, they do not see those that were evicted."""
    family, number, row = at
    mask = masked(tokens, family.windows[number], family.blocks(row.ids, row.end), dtype)
    for place, query in enumerate(tokens):
        for other, key in enumerate(tokens):
            if key in evicted and "answer" in map(row.kind, range(query + 1)):
                mask[0, 0, place, other] = torch.finfo(dtype).min
    return {**narrow(arguments, tokens), "attention_mask": mask}


def narrow(arguments: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    """The layer's arguments for these tokens, at their own positions."""
    cut = dict(arguments)
    for name, value in arguments.items():
        if value is None:
            continue
        if name == "position_embeddings":
            cut[name] = tuple(part[..., tokens, :] for part in value)
        elif name == "position_ids":
            cut[name] = value[..., tokens]
        elif name in ("cross_attention_mask", "full_text_row_masked_out_mask"):
            cut[name] = value[:, :, tokens]
    return cut


def masked(tokens: list[int], window: int | None, blocks: list[int | None], dtype: torch.dtype) -> Tensor:
    """Causal among these tokens, within the window; the tokens of one block see each other both ways."""
    mask = torch.full((1, 1, len(tokens), len(tokens)), torch.finfo(dtype).min, dtype=dtype)
    for place, query in enumerate(tokens):
        for other, key in enumerate(tokens):
            seen = key <= query and (window is None or query - key < window)
            if seen or (blocks[query] is not None and blocks[query] == blocks[key]):
                mask[0, 0, place, other] = 0.0
    return mask
