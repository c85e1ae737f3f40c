"""What every choice computes, written once more from the formulas: one row at a time, uncached, in plain loops.

Nothing here is fast, and nothing here uses skipsearch beyond the policy's own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import slow_scores
import torch
import transformers as t
from layer_formulas import a, f, n1, n2, parallel, recurrence
from slow_adapters import adapted
from slow_heads import (
    attention_of,
    columns_of,
    given_columns,
    heads_of,
    kept_groups,
    read_by_heads,
    shape_of,
    stored_heads,
)
from slow_widths import dropped_channels, silenced
from torch import Tensor, nn

from families import IMAGE, Family, layer_list, run
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.policies.scores.token_selection import TokenSelection

ALL_LAYERS = -1  # the number of a router that all layers share
PHASES = {"prefill": {"image", "text"}, "decode": {"answer"}, "both": {"image", "text", "answer"}}
TOKENS = {"image": {"image"}, "text": {"text", "answer"}, "all": {"image", "text", "answer"}}


@dataclass
class Row:
    """One row on its way through the layers; `end` of its tokens are the prompt.

    Attributes:
        score: What layers recorded of each image token, from the layers that recorded something.
        gone: The image tokens that were removed for good.
        size: How many tokens each token stands for, where it is more than one.
        answer: The places of answer tokens; all from `end` on where it is None.
        routers: By the number of a layer, its router, where image tokens are ranked by routers.
        adapters: By the number of a layer, the adapter in place of its attention.
    """

    ids: list[int]
    end: int
    answer: tuple[int, ...] | None = None
    score: dict[int, float] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    size: dict[int, int] = field(default_factory=dict)
    routers: dict[int, nn.Linear] = field(default_factory=dict)
    adapters: dict[int, nn.Module] = field(default_factory=dict)

    def kind(self, i: int) -> str:
        """The class of a token."""
        if i >= self.end if self.answer is None else i in self.answer:
            return "answer"
        return "image" if self.ids[i] == IMAGE else "text"

    def scope(self, choice: LayerChoice) -> set[int]:
        """The tokens that the choice concerns."""
        return {i for i in range(len(self.ids)) if self.kind(i) in PHASES[choice.phase] & TOKENS[choice.tokens]}

    def paired(self, policy: Policy, number: int) -> set[int]:
        """The tokens for which a layer and the one after it read the same."""
        choice = policy.choice(number)
        return self.scope(choice) if choice.wiring == "pair" else set()

    def corners(self, grids: tuple[tuple[int, int], ...]) -> dict[int, tuple[int, int, int]]:
        """The grid of each image token, counted over all images of the row, its row and its column."""
        images = iter([i for i in range(len(self.ids)) if self.kind(i) == "image"])
        found: dict[int, tuple[int, int, int]] = {}
        while any(self.kind(i) == "image" and i not in found for i in range(len(self.ids))):
            for rows, columns in grids:
                number = len({grid for grid, _, _ in found.values()})
                found |= {next(images): (number, r, c) for r in range(rows) for c in range(columns)}
        return found

    def logits(self, number: int, layer: nn.Module, x: Tensor, policy: Policy) -> dict[int, Tensor]:
        """What the layer's router says of each image token; nothing without a router."""
        options, router = policy.token_selection.router, self.routers.get(number)
        if policy.choice(number).token_ratio is not None:
            router = self.routers.get(ALL_LAYERS, router)
        if options is not None and options.reads == "norm":
            x = n1(layer, x[None])[0]
        images = [] if router is None else [i for i in range(len(self.ids)) if self.kind(i) == "image"]
        return {i: (router.weight[0].to(x.dtype) * x[i]).sum() + router.bias[0].to(x.dtype) for i in images}

    def divided(
        self, x: Tensor, choice: LayerChoice, selection: TokenSelection, logits: dict[int, Tensor]
    ) -> tuple[set[int], set[int]]:
        """The image tokens that the layer's ratio keeps and those it leaves out, of all that were not removed."""
        images = [i for i in range(len(self.ids)) if self.kind(i) == "image"]
        candidates = [i for i in images if i not in self.gone]
        if choice.token_ratio is None or choice.tokens == "text":
            return set(candidates), set()
        wanted = min(int(Fraction(str(choice.token_ratio)) * len(images)), len(candidates))
        if logits and selection.router is not None and selection.router.threshold is not None:
            kept = {i for i in candidates if logits[i].sigmoid().item() > selection.router.threshold}
        elif logits:
            kept = set(sorted(candidates, key=lambda i: -logits[i].item())[:wanted])
        else:
            kept = self.chosen(x, candidates, wanted, selection)
        return kept, set(candidates) - kept

    def merge(self, x: Tensor, removed: list[int], kept: list[int]) -> None:
        """Average each removed token into the kept one that it resembles most; changes the states in place."""
        given: dict[int, list[int]] = {}
        for i in removed if kept else []:
            given.setdefault(min(kept, key=lambda k: slow_scores.distance(x[i], x[k])), []).append(i)
        for k, others in given.items():
            sizes = {i: self.size.get(i, 1) for i in [k, *others]}
            self.size[k] = sum(sizes.values())
            x[k] = sum(x[i] * size for i, size in sizes.items()) / self.size[k]

    def chosen(self, x: Tensor, candidates: list[int], wanted: int, selection: TokenSelection) -> set[int]:
        """The candidates with the highest score, the first of equals."""
        text = [i for i in range(len(self.ids)) if self.kind(i) == "text"]
        return slow_scores.chosen(x, candidates, text, wanted, selection, self.score)

    def note(self, tokens: list[int], figures: list[float]) -> None:
        """Keep what a layer recorded of image tokens."""
        self.score |= {i: figure for i, figure in zip(tokens, figures, strict=True) if self.kind(i) == "image"}


def reference(
    model: t.PreTrainedModel,
    family: Family,
    policy: Policy,
    inputs: dict[str, Tensor],
    end: int,
    answer: tuple[int, ...] | None = None,
    gradients: bool = False,
    routers: nn.ModuleDict | None = None,
    adapters: nn.ModuleDict | None = None,
) -> Tensor:
    """The logits of one unpadded row, shape (tokens, vocabulary), where `end` tokens are the prompt."""
    routed = {ALL_LAYERS if name == "shared" else int(name): router for name, router in (routers or {}).items()}
    in_place = {int(number): adapter for number, adapter in (adapters or {}).items()}
    row = Row(inputs["input_ids"][0].tolist(), end, answer, routers=routed, adapters=in_place)
    first_of_pair: dict[int, Tensor] = {}

    def formula(number: int) -> Any:
        def replace(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dense: Any) -> Any:
            y = one_layer(layer, number, args[0], kwargs, family, policy, row)
            for i in row.paired(policy, number - 1):
                y[:, i] = (first_of_pair[number - 1][:, i] + y[:, i]) / 2
            first_of_pair[number] = y.clone()
            for i in row.paired(policy, number):
                y[:, i] = args[0][:, i]
            return (y, *dense[1:]) if isinstance(dense, tuple) else y

        return replace

    layers = layer_list(model)
    hooks = [layer.register_forward_hook(formula(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        return run(model, inputs, gradients=gradients, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


class Few(NamedTuple):
    """The tokens that a share of the heads serves alone, and the groups of these heads."""

    tokens: set[int]
    groups: list[int]


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
    choice, entering, record = policy.choice(number), x, policy.token_selection.score
    scope, x = row.scope(choice), x.clone()
    logits = row.logits(number, layer, x[0], policy)
    kept, rest = row.divided(x[0], choice, policy.token_selection, logits)
    only_evicts = choice.phase == "decode"
    does = {i: (choice.attention, choice.ffn) if i in scope else ("run", "run") for i in range(len(row.ids))}
    does |= {} if only_evicts else dict.fromkeys(rest, REST[choice.rest])
    does |= dict.fromkeys(row.gone, ("skip", "skip"))
    evicted = rest if only_evicts or (choice.evict and choice.phase == "both") else set()
    if policy.token_selection.reselect == "once" and not only_evicts:
        row.gone |= rest
    if policy.token_selection.dropped == "merge" and not only_evicts:
        row.merge(x[0], sorted(rest), sorted(kept))
    concerned = scope if only_evicts else scope - rest
    ratio, ranking = choice.ffn_ratio, policy.width_selection.ranking
    has_heads = choice.head_ratio is not None and choice.attention == "run"
    few = Few(concerned, kept_groups(layer, choice.head_ratio, ranking)) if has_heads else None
    middle = x + attention(layer, x, arguments, does, evicted, (family, number, row), record, few, choice.window)
    y = middle.clone()
    dropped = [] if ratio is None or choice.ffn == "skip" else dropped_channels(layer, ratio, ranking)
    changed = {}
    if number in row.adapters:
        prompt = [i for i in does if row.kind(i) != "answer"]
        fed = adapted(row.adapters[number], [n2(layer, x[:, [i]])[0, 0] for i in does], prompt)
        changed = dict(zip(does, fed, strict=True))
    for i in (i for i, (_, ffn) in does.items() if ffn == "run"):
        if i in changed:
            normed = changed[i][None, None]
        elif choice.wiring == "parallel" and i in concerned:
            normed = n1(layer, x[:, [i]]) if choice.norm == "shared" else n2(layer, x[:, [i]])
        else:
            normed = n2(layer, x[:, [i]] if parallel(layer) else middle[:, [i]])
        with silenced(layer, dropped) if dropped and i in concerned else nullcontext():
            y[:, [i]] += weight(i, logits, policy) * f(layer, normed, narrow(arguments, [i]))
    if logits and (policy.token_selection.router is None or policy.token_selection.router.reweights_rest):
        for i in rest:
            y[:, i] = weight(i, logits, policy) * x[:, i]
    if record == "change":
        moved = [i for i, what in does.items() if what[0] in ("run", "queries_only") or what[1] == "run"]
        row.note(moved, (y - entering)[0, moved].norm(dim=-1).tolist())
    return y


def weight(i: int, logits: dict[int, Tensor], policy: Policy) -> Tensor | float:
    """What a router multiplies a token's update by; p-MoD's 0.2 tanh(r) + 1 by default."""
    options = policy.token_selection.router
    if i not in logits:
        return 1.0
    if options is None:
        return 0.2 * logits[i].tanh() + 1.0
    gated = {"tanh": torch.tanh, "linear": lambda r: r, "sigmoid": lambda r: 1 / (1 + torch.exp(-r))}[options.gate]
    return options.alpha * gated(logits[i]) + options.beta


def attention(
    layer: nn.Module,
    x: Tensor,
    arguments: dict[str, Any],
    does: dict[int, tuple[str, str]],
    evicted: set[int],
    at: tuple[Family, int, Row],
    record: str,
    few: Few | None,
    window: int | None = None,
) -> Tensor:
    """What the attention adds to each token: those that ask see all that are seen, a lone one sees itself besides."""
    # A layer that attends to the image has keys of the image, and says nothing of tokens.
    row, cache, of_tokens = at[2], t.DynamicCache(), at[1] not in at[0].cross
    asking = [i for i, (does_what, _) in does.items() if does_what == "run"]
    seen = [i for i, (does_what, _) in does.items() if does_what in ("run", "keys_only")]
    alone = [i for i, (does_what, _) in does.items() if does_what == "queries_only"]
    update = torch.zeros_like(x)
    for lone in [[], *([i] for i in alone)] if asking else [[i] for i in alone]:
        tokens = sorted(seen + lone)
        given = arguments_for(tokens, arguments, evicted, x.dtype, at, window)
        prompt = [i for i in asking if i < row.end]
        # Where no token of the prompt asks, the layer gives no score.
        if record == "key_norm" and not lone and not recurrence(layer) and of_tokens and prompt:
            given["cache" if "cache" in given else "past_key_values"] = cache
        with nullcontext() if few is None else fewer_heads(layer, x, arguments, tokens, at, few):
            delta, weights = a(layer, x[:, tokens], given)
        for i in lone or asking:
            update[:, i] = delta[:, tokens.index(i)]
        reads = weights is not None and any(row.kind(i) == "text" for i in prompt)
        if not lone and record == "attention" and of_tokens and reads:
            shown = weights[0] if few is None else weights[0, heads_of(few.groups, shape_of(attention_of(layer)))]
            row.note(seen, shown.mean(0)[seen.index(prompt[-1])].tolist())
    if cache.layers:
        keys, own = cache.layers[-1].keys[0], None if few is None else attention_of(layer)
        keys = keys if few is None else keys[stored_heads(few.groups, own, shape_of(own))]
        norms = keys.norm(dim=-1).mean(0).tolist()
        row.note(seen, [slow_scores.sixteen_bits(1 / max(norm, 1e-6)) for norm in norms])
    return update


@contextmanager
def fewer_heads(
    layer: nn.Module, x: Tensor, arguments: dict[str, Any], tokens: list[int], at: tuple[Family, int, Row], few: Few
) -> Iterator[None]:
    """Let the heads out of the share read nothing for some tokens, and for the others those others alone."""
    shape = shape_of(attention_of(layer))
    gone = columns_of([group for group in range(shape.groups) if group not in few.groups], shape)
    outside = [i for i in tokens if i not in few.tokens]
    given = torch.zeros(len(tokens), len(gone), dtype=x.dtype)
    if outside:
        read = read_by_heads(layer, x[:, outside], arguments_for(outside, arguments, set(), x.dtype, at))
        given[[tokens.index(i) for i in outside]] = read[:, gone]
    with given_columns(layer, gone, given):
        yield


def arguments_for(
    tokens: list[int],
    arguments: dict[str, Any],
    evicted: set[int],
    dtype: torch.dtype,
    at: tuple[Family, int, Row],
    window: int | None = None,
) -> dict[str, Any]:
    """The attention's arguments for these tokens; from the first answer on, they do not see those that were evicted."""
    family, number, row = at
    mask = masked(tokens, family.windows[number], family.blocks(row.ids, row.end), dtype)
    corners = {} if window is None else row.corners(family.grids)
    for place, query in enumerate(tokens):
        for other, key in enumerate(tokens):
            if query in corners:
                near = key in corners and neighbours(corners[query], corners[key], window)
                sees = near or (row.kind(key) == "text" and key < query)
                mask[0, 0, place, other] = 0.0 if sees else torch.finfo(dtype).min
            if key in evicted and "answer" in map(row.kind, range(query + 1)):
                mask[0, 0, place, other] = torch.finfo(dtype).min
    return {**narrow(arguments, tokens), "attention_mask": mask}


def neighbours(one: tuple[int, int, int], other: tuple[int, int, int], window: int | None) -> bool:
    """True for tokens of the same grid at most so many rows and columns apart."""
    return one[0] == other[0] and max(abs(one[1] - other[1]), abs(one[2] - other[2])) <= (window or 0)


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
