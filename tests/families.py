"""Model families for the contract suites: tiny, random, built from configurations, with inputs of many layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import configurations as c
import torch
import transformers as t
from configurations import ALTERNATING, EXPERTS, GEMMA, GROUPED, IMAGE, LAYERS, PAD, TEXT, WINDOW, llava, square
from torch import Tensor, nn

from skipsearch.exports.checkpoint.config_fields import config_without


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        make: Its configuration.
        windows: The sliding window of each layer; None where it attends to all.
        image_tokens: Tokens that stand for one image; 0 for a text model.
        pixels: What the model wants beside the ids, for so many images; every tensor is divisible by their number.
        kinds: What the model calls the input that says which tokens are of an image; None where it needs none.
        two_way: Which tokens see each other, whichever comes first: those of a `picture`, of all `pictures` of a row,
            or of the `prompt`; none where it is empty.
        linear: The layers that mix tokens by a recurrence or a convolution.
        cross: The layers that attend to the image; the image is then not among the tokens.
        one_image: True where transformers confuses the images of a row that has several, when it searches with beams.
        places: True where what a layer computes depends on its number, or on how many there are.
        grids: The rows and columns of the parts of one image, in their order.
        arrange: Makes the inputs fit the model: from all of them, and the number of images of each row.
    """

    name: str
    make: Callable[[], t.PreTrainedConfig]
    windows: tuple[int | None, ...] = (None,) * LAYERS
    image_tokens: int = 0
    pixels: Callable[[int], dict[str, Tensor]] = lambda count: {}
    kinds: str | None = None
    two_way: str = ""
    linear: tuple[int, ...] = ()
    cross: tuple[int, ...] = ()
    one_image: bool = False
    places: bool = False
    grids: tuple[tuple[int, int], ...] = ()
    arrange: Callable[[dict[str, Tensor], list[int]], dict[str, Tensor]] = lambda inputs, images: inputs

    def build(self, attention: str, config: t.PreTrainedConfig | None = None) -> t.PreTrainedModel:
        torch.manual_seed(0)
        config = config or self.make()
        known = type(config) in t.AutoModelForImageTextToText._model_mapping
        auto = t.AutoModelForImageTextToText if self.image_tokens and known else t.AutoModelForCausalLM
        model = auto.from_config(config, attn_implementation=attention).eval()
        model.generation_config.update(pad_token_id=PAD, eos_token_id=None, suppress_tokens=[IMAGE])
        for name, weight in model.named_parameters():
            # Fresh norms are all alike, and gates are closed: a swapped or missing one would not show.
            if "norm" in name or "ln_" in name or name.endswith("_gate"):
                weight.data += 0.3 * torch.randn_like(weight)
        return model

    def blocks(self, ids: list[int], end: int) -> list[int | None]:
        """The block of each token, of which all see each other; None for a token that sees what came before it."""
        image = [token == IMAGE and place < end for place, token in enumerate(ids)]
        if self.two_way == "picture":
            starts = [i for i, of_image in enumerate(image) if of_image and (i == 0 or not image[i - 1])]
            return [sum(start <= i for start in starts) if of_image else None for i, of_image in enumerate(image)]
        member = {"pictures": image, "prompt": [place < end for place in range(len(ids))]}
        return [0 if inside else None for inside in member.get(self.two_way, [False] * len(ids))]


EVERY = (WINDOW,) * LAYERS
EVERY_OTHER = tuple(WINDOW if kind == "sliding_attention" else None for kind in ALTERNATING)
GRID: dict[str, Any] = {"image_tokens": 6, "pixels": c.patches, "kinds": "mm_token_type_ids", "grids": ((2, 3),)}
POOLED: dict[str, Any] = {"image_tokens": 4, "pixels": c.pooled, "arrange": c.pooling, "two_way": "pictures"}
POOLED |= {"kinds": "mm_token_type_ids"}
FAMILIES = {
    family.name: family
    for family in [
        # Text models: Llama's layer and its relatives.
        Family("llama", lambda: t.LlamaConfig(**GROUPED)),
        Family("mistral", lambda: t.MistralConfig(**GROUPED, sliding_window=WINDOW), EVERY),
        Family("qwen2", lambda: t.Qwen2Config(**GROUPED)),
        Family("qwen3", lambda: t.Qwen3Config(**GROUPED, head_dim=8)),
        Family("phi3", lambda: t.Phi3Config(**GROUPED, pad_token_id=PAD)),
        Family("smollm3", lambda: t.SmolLM3Config(**GROUPED, no_rope_layer_interval=2, pad_token_id=PAD)),
        Family("starcoder2", lambda: t.Starcoder2Config(**GROUPED, sliding_window=None)),
        Family("olmo", lambda: t.OlmoConfig(**GROUPED)),
        Family("gemma", lambda: t.GemmaConfig(**GROUPED, head_dim=8)),
        Family("minicpm3", c.minicpm3, places=True),
        # Norms in other places, and outputs that are scaled.
        Family("gemma2", lambda: t.Gemma2Config(**GEMMA, attn_logit_softcapping=5.0), EVERY_OTHER),
        Family("gemma3", lambda: t.Gemma3TextConfig(**GEMMA), EVERY_OTHER),
        Family("olmo2", lambda: t.Olmo2Config(**GROUPED)),
        Family("glm4", lambda: t.Glm4Config(**GROUPED, head_dim=8, pad_token_id=PAD)),
        Family("granite", lambda: t.GraniteConfig(**GROUPED, residual_multiplier=0.4, attention_multiplier=0.35)),
        # Both sublayers side by side.
        Family("neox", c.neox(parallel=True)),
        Family("neox-sequential", c.neox(parallel=False)),
        Family("cohere2", c.cohere2, EVERY_OTHER),
        Family("phi", lambda: t.PhiConfig(**GROUPED)),
        Family("stablelm", lambda: t.StableLmConfig(**GROUPED)),
        Family("stablelm-parallel", lambda: t.StableLmConfig(**GROUPED, use_parallel_residual=True)),
        Family("falcon", lambda: t.FalconConfig(**TEXT)),
        Family("falcon-sequential", lambda: t.FalconConfig(**TEXT, parallel_attn=False)),
        Family("falcon-new", lambda: t.FalconConfig(**TEXT, new_decoder_architecture=True, num_kv_heads=2)),
        # Layers of another build.
        Family("opt", c.opt),
        Family("gpt2", c.gpt(t.GPT2Config)),
        Family("gptj", c.gpt(t.GPTJConfig, rotary_dim=4)),
        # Mixtures of experts.
        Family("mixtral", lambda: t.MixtralConfig(**GROUPED, num_local_experts=4)),
        Family(
            "granite-moe",
            lambda: t.GraniteMoeConfig(
                **GROUPED, num_local_experts=4, residual_multiplier=0.4, attention_multiplier=0.35
            ),
        ),
        Family("qwen2-moe", lambda: t.Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=16)),
        Family("qwen3-moe", lambda: t.Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=8)),
        Family("olmoe", lambda: t.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2)),
        Family("deepseek-v3", c.deepseek_v3),
        Family("gpt-oss", c.gpt_oss, EVERY_OTHER),
        # Attention in some layers only.
        Family("qwen3-next", c.qwen3_next, linear=(1, 3)),
        Family("lfm2", c.lfm2, linear=(1, 3)),
        Family("bamba", c.bamba, linear=(1, 3)),
        Family("granite-hybrid", c.granite_hybrid, linear=(1, 3)),
        # Models that see.
        Family("llava", llava(t.LlamaConfig), image_tokens=9, pixels=square(12), grids=((3, 3),)),
        Family("llava-qwen2", llava(t.Qwen2Config), image_tokens=9, pixels=square(12), grids=((3, 3),)),
        Family("llava-mistral", llava(t.MistralConfig, sliding_window=WINDOW), EVERY, 9, square(12)),
        Family("llava-next", c.llava_next, image_tokens=10, pixels=c.tiles, grids=((2, 2), (2, 3))),
        Family("onevision", c.onevision, image_tokens=10, pixels=c.tiles),
        Family("qwen2-vl", c.qwen2_vl, **GRID),
        Family("qwen2.5-vl", c.qwen2_5_vl, **GRID),
        Family("qwen3-vl", c.qwen3_vl, **GRID, places=True),
        Family("qwen3.5", c.qwen3_5, **GRID, linear=(1, 3)),
        Family("glm4v", c.glm4v, **GRID, one_image=True),
        Family("internvl", c.internvl, image_tokens=4, pixels=square(16), grids=((2, 2),)),
        Family("idefics3", c.idefics(t.Idefics3Config), image_tokens=4, pixels=c.framed(16)),
        Family("smolvlm", c.idefics(t.SmolVLMConfig), image_tokens=4, pixels=c.framed(16)),
        Family("mistral3", c.mistral3, image_tokens=4, pixels=c.sized(16)),
        Family("aya-vision", c.aya_vision, EVERY_OTHER, 4, square(16)),
        Family("phi4-multimodal", c.phi4_multimodal, image_tokens=13, pixels=c.crops, one_image=True),
        Family("gemma3-images", c.gemma3, EVERY_OTHER, 4, square(16), "token_type_ids", "picture"),
        Family("molmo2", c.molmo2(), **POOLED),
        Family("molmo2-norm-after", c.molmo2(norm_after=True), **POOLED),
        Family("paligemma", c.paligemma, image_tokens=4, pixels=square(8), kinds="token_type_ids", two_way="prompt"),
        Family("mllama", c.mllama, image_tokens=1, pixels=c.tiled, cross=(3,), arrange=c.by_row),
    ]
}
WITH_IMAGES = [name for name, family in FAMILIES.items() if family.image_tokens and not family.cross]
# What transformers itself refuses.
REFUSED = {
    ("gemma2", "sdpa"): "its soft cap is written for eager",
    ("gpt-oss", "sdpa"): "its attention sinks are written for eager",
    ("gptj", "sdpa"): "its attention is its own",
}
CASES = [(name, kind) for name in FAMILIES for kind in ("sdpa", "eager") if (name, kind) not in REFUSED]


@cache
def built(name: str, attention: str) -> t.PreTrainedModel:
    """The model of a family, shared by all tests, none of which may leave a trace on it."""
    return FAMILIES[name].build(attention)


# A row is text tokens, given by their number, and images.
Row = tuple[int | str, ...]
LAYOUTS: dict[str, list[Row]] = {
    "middle": [(3, "image", 5)],
    "first": [("image", 6)],
    "two images": [(2, "image", 1, "image", 4)],
    "text": [(9,)],
    "ragged": [(3, "image", 5), ("image", 2, "image", 3), (12,)],
}


@dataclass(frozen=True)
class Batch:
    """Rows of token ids with their images, padded on one side or alone.

    Attributes:
        ends: How many tokens of each row are its prompt; what follows is an answer.
    """

    family: Family
    ids: list[list[int]]
    images: list[int]
    pixels: dict[str, Tensor]
    ends: list[int]

    @classmethod
    def of(cls, family: Family, rows: list[Row], seed: int = 0) -> Batch:
        torch.manual_seed(seed)
        image = [IMAGE] * family.image_tokens
        ids = [
            [token for part in row for token in (image if part == "image" else torch.randint(3, 90, (part,)).tolist())]
            for row in rows
        ]
        images = [row.count("image") if image else 0 for row in rows]
        pixels = family.pixels(sum(images)) if sum(images) else {}
        return cls(family, ids, images, pixels, [len(row) for row in ids])

    def padded(self, side: str = "left") -> dict[str, Tensor]:
        """The model's inputs for all rows."""
        return self._inputs(range(len(self.ids)), side, self.pixels)

    def alone(self, row: int) -> dict[str, Tensor]:
        """The model's inputs for one row."""
        first, total, pixels = sum(self.images[:row]), sum(self.images), {}
        if self.images[row]:
            for name, tensor in self.pixels.items():
                size = tensor.shape[0] // total
                pixels[name] = tensor[first * size : (first + self.images[row]) * size]
        return self._inputs([row], "left", pixels)

    def real(self, tensor: Tensor, row: int, side: str) -> Tensor:
        """What belongs to one row's own tokens in an output of shape (batch, tokens, ...)."""
        count = len(self.ids[row])
        return tensor[row, -count:] if side == "left" else tensor[row, :count]

    def _inputs(self, rows: range | list[int], side: str, pixels: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = self._rectangle(rows, side, self.ids, PAD)
        inputs = {"input_ids": ids, "attention_mask": self._rectangle(rows, side, [[1] * len(i) for i in self.ids], 0)}
        if self.family.kinds and self.family.two_way == "prompt":
            answer = [
                [int(place >= end) for place in range(len(i))] for i, end in zip(self.ids, self.ends, strict=True)
            ]
            inputs[self.family.kinds] = self._rectangle(rows, side, answer, 0)
        elif self.family.kinds:
            inputs[self.family.kinds] = (ids == IMAGE).int()
        return self.family.arrange({**inputs, **pixels}, [self.images[row] for row in rows])

    @staticmethod
    def _rectangle(rows: range | list[int], side: str, values: list[list[int]], fill: int) -> Tensor:
        longest = max(len(values[row]) for row in rows)
        lines = [([fill] * (longest - len(values[row])), values[row]) for row in rows]
        return torch.tensor([gap + line if side == "left" else line + gap for gap, line in lines])


def batch_of(name: str, layout: str = "ragged", seed: int = 0) -> Batch:
    """A batch for a family in one of the layouts; a text family gets the texts alone."""
    family = FAMILIES[name]
    rows = LAYOUTS[layout]
    if not family.image_tokens:
        rows = [(sum(9 if part == "image" else part for part in row),) for row in rows]
    elif family.one_image:
        rows = [row[: row.index("image") + 2] if "image" in row else row for row in rows]
    return Batch.of(family, rows, seed)


def run(model: t.PreTrainedModel, inputs: dict[str, Tensor], *, gradients: bool = False, **kwargs: Any) -> Any:
    """Call a model that remembers nothing of earlier calls, and counts no padding as a position."""
    forget(model)
    if model.config.model_type == "gpt2":
        kwargs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.set_grad_enabled(gradients):
        return model(**inputs, **kwargs)


def forget(model: t.PreTrainedModel) -> None:
    """Qwen2-VL and its relatives keep the last input's positions on the model."""
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None


def layer_list(model: t.PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a model."""
    decoder = model.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.h


def without(model: t.PreTrainedModel, skipped: set[int]) -> t.PreTrainedModel:
    """A model built with fewer layers, that has the weights of the ones that remain."""
    kept = [index for index in range(LAYERS) if index not in skipped]
    config, attention = config_without(model, kept), model.config.get_text_config()._attn_implementation
    smaller = type(model)._from_config(config, attn_implementation=attention).eval()
    prefix = next(name for name, part in model.named_modules() if part is layer_list(model))
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith(prefix + ".")}
    for place, index in enumerate(kept):
        for key, value in layer_list(model)[index].state_dict().items():
            weights[f"{prefix}.{place}.{key}"] = value
    smaller.load_state_dict(weights)
    smaller.generation_config = model.generation_config
    return smaller
