"""Model families for the contract suites: tiny, random, built from configurations, with inputs of many layouts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as t
from torch import Tensor

LAYERS, VOCABULARY, IMAGE, PAD, WINDOW = 4, 100, 99, 0, 6
ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    # Large enough that different inputs, and different policies, give clearly different logits.
    "initializer_range": 0.2,
}
GROUPED = {**TEXT, "intermediate_size": 48, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        make: Its configuration.
        windows: The sliding window of each layer; None where it attends to all.
        image_tokens: Tokens that stand for one image; 0 for a text model.
        kinds: What the model calls the input that says which tokens are of an image; None where it needs none.
        two_way: True where the tokens of an image see each other, whichever comes first.
        pixels: What the model wants beside the ids, for so many images; every tensor is divisible by their number.
    """

    name: str
    make: Callable[[], t.PreTrainedConfig]
    windows: tuple[int | None, ...] = (None,) * LAYERS
    image_tokens: int = 0
    pixels: Callable[[int], dict[str, Tensor]] = lambda count: {}
    kinds: str | None = None
    two_way: bool = False

    def build(self, attention: str, config: t.PreTrainedConfig | None = None) -> t.PreTrainedModel:
        torch.manual_seed(0)
        config = config or self.make()
        auto = t.AutoModelForImageTextToText if self.image_tokens else t.AutoModelForCausalLM
        model = auto.from_config(config, attn_implementation=attention).eval()
        model.generation_config.update(pad_token_id=PAD, eos_token_id=None, suppress_tokens=[IMAGE])
        return model


def opt() -> t.OPTConfig:
    sizes = {key: value for key, value in TEXT.items() if key != "initializer_range"}
    return t.OPTConfig(**sizes, init_std=0.2, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128)


def neox(parallel: bool) -> Callable[[], t.GPTNeoXConfig]:
    return lambda: t.GPTNeoXConfig(**TEXT, intermediate_size=48, use_parallel_residual=parallel)


def llava(text: Callable[..., t.PreTrainedConfig], **more: Any) -> Callable[[], t.LlavaConfig]:
    vision = t.CLIPVisionConfig(**VISION, image_size=12, patch_size=4, initializer_range=0.2)
    return lambda: t.LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text(**GROUPED, **more).to_dict(),
        image_token_id=IMAGE,
        image_seq_length=9,
        vision_feature_layer=-1,
    )


def onevision() -> t.LlavaOnevisionConfig:
    return t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION, image_size=8, patch_size=4).to_dict(),
        text_config=t.Qwen2Config(**GROUPED).to_dict(),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
    )


def qwen2_5_vl() -> t.Qwen2_5_VLConfig:
    return t.Qwen2_5_VLConfig(
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
        | {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]},
        text_config={**GROUPED, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        image_token_id=IMAGE,
        video_token_id=98,
    )


def gemma3() -> t.Gemma3Config:
    return t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**VISION, image_size=16, patch_size=4).to_dict(),
        text_config=t.Gemma3TextConfig(**GEMMA).to_dict(),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
        initializer_range=0.2,
    )


def square(size: int) -> Callable[[int], dict[str, Tensor]]:
    return lambda count: {"pixel_values": torch.randn(count, 3, size, size)}


def tiles(count: int) -> dict[str, Tensor]:
    """Each picture whole and as one tile: 4 + 2 * (2 + 1 for the end of a line) tokens."""
    return {"pixel_values": torch.randn(count, 2, 3, 8, 8), "image_sizes": torch.full((count, 2), 8)}


def patches(count: int) -> dict[str, Tensor]:
    """Each picture 4 by 6 patches, merged by 2 by 2 to six tokens."""
    grid = torch.tensor([[1, 4, 6]]).repeat(count, 1)
    return {"pixel_values": torch.randn(count * 24, 3 * 2 * 4 * 4), "image_grid_thw": grid}


EVERY, EVERY_OTHER = (WINDOW,) * LAYERS, (WINDOW, None) * (LAYERS // 2)
FAMILIES = {
    family.name: family
    for family in [
        Family("llama", lambda: t.LlamaConfig(**GROUPED)),
        Family("qwen2", lambda: t.Qwen2Config(**GROUPED)),
        Family("qwen3", lambda: t.Qwen3Config(**GROUPED, head_dim=8)),
        Family("mistral", lambda: t.MistralConfig(**GROUPED, sliding_window=WINDOW), EVERY),
        Family("gemma2", lambda: t.Gemma2Config(**GEMMA, attn_logit_softcapping=5.0), EVERY_OTHER),
        Family("gemma3", lambda: t.Gemma3TextConfig(**GEMMA), EVERY_OTHER),
        Family("opt", opt),
        Family("neox", neox(parallel=True)),
        Family("neox-sequential", neox(parallel=False)),
        Family("llava", llava(t.LlamaConfig), image_tokens=9, pixels=square(12)),
        Family("llava-qwen2", llava(t.Qwen2Config), image_tokens=9, pixels=square(12)),
        Family("llava-mistral", llava(t.MistralConfig, sliding_window=WINDOW), EVERY, 9, square(12)),
        Family("onevision", onevision, image_tokens=10, pixels=tiles),
        Family("qwen2.5-vl", qwen2_5_vl, image_tokens=6, pixels=patches, kinds="mm_token_type_ids"),
        Family("gemma3-images", gemma3, EVERY_OTHER, 4, square(16), kinds="token_type_ids", two_way=True),
    ]
}
WITH_IMAGES = [name for name, family in FAMILIES.items() if family.image_tokens]
# transformers runs Gemma 2, with its soft cap, under eager only.
CASES = [(name, kind) for name in FAMILIES for kind in ("sdpa", "eager") if (name, kind) != ("gemma2", "sdpa")]


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
    """Rows of token ids with their images, padded on one side or alone."""

    family: Family
    ids: list[list[int]]
    images: list[int]
    pixels: dict[str, Tensor]

    @classmethod
    def of(cls, family: Family, rows: list[Row], seed: int = 0) -> Batch:
        torch.manual_seed(seed)
        image = [IMAGE] * family.image_tokens
        ids = [
            [token for part in row for token in (image if part == "image" else torch.randint(3, 90, (part,)).tolist())]
            for row in rows
        ]
        images = [row.count("image") if image else 0 for row in rows]
        return cls(family, ids, images, family.pixels(sum(images)) if sum(images) else {})

    def padded(self, side: str = "left") -> dict[str, Tensor]:
        """The model's inputs for all rows."""
        longest = max(map(len, self.ids))
        fill = [[PAD] * (longest - len(row)) for row in self.ids]
        real = [[1] * len(row) for row in self.ids]
        pair = (fill, self.ids) if side == "left" else (self.ids, fill)
        ids = torch.tensor([first + second for first, second in zip(*pair, strict=True)])
        pair = (fill, real) if side == "left" else (real, fill)
        mask = torch.tensor([first + second for first, second in zip(*pair, strict=True)])
        return self._with_kinds({"input_ids": ids, "attention_mask": mask, **self.pixels})

    def alone(self, row: int) -> dict[str, Tensor]:
        """The model's inputs for one row."""
        ids = torch.tensor([self.ids[row]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.images[row]:
            first, total = sum(self.images[:row]), sum(self.images)
            for name, tensor in self.pixels.items():
                size = tensor.shape[0] // total
                inputs[name] = tensor[first * size : (first + self.images[row]) * size]
        return self._with_kinds(inputs)

    def real(self, tensor: Tensor, row: int, side: str) -> Tensor:
        """What belongs to one row's own tokens in an output of shape (batch, tokens, ...)."""
        count = len(self.ids[row])
        return tensor[row, -count:] if side == "left" else tensor[row, :count]

    def _with_kinds(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.family.kinds:
            inputs[self.family.kinds] = (inputs["input_ids"] == IMAGE).int()
        return inputs


def batch_of(name: str, layout: str = "ragged", seed: int = 0) -> Batch:
    """A batch for a family in one of the layouts; a text family gets the texts alone."""
    family = FAMILIES[name]
    rows = LAYOUTS[layout]
    if not family.image_tokens:
        rows = [(sum(9 if part == "image" else part for part in row),) for row in rows]
    return Batch.of(family, rows, seed)


def run(model: t.PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    """Call a model that remembers nothing of earlier calls."""
    forget(model)
    with torch.no_grad():
        return model(**inputs, **kwargs)


def forget(model: t.PreTrainedModel) -> None:
    """Qwen2.5-VL keeps the last input's positions on the model."""
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None


def without(model: t.PreTrainedModel, skipped: set[int]) -> t.PreTrainedModel:
    """A model built with fewer layers, that has the weights of the ones that remain."""
    kept = [index for index in range(LAYERS) if index not in skipped]
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[index] for index in kept]
    text.num_hidden_layers = len(kept)
    smaller = type(model)._from_config(config, attn_implementation=text._attn_implementation).eval()
    prefix = next(name for name, part in model.named_modules() if part is model.get_decoder().layers)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith(prefix + ".")}
    for place, index in enumerate(kept):
        for key, value in model.get_decoder().layers[index].state_dict().items():
            weights[f"{prefix}.{place}.{key}"] = value
    smaller.load_state_dict(weights)
    smaller.generation_config = model.generation_config
    return smaller
