"""The FLOPs that papers report for LLaVA-1.5, counted anew by skipsearch, each in its paper's own way of counting.

    python benchmarks/flops_papers.py [--papers NAME ...]

Published figures of one and the same model range from 3.0 to 10.7 T, because papers count multiply-adds or operations,
two or three matrices of the FFN, and different tokens. Here skipsearch runs its policies on LLaVA-1.5 at full size,
counts what runs, and converts the count. Each line has the count, a closed form beside it, the count in the paper's
convention and the paper's figure. The model's shapes are real; its weights are zeros that take no memory, and matrix
products, which are what is counted, are not computed. All else runs: choosing tokens, shortening, the cache.
Nothing is measured here but shapes, so the figures are the same on any machine. The last line is one JSON document.
"""

import argparse
import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as t
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import flop_counter, metered
from skipsearch.evaluators.prompts import generate
from skipsearch.policies.caches.cache import kv_cache_bytes
from skipsearch.policies.choice import CHOICES

IMAGE, IMAGE_TOKENS = 32000, 576
# Width, layers, heads, FFN width: what LLaVA-1.5 takes over from LLaMA.
SIZES = {"7B": (4096, 32, 32, 11008), "13B": (5120, 40, 40, 13824)}
# The layers of LLaVA-1.5-7B in which ShortV freezes the image, from its repository.
SHORTV = (31, 29, 30, 28, 0, 26, 27, 25, 24, 22, 23, 21, 2, 3, 20, 18, 17, 12, 19)
PRODUCTS = {*flop_registry, torch.ops.aten.linear, torch.ops.aten.matmul, *flop_counter().flop_registry}


class Uncomputed(TorchDispatchMode):
    """Gives zeros of the right shape for every operation that the FLOP counter counts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, a counted one on shapes alone."""
        if func._overloadpacket not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(torch.Tensor, lambda x: x.to("meta"), (args, kwargs or {}))
        return tree_map_only(torch.Tensor, lambda x: torch.zeros_like(x, device="cpu"), func(*args, **kwargs))


@cache
def llava(size: str) -> t.LlavaForConditionalGeneration:
    """LLaVA-1.5 with weights that are all one zero, in bfloat16."""
    width, layers, heads, inner = SIZES[size]
    text = t.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    vision = t.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = t.LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=IMAGE)
    with torch.device("meta"):
        model = t.LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape), False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros((), dtype=buffer.dtype).expand(buffer.shape))
    return model


@dataclass(frozen=True)
class Case:
    """One figure of a paper.

    Attributes:
        paper: The method.
        what: Which of its figures.
        reported: The figure, in `unit`.
        ratios: Share of the image tokens that each layer which differs from dense processes.
        once: True where a token that is left out never comes back; `ratios` then names the first layer of each step.
        score: The score that ranks image tokens.
        narrow: The layers in which image tokens have a share of the heads and of the FFN's channels.
        share: That share of the heads.
        columns: That share of the channels.
        frozen: The layers in which image tokens are seen and neither ask nor are fed.
        others: Prompt tokens beside the image's.
        size: The model.
        macs: True where a multiply-add counts as one.
        matrices: How many of the FFN's three matrices the paper counts.
        unit: `T` for 10^12, `G of one layer`, `% less` than dense, `% of dense`, `% of KV` bytes of dense.
        note: What to know about the comparison.
    """

    paper: str
    what: str
    reported: float
    ratios: dict[int, float] = field(default_factory=dict)
    once: bool = False
    score: str = "attention"
    frozen: tuple[int, ...] = ()
    narrow: tuple[int, ...] = ()
    share: float = 1.0
    columns: float = 1.0
    others: int = 0
    size: str = "7B"
    macs: bool = False
    matrices: int = 3
    unit: str = "T"
    note: str = ""

    @property
    def convention(self) -> str:
        """How the paper counts."""
        if self.unit == "% of KV":
            return "bytes"
        return f"{'MACs' if self.macs else 'FLOPs'}, {self.matrices} FFN matrices"

    @property
    def policy(self) -> Policy:
        """The method as a policy."""
        layers: dict[int, dict[str, Any]] = {layer: {"token_ratio": ratio} for layer, ratio in self.ratios.items()}
        layers |= dict.fromkeys(self.frozen, CHOICES["freeze_image"].document())
        widths = {"head_ratio": self.share, "ffn_ratio": self.columns, "tokens": "image"}
        layers |= dict.fromkeys(self.narrow, widths)
        selection = {"score": self.score, "reselect": "once" if self.once else "each_layer"}
        width = {"ranking": "first"}
        return Policy.model_validate({"layers": layers, "token_selection": selection, "width_selection": width})

    def tokens(self) -> list[int]:
        """How many tokens each layer processes, by the paper's words."""
        found, ratio = [], 1.0
        for layer in range(SIZES[self.size][1]):
            ratio = self.ratios.get(layer, ratio if self.once else 1.0)
            found.append(self.others + math.floor(ratio * IMAGE_TOKENS + 1e-6))
        return found

    def closed_form(self) -> int:
        """FLOPs by layer: 8nd^2 for the projections, 4n^2d for scores and values, 6ndm for the FFN.

        Where the image is frozen, the q others are all that asks and is fed: 4(n + q)d^2 + 4nqd + 6qdm. Where all are
        image tokens with shares of the heads and of the channels, each part is multiplied by its share.
        """
        d, _, _, m = SIZES[self.size]
        asking, total = {layer: self.others for layer in self.frozen}, 0.0
        for layer, n in enumerate(self.tokens()):
            q = asking.get(layer, n)
            share, columns = (self.share, self.columns) if layer in self.narrow else (1.0, 1.0)
            total += share * (4 * (n + q) * d * d + 4 * n * q * d) + 6 * q * d * math.floor(columns * m + 1e-6)
        return int(total)


@dataclass(frozen=True)
class Counted:
    """What skipsearch counted in one prefill: FLOPs of the decoder and of its sublayers, bytes that it stored."""

    prefill: int
    attention: int
    ffn: int
    kv_bytes: int

    def figure(self, case: Case) -> float:
        """The count in a paper's convention, in FLOPs or multiply-adds."""
        if case.narrow:
            return self.prefill
        attention = self.prefill - self.ffn if case.frozen else self.attention
        return (attention + self.ffn * case.matrices / 3) / (2 if case.macs else 1)


@cache
def run(size: str, others: int, policy: Policy) -> Counted:
    """Count the prefill of a prompt of so many tokens under a policy."""
    model, counter = llava(size), flop_counter()
    decoder, layers = model.get_decoder(), model.get_decoder().layers
    ids = torch.full((1, IMAGE_TOKENS + others), IMAGE)
    ids[:, IMAGE_TOKENS:] = 5
    pixels = torch.zeros(1, 3, 336, 336, dtype=torch.bfloat16)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    calls: dict[str, list[int]] = {"decoder": [], "attention": [], "ffn": []}
    parts = [("decoder", decoder), *(("attention", layer.self_attn) for layer in layers)]
    parts += [("ffn", layer.mlp) for layer in layers]
    with Uncomputed(), apply_policy(model, policy), contextlib.ExitStack() as stack:
        for name, module in parts:
            stack.enter_context(metered(module, counter, calls[name]))
        stack.enter_context(counter)
        stored = generate(model, inputs, new_tokens=1).past_key_values
    return Counted(*(sum(calls[name]) for name in calls), kv_cache_bytes(stored))


def fastv(what: str, reported: float, unit: str, others: int = 36, **more: Any) -> Case:
    """FastV counts multiply-adds, with an FFN of two matrices, over the image and a system prompt of 36 tokens."""
    return Case("FastV", what, reported, once=True, others=others, macs=True, matrices=2, unit=unit, **more)


def pyramid(stages: int, reported: float) -> Case:
    """PyramidDrop halves the image tokens at the end of each stage; the stages are of equal length."""
    ratios = {stage * (32 // stages): 0.5**stage for stage in range(1, stages)}
    return Case("PyramidDrop", f"{stages} stages, halved", reported, ratios, True, macs=True)


def yopo(share: float, columns: float, reported: float) -> Case:
    """YOPO sees no image from layer 16 on, and before it with a share of the heads and of the FFN's columns."""
    what, note = f"{share:g} of the heads, {columns:g} of the FFN", "without its window of 5 x 5 tokens"
    widths = {"narrow": tuple(range(16)), "share": share, "columns": columns}
    return Case("YOPO", what, reported, {16: 0.0}, True, "uniform", note=note, **widths)


def gamma(what: str, reported: float, skipped: float) -> Case:
    """gamma-MoD reckons with 800 tokens, of which layers 3 to 30 skip a share that was measured."""
    others = 800 - IMAGE_TOKENS
    kept = math.floor(800 * (1 - skipped)) - others
    ratios = dict.fromkeys(range(3, 31), kept / IMAGE_TOKENS) if skipped else {}
    note = "its router skips text too; here as many image tokens are left out" if skipped else ""
    return Case("gamma-MoD", what, reported, ratios, others=others, note=note)


def shifted_cosine(shift: float = 0.5, most: float = 0.85, least: float = 0.15) -> dict[int, float]:
    """The schedule of p-MoD; layers above `most` are dense."""
    plain = {layer: math.cos(math.pi * layer / 31) / 2 + shift for layer in range(32)}
    return {layer: max(value, least) for layer, value in plain.items() if value <= most}


CASES = [
    fastv("dense, image tokens alone", 2.99, "T", others=0),
    fastv("dense, one layer", 99.3, "G of one layer"),
    fastv("half of the image from layer 3", 43, "% less", ratios={3: 0.5}),
    fastv("half of the image from layer 2", 45, "% less", ratios={2: 0.5}, size="13B"),
    Case("PyramidDrop", "dense", 3.82, macs=True),
    pyramid(3, 2.13),
    pyramid(4, 1.78),
    pyramid(5, 1.38),
    Case("YOPO", "dense, image tokens alone", 7.63),
    yopo(0.5, 0.5, 1.91),
    yopo(0.25, 0.25, 0.92),
    Case("p-MoD", "dense", 8.38, others=55, note="55 tokens beside the image's make its figure"),
    Case(
        "p-MoD",
        "shifted cosine .5 .85 .15",
        4.92,
        shifted_cosine(),
        others=55,
        note="2 % under the paper's, which does not say what else it counts",
    ),
    Case("p-MoD", "keys and values of the image", 53.8, shifted_cosine(), unit="% of KV"),
    Case("VTW", "dense", 8.48, others=62, note="62 tokens beside the image's make its figure"),
    Case("VTW", "no image tokens from layer 16", 4.68, {16: 0.0}, True, others=62),
    Case("ShortV", "dense", 8.5, others=62, note="VTW's 62 tokens, whose figures it compares with"),
    Case("ShortV", "image frozen in 19 layers", 4.7, frozen=SHORTV, others=62),
    Case(
        "DivPrune",
        "9.8 % of the image tokens",
        15.6,
        {0: 0.098},
        True,
        "diverse",
        others=42,
        unit="% of dense",
        note="42 tokens beside the image's make its figure",
    ),
    gamma("dense", 10.7, 0.0),
    gamma("routing 0.3: 31.0 % skipped", 7.7, 0.31),
    gamma("routing 0.5: 56.4 % skipped", 5.3, 0.564),
]


def yopo_formulas() -> list[dict[str, Any]]:
    """YOPO has windows too, which the counted figures do not: its formula with them.

    The formula is N[(H/h) 8nd^2 + (H/h) 4nw^2d + 6ndm/f] over image tokens; its N, H and f are fitted.
    """
    d, _, h, m = SIZES["7B"]
    n, window, rows = IMAGE_TOKENS, 5, []
    for reported, layers, heads, cut in ((1.91, 16, 16, 2), (0.92, 16, 8, 4)):
        flops = layers * (heads / h * (8 * n * d * d + 4 * n * window**2 * d) + 6 * n * d * m / cut)
        what = f"{layers} layers, {heads} heads, 1/{cut} of the FFN"
        row = {"paper": "YOPO", "what": what, "formula": flops / 1e12, "reported": reported, "unit": "T"}
        rows.append(row | {"difference": flops / 1e12 / reported - 1})
    return rows


def camera_formulas() -> list[dict[str, Any]]:
    """CAMERA gives the share of its model's weights that it leaves out, and no FLOPs: that share for DeepSeek-MoE-16B.

    Its script leaves out 0.21 of the micro-experts of each mixture for the figure of 20 %. A micro-expert has three
    vectors of the model's width. The first of the 28 layers has a dense FFN, which stays.
    """
    width, layers, vocabulary, dense = 2048, 28, 102_400, 10_944
    experts = (64 + 2) * 1408  # routed and shared: micro-experts of a mixture
    ffns, attentions = 3 * width * (dense + (layers - 1) * experts), layers * 4 * width**2
    left_out = 0.21 * 3 * width * (layers - 1) * experts
    whole, rows = ffns + attentions + vocabulary * width, []
    for what, weights in (
        ("of the FFNs", ffns),
        ("no output layer", whole),
        ("of the model", whole + vocabulary * width),
    ):
        row = {"paper": "CAMERA", "what": f"0.21 of mixtures, {what}", "formula": 100 * left_out / weights}
        rows.append(row | {"reported": 20.0, "unit": "% of weights", "difference": left_out / weights / 0.2 - 1})
    return rows


def measure(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Count each case; shares are of the dense model, counted alike."""
    for case in cases:
        counted, closed = run(case.size, case.others, case.policy), case.closed_form()
        if case.unit == "T":
            ours = counted.figure(case) / 1e12
        elif case.unit == "G of one layer":
            ours = counted.figure(case) / 1e9 / SIZES[case.size][1]
        else:
            dense = run(case.size, case.others, Policy())
            less = 100 * (1 - counted.figure(case) / dense.figure(case))
            shares = {"% less": less, "% of dense": 100 - less, "% of KV": 100 * counted.kv_bytes / dense.kv_bytes}
            ours = shares[case.unit]
        yield {
            "paper": case.paper,
            "what": case.what,
            "model": case.size,
            "image_tokens": IMAGE_TOKENS,
            "other_tokens": case.others,
            "prefill_flops": counted.prefill,
            "ranking_flops": 0 if case.frozen or case.narrow else counted.prefill - counted.attention - counted.ffn,
            "closed_form": closed,
            "closed_form_difference": counted.prefill / closed - 1,
            "convention": case.convention,
            "unit": case.unit,
            "ours": round(ours, 4),
            "reported": case.reported,
            "difference": ours / case.reported - 1,
            "note": case.note,
        }


def line(row: dict[str, Any]) -> str:
    """One figure for people."""
    tokens = f"{IMAGE_TOKENS} + {row['other_tokens']}"
    return (
        f"{row['paper']:12}{row['what']:35}{row['model']:>4}{tokens:>10}{row['prefill_flops'] / 1e12:9.4f}"
        f"{row['closed_form_difference']:+11.1e}  {row['convention']:21}{row['ours']:9.3f}{row['reported']:8.6g}"
        f" {row['unit']:15}{row['difference']:+7.1%}  {row['note']}"
    )


def main() -> None:
    """Count, print a table and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    papers = [*dict.fromkeys(case.paper for case in CASES), "CAMERA"]
    parser.add_argument("--papers", nargs="+", choices=papers, default=papers, metavar="NAME", help=", ".join(papers))
    wanted = parser.parse_args().papers
    print(
        f"{'paper':12}{'figure':35}{'':4}{'tokens':>10}{'TFLOPs':>9}{'to formula':>11}  {'its convention':21}"
        f"{'ours':>9}{'paper':>8}"
    )
    rows = []
    with torch.no_grad():
        for row in measure([case for case in CASES if case.paper in wanted]):
            rows.append(row)
            print(line(row), flush=True)
    formulas = [row for row in (*yopo_formulas(), *camera_formulas()) if row["paper"] in wanted]
    for row in formulas:
        figures = f"{row['formula']:9.3f}{row['reported']:8.6g} {row['unit']:15}{row['difference']:+7.1%}"
        print(f"{row['paper']:12}{row['what']:37}{'a formula alone':55}{figures}")
    versions = {"torch": torch.__version__, "transformers": t.__version__}
    print(json.dumps({"benchmark": "flops_papers", **versions, "figures": rows, "formulas_only": formulas}))


if __name__ == "__main__":
    main()
