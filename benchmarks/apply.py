"""What a policy costs and saves: time beside what it leaves out, on random models, prefill and decode apart.

    python benchmarks/apply.py [--quick]

Each line compares two ways to compute the same request, timed in turns (A B A B) in one process: a policy and the
dense model. The share of the time stands beside the share of the work: FLOPs in prefill; in decode, where memory is
read more than numbers are multiplied, the bytes of the weights and of the cache that a step reads. `empty policy` must
be 1.00, and so must `half the layers`, which runs against a model built with half the layers, and `once from half,
by hand`, which runs against layers written to run the shorter sequence from there.

`of ideal` is the share of the possible saving: what the policy saves, over what a layer written by hand without the
sublayer, or with so many channels, saves, in turns with both. `ops` is the number of torch operations that one more
layer with the choice costs in prefill beyond the dense layer's own, where it treats image tokens apart.
"""

import argparse
import contextlib
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers as t
from apply_shorter import IMAGE, operations_a_layer, shorter_by_hand
from apply_widths import FIRST, WIDTHS, narrow_by_hand
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import flop_counter
from skipsearch.policies.caches.cache import kv_cache_bytes
from skipsearch.policies.families.channels import NarrowLinear

SKIP_LAYER = {"attention": "skip", "ffn": "skip"}
CHOICES: dict[str, dict[str, Any]] = {
    "skip_ffn": {"ffn": "skip"},
    "skip_attention": {"attention": "skip"},
    "skip_layer, second half": SKIP_LAYER,
    "parallel": {"wiring": "parallel"},
    "parallel, shared norm": {"wiring": "parallel", "norm": "shared"},
    "skip_ffn (prefill)": {"ffn": "skip", "phase": "prefill"},
    "skip_ffn (decode)": {"ffn": "skip", "phase": "decode"},
    "skip_attention (prefill)": {"attention": "skip", "phase": "prefill"},
    "skip_attention (decode)": {"attention": "skip", "phase": "decode"},
    **WIDTHS,
}
ABOUT_IMAGES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "skip_ffn (image)": ({"ffn": "skip", "tokens": "image"}, {}),
    "skip_ffn (text)": ({"ffn": "skip", "tokens": "text"}, {}),
    "skip_attention (image)": ({"attention": "skip", "tokens": "image"}, {}),
    "ffn_ratio 0.5 (image)": ({"ffn_ratio": 0.5, "tokens": "image"}, {}),
    "head_ratio 0.5 (image)": ({"head_ratio": 0.5, "tokens": "image"}, {}),
    "token_ratio 0.5, attention": ({"token_ratio": 0.5}, {"score": "attention"}),
    "token_ratio 0.5, norm": ({"token_ratio": 0.5}, {"score": "norm"}),
    "token_ratio 0.5, uniform": ({"token_ratio": 0.5}, {"score": "uniform"}),
    **{
        f"token_ratio 0.5, {score}": ({"token_ratio": 0.5}, {"score": score})
        for score in ("diverse", "relevance", "change", "key_norm")
    },
    "token_ratio 0.5, once": ({"token_ratio": 0.5}, {"score": "attention", "reselect": "once"}),
    "token_ratio 0.0": ({"token_ratio": 0.0}, {}),
    "token_ratio 0.5 + skip_ffn": ({"token_ratio": 0.5, "ffn": "skip"}, {}),
    "freeze_image": ({"attention": "keys_only", "ffn": "skip", "tokens": "image"}, {}),
    "queries_only (image)": ({"attention": "queries_only", "tokens": "image"}, {}),
    "token_ratio 0.5, rest keys_only": ({"token_ratio": 0.5, "rest": "keys_only"}, {"score": "uniform"}),
    "token_ratio 0.5, rest attention, evict": (
        {"token_ratio": 0.5, "rest": "attention", "evict": True},
        {"score": "uniform"},
    ),
    "token_ratio 0.5 (decode)": ({"token_ratio": 0.5, "phase": "decode"}, {"score": "uniform"}),
}


class WithoutFfn(LlamaDecoderLayer):
    """x + A(N1 x), and nothing else."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """The layer's forward."""
        return hidden_states + self.self_attn(self.input_layernorm(hidden_states), **arguments)[0]


class WithoutAttention(LlamaDecoderLayer):
    """x + F(N2 x), and nothing else."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """The layer's forward."""
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


ROLES = {"token_ratio", "attention", "ffn"}  # keys after which the layer treats image tokens apart
BY_HAND_ONCE = "once from half, by hand"
BY_HAND = {"skip_ffn": WithoutFfn, "skip_attention": WithoutAttention}


@dataclass(frozen=True)
class Size:
    """How big a model is; no image means a text model."""

    name: str
    width: int
    layers: int
    text: int
    image_side: int = 0

    def model(self, layers: int) -> t.PreTrainedModel:
        """A random model with so many layers."""
        torch.manual_seed(0)
        text = t.LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=self.width // 64,
            num_key_value_heads=self.width // 64,
            vocab_size=1000,
        )
        if not self.image_side:
            return t.LlamaForCausalLM(text).eval()
        vision = t.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=self.image_side * 14,
            patch_size=14,
        )
        config = t.LlavaConfig(
            vision_config=vision.to_dict(),
            text_config=text.to_dict(),
            image_token_id=IMAGE,
            vision_feature_layer=-1,
        )
        return t.LlavaForConditionalGeneration(config).eval()

    def inputs(self) -> dict[str, Tensor]:
        """A prompt: the image, then the text."""
        torch.manual_seed(1)
        image = torch.full((1, self.image_side**2), IMAGE)
        ids = torch.cat([image, torch.randint(3, 900, (1, self.text))], dim=1)
        pixels = {"pixel_values": torch.randn(1, 3, self.image_side * 14, self.image_side * 14)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **(pixels if self.image_side else {})}


FULL = (
    Size("llama, wide and shallow", 2048, 4, text=128),
    Size("llava, 576 image tokens", 1024, 4, 64, image_side=24),
)
QUICK = (Size("llama, tiny", 128, 2, text=16), Size("llava, tiny", 128, 2, 8, image_side=4))


@dataclass
class Request:
    """One way to compute a request: a model, and the context in which it computes it so."""

    model: t.PreTrainedModel
    inputs: dict[str, Tensor]
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    cache: Any = None

    def prefill(self) -> None:
        """The prompt, to the logits of the next token."""
        self.cache = self.model(**self.inputs, use_cache=True, logits_to_keep=1).past_key_values

    def decode(self) -> None:
        """One more token."""
        self.model(input_ids=torch.tensor([[5]]), past_key_values=self.cache, use_cache=True)

    def timed(self, phase: str) -> float:
        """Milliseconds of one phase."""
        work = getattr(self, phase)
        with self.context():
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3

    def work(self, phase: str) -> int:
        """FLOPs of a prefill; bytes that a decode step reads."""
        with self.context():
            if phase == "decode":
                with weights_read(self.model) as weights:
                    self.decode()
                return sum(w.numel() * w.element_size() for w in weights) + kv_cache_bytes(self.cache)
            with flop_counter() as counter:
                self.prefill()
            return int(counter.get_total_flops())


@contextlib.contextmanager
def weights_read(model: nn.Module) -> Iterator[list[Tensor]]:
    """The weights that a forward in this context reads, views included; an embedding reads a row, which is nothing."""
    leaves = {m for m in model.modules() if not list(m.children()) and not isinstance(m, nn.Embedding)}
    ran: list[nn.Module] = []
    read: list[Tensor] = []
    # Narrow layers are no modules of the model, so the hook is one for all modules.
    hook = register_module_forward_pre_hook(lambda module, _: ran.append(module))
    try:
        yield read
    finally:
        hook.remove()
        for module in dict.fromkeys(ran):
            if isinstance(module, NarrowLinear):
                read += module.views()
            elif module in leaves:
                read += module.parameters()


def compare(case: str, phase: str, requests: list[Request], repeats: int) -> dict[str, Any]:
    """Time dense, policy and, where there is one, the layers by hand in turns; shares are medians of neighbours."""
    for request in requests:
        request.timed(phase)
    rounds = []
    for turn in range(repeats):
        order = requests if turn % 2 == 0 else requests[::-1]
        times = {id(request): request.timed(phase) for request in order}
        rounds.append([times[id(request)] for request in requests])
    low, middle, high = statistics.quantiles([times[1] / times[0] for times in rounds], n=4, method="inclusive")
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    saved = [(times[0] - times[1]) / (times[0] - times[2]) for times in rounds if len(times) == 3]
    return {
        "case": case,
        "phase": phase,
        "work": "FLOPs" if phase == "prefill" else "bytes",
        "work_share": round(requests[1].work(phase) / requests[0].work(phase), 4),
        "time_share": round(middle, 4),
        "time_share_iqr": [round(low, 4), round(high, 4)],
        "of_ideal": round(statistics.median(saved), 4) if saved else None,
        "dense_ms": round(medians[0], 3),
        "policy_ms": round(medians[1], 3),
        "n": repeats,
    }


def cases(size: Size) -> Iterator[tuple[str, dict[int, dict[str, Any]], dict[str, str]]]:
    """Name, layers and token selection of each policy."""
    everywhere, half = range(size.layers), range(size.layers // 2, size.layers)
    yield "empty policy", {}, {}
    yield "half the layers", dict.fromkeys(half, SKIP_LAYER), {}
    for name, choice in CHOICES.items():
        yield name, dict.fromkeys(half if choice is SKIP_LAYER else everywhere, choice), {}
    if size.image_side:
        for name, (choice, selection) in ABOUT_IMAGES.items():
            yield name, dict.fromkeys(everywhere, choice), selection
        later = dict.fromkeys(range(2, size.layers), {"token_ratio": 0.5})
        yield "token_ratio 0.5 from layer 2", later, {"reselect": "once"}
        yield BY_HAND_ONCE, {size.layers // 2: {"token_ratio": 0.5}}, {"reselect": "once"}


def sharing(model: t.PreTrainedModel) -> t.PreTrainedModel:
    """A model of its own with the same weights in the same memory, whose place is a matter of luck and costs time."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def by_hand(model: t.PreTrainedModel, kind: type[nn.Module]) -> t.PreTrainedModel:
    """The model with layers of another kind."""
    other = sharing(model)
    for layer in other.get_decoder().layers:
        layer.__class__ = kind
    return other


def shortened(model: t.PreTrainedModel, layers: int) -> t.PreTrainedModel:
    """The model as if it had been built with so many layers."""
    other = sharing(model)
    other.get_decoder().layers = other.get_decoder().layers[:layers]
    other.config.get_text_config().num_hidden_layers = layers
    return other


@torch.inference_mode()
def measure(size: Size, repeats: int, only: str) -> Iterator[dict[str, Any]]:
    """All cases of one model."""
    model, inputs = size.model(size.layers), size.inputs()
    for name, layers, selection in cases(size):
        if only not in name:
            continue
        given = {"layers": layers, "token_selection": selection, "width_selection": FIRST}
        policy, rows = Policy.model_validate(given), []
        with apply_policy(model, policy) as handle:
            requests = [Request(model, inputs, handle.dense), Request(model, inputs)]
            if name == "half the layers":
                with handle.dense():
                    requests[0] = Request(shortened(model, size.layers // 2), inputs)
            if name == BY_HAND_ONCE:
                with handle.dense():
                    requests[0] = Request(shorter_by_hand(model, inputs, size.layers // 2), inputs)
            if name in WIDTHS:
                with handle.dense():
                    requests.append(Request(narrow_by_hand(model, WIDTHS[name]), inputs))
            if name in BY_HAND:
                with handle.dense():
                    requests.append(Request(by_hand(model, BY_HAND[name]), inputs))
            for phase, times in (("prefill", repeats), ("decode", 5 * repeats)):
                rows.append(compare(name, phase, requests, times))
        choice = ABOUT_IMAGES.get(name, ({}, {}))[0]
        if ROLES & choice.keys() and size.layers > 3:
            rows[0]["operations"] = operations_a_layer(model, inputs, choice, selection)
        yield from rows


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [
        name,
        f"  {'case':29}{'phase':9}{'work':>6}{'time':>8}  {'IQR':14}{'of ideal':>9}{'ops':>5}"
        f"{'dense':>13}{'policy':>13}",
    ]
    for row in rows:
        spread = "{:.3f}..{:.3f}".format(*row["time_share_iqr"])
        ideal = "" if row["of_ideal"] is None else f"{row['of_ideal']:.3f}"
        lines.append(
            f"  {row['case']:29}{row['phase']:9}{row['work_share']:6.3f}{row['time_share']:8.3f}  {spread:14}{ideal:>9}"
            f"{row.get('operations', ''):>5}"
            f"{row['dense_ms']:10.2f} ms{row['policy_ms']:10.2f} ms"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table for each model, and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models and few repeats: shows that it runs")
    parser.add_argument("--repeats", type=int, default=None, help="rounds of each prefill (default 9, quick 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repeats = arguments.repeats or (2 if arguments.quick else 9)
    models = []
    for size in QUICK if arguments.quick else FULL:
        rows = list(measure(size, repeats, arguments.only))
        print(table(size.name, rows), flush=True)
        tokens = size.inputs()["input_ids"].shape[1]
        models.append({"name": size.name, "layers": size.layers, "width": size.width, "tokens": tokens, "cases": rows})
    machine = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
    versions = {"torch": torch.__version__, "transformers": t.__version__}
    print(json.dumps({"benchmark": "apply", "quick": arguments.quick, **machine, **versions, "models": models}))


if __name__ == "__main__":
    main()
