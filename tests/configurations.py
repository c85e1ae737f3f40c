"""Configurations of tiny models, and the inputs that they want beside the ids."""

from __future__ import annotations

from collections.abc import Callable
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
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["full_attention", "linear_attention"] * (LAYERS // 2),
}
# Positions in time, height and width, of four frequencies.
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 98}


def llava(text: Callable[..., t.PreTrainedConfig], **more: Any) -> Callable[[], t.LlavaConfig]:
    vision = t.CLIPVisionConfig(**VISION, image_size=12, patch_size=4)
    return lambda: t.LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text(**GROUPED, **more).to_dict(),
        image_token_id=IMAGE,
        image_seq_length=9,
        vision_feature_layer=-1,
    )


def llava_next() -> t.LlavaNextConfig:
    return t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**VISION, image_size=8, patch_size=4).to_dict(),
        text_config=t.LlamaConfig(**GROUPED).to_dict(),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
    )


def onevision() -> t.LlavaOnevisionConfig:
    return t.LlavaOnevisionConfig(
        vision_config=siglip(8),
        text_config=t.Qwen2Config(**GROUPED).to_dict(),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
    )


def siglip(size: int) -> dict[str, Any]:
    return t.SiglipVisionConfig(**VISION, image_size=size, patch_size=4).to_dict()


def qwen2_vl() -> t.Qwen2VLConfig:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return t.Qwen2VLConfig(vision_config=vision | {"initializer_range": 0.2}, text_config=GROUPED | MROPE, **TOKENS)


def qwen2_5_vl() -> t.Qwen2_5_VLConfig:
    return t.Qwen2_5_VLConfig(
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
        | {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]},
        text_config={**GROUPED, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        **TOKENS,
    )


def qwen3_vl() -> t.Qwen3VLConfig:
    """What two depths of the vision model see is added to the image tokens after the first two layers."""
    return t.Qwen3VLConfig(
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
        | {
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.2,
        },
        text_config={**GROUPED, **MROPE, "head_dim": 8},
        **TOKENS,
    )


def qwen3_5() -> t.Qwen3_5Config:
    # Smaller weights, as in `qwen3_next`.
    return t.Qwen3_5Config(
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
        | {"patch_size": 4, "num_position_embeddings": 16, "initializer_range": 0.2},
        text_config={**GROUPED, **DELTA, "initializer_range": 0.1, "head_dim": 8}
        | {"rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 1.0}},
        **TOKENS,
    )


def glm4v() -> t.Glm4vConfig:
    return t.Glm4vConfig(
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
        | {"patch_size": 4, "image_size": 16, "initializer_range": 0.2},
        text_config=GROUPED | MROPE,
        **TOKENS,
    )


def internvl() -> t.InternVLConfig:
    return t.InternVLConfig(
        vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config=t.Qwen2Config(**GROUPED).to_dict(),
        image_token_id=IMAGE,
        image_seq_length=4,
    )


def idefics(kind: type[t.PreTrainedConfig]) -> Callable[[], t.PreTrainedConfig]:
    return lambda: kind(
        vision_config={**VISION, "image_size": 16, "patch_size": 4},
        text_config={**GROUPED, "model_type": "llama", "pad_token_id": PAD},
        image_token_id=IMAGE,
        scale_factor=2,
    )


def paligemma() -> t.PaliGemmaConfig:
    return t.PaliGemmaConfig(
        vision_config=siglip(8),
        text_config=t.GemmaConfig(**GROUPED, head_dim=8).to_dict(),
        image_token_index=IMAGE,
        vocab_size=VOCABULARY,
        projection_dim=32,
        hidden_size=32,
    )


def gemma3() -> t.Gemma3Config:
    return t.Gemma3Config(
        vision_config=siglip(16),
        text_config=t.Gemma3TextConfig(**GEMMA).to_dict(),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
        initializer_range=0.2,
    )


def mistral3() -> t.Mistral3Config:
    return t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(**VISION, image_size=16, patch_size=4).to_dict(),
        text_config=t.MistralConfig(**GROUPED, head_dim=8, sliding_window=None).to_dict(),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )


def aya_vision() -> t.AyaVisionConfig:
    return t.AyaVisionConfig(
        vision_config=siglip(16),
        text_config=cohere2().to_dict(),
        image_token_index=IMAGE,
        downsample_factor=2,
        vision_feature_layer=-1,
    )


def cohere2() -> t.Cohere2Config:
    return t.Cohere2Config(**GROUPED, sliding_window=WINDOW, layer_types=ALTERNATING, logit_scale=1.0)


def molmo2(**more: Any) -> Callable[[], t.PreTrainedConfig]:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return lambda: t.Molmo2Config(
        vision_config={**VISION, **heads, "num_hidden_layers": 2, "image_size": [8, 8], "patch_size": 4},
        adapter_config={"hidden_size": 16, "intermediate_size": 24, "text_hidden_size": 32, "initializer_range": 0.2}
        | {**heads, "vision_feature_layer": [0, 1]},
        text_config={**GROUPED, "head_dim": 8, "additional_vocab_size": 0, **more},
        image_patch_id=IMAGE,
        initializer_range=0.2,
    )


def phi4_multimodal() -> t.Phi4MultimodalConfig:
    return t.Phi4MultimodalConfig(
        **GROUPED,
        vision_config={**VISION, "num_hidden_layers": 2, "image_size": 16, "crop_size": 16, "patch_size": 4}
        | {"image_token_id": IMAGE},
        audio_config={"hidden_size": 16, "intermediate_size": 24, "num_blocks": 1, "num_attention_heads": 2}
        | {"ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16, "input_size": 16}
        | {"audio_token_id": 97},
        pad_token_id=PAD,
    )


def mllama() -> t.MllamaConfig:
    return t.MllamaConfig(
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2}
        | {"intermediate_size": 24, "image_size": 8, "patch_size": 4, "max_num_tiles": 1, "initializer_range": 0.2}
        | {"intermediate_layers_indices": [0], "vision_output_dim": 32, "supported_aspect_ratios": [[1, 1]]},
        text_config={**GROUPED, "cross_attention_layers": [3], "pad_token_id": PAD},
        image_token_index=IMAGE,
    )


def opt() -> t.OPTConfig:
    sizes = {key: value for key, value in TEXT.items() if key != "initializer_range"}
    return t.OPTConfig(**sizes, init_std=0.2, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128)


def neox(parallel: bool) -> Callable[[], t.GPTNeoXConfig]:
    return lambda: t.GPTNeoXConfig(**TEXT, intermediate_size=48, use_parallel_residual=parallel)


def gpt(kind: type[t.PreTrainedConfig], **more: Any) -> Callable[[], t.PreTrainedConfig]:
    return lambda: kind(
        n_embd=32, n_layer=LAYERS, n_head=4, vocab_size=VOCABULARY, n_positions=128, initializer_range=0.2, **more
    )


def deepseek_v3() -> t.DeepseekV3Config:
    return t.DeepseekV3Config(
        **{**GROUPED, "num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )


def minicpm3() -> t.MiniCPM3Config:
    return t.MiniCPM3Config(
        **{**GROUPED, "num_key_value_heads": 4},
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        dim_model_base=32,
    )


def gpt_oss() -> t.GptOssConfig:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    windows = {"sliding_window": WINDOW, "layer_types": ALTERNATING}
    return t.GptOssConfig(**GROUPED, **experts, **windows, head_dim=8, rope_parameters=rope)


def qwen3_next() -> t.Qwen3NextConfig:
    # Smaller weights: its recurrence is computed in chunks and in steps, which differ by more the larger they are.
    return t.Qwen3NextConfig(
        **{**GROUPED, "initializer_range": 0.1},
        **EXPERTS,
        head_dim=8,
        **DELTA,
        shared_expert_intermediate_size=16,
    )


def lfm2() -> t.Lfm2Config:
    return t.Lfm2Config(**GROUPED, layer_types=["full_attention", "conv"] * (LAYERS // 2), block_multiple_of=16)


def bamba() -> t.BambaConfig:
    return t.BambaConfig(
        **GROUPED,
        attn_layer_indices=[0, 2],
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=8,
    )


def granite_hybrid() -> t.GraniteMoeHybridConfig:
    return t.GraniteMoeHybridConfig(
        **GROUPED,
        residual_multiplier=0.4,
        attention_multiplier=0.35,
        num_local_experts=0,
        shared_intermediate_size=48,
        layer_types=["full_attention", "linear_attention"] * (LAYERS // 2),
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=8,
    )


def square(size: int) -> Callable[[int], dict[str, Tensor]]:
    return lambda count: {"pixel_values": torch.randn(count, 3, size, size)}


def framed(size: int) -> Callable[[int], dict[str, Tensor]]:
    """Each picture the only one of its row, where a model counts pictures by row."""
    return lambda count: {"pixel_values": torch.randn(count, 1, 3, size, size)}


def sized(size: int) -> Callable[[int], dict[str, Tensor]]:
    return lambda count: {
        "pixel_values": torch.randn(count, 3, size, size),
        "image_sizes": torch.full((count, 2), size),
    }


def tiles(count: int) -> dict[str, Tensor]:
    """Each picture whole and as one tile: 4 + 2 * (2 + 1 for the end of a line) tokens."""
    return {"pixel_values": torch.randn(count, 2, 3, 8, 8), "image_sizes": torch.full((count, 2), 8)}


def crops(count: int) -> dict[str, Tensor]:
    """Each picture whole and as one crop: 2 * 2 * (2 + 1 for the end of a line) + 1 between them tokens."""
    return {
        "image_pixel_values": torch.randn(count, 2, 3, 16, 16),
        "image_sizes": torch.full((count, 2), 16),
        "image_attention_mask": torch.ones(count, 2, 4, 4),
    }


def patches(count: int) -> dict[str, Tensor]:
    """Each picture 4 by 6 patches, merged by 2 by 2 to six tokens."""
    grid = torch.tensor([[1, 4, 6]]).repeat(count, 1)
    return {"pixel_values": torch.randn(count * 24, 3 * 2 * 4 * 4), "image_grid_thw": grid}


def pooled(count: int) -> dict[str, Tensor]:
    """Each picture one crop of 2 by 2 patches, a token each."""
    return {
        "pixel_values": torch.randn(count, 4, 4 * 4 * 3),
        "image_grids": torch.tensor([[2, 2, 0, 0]]).repeat(count, 1),
        "image_num_crops": torch.ones(count, dtype=torch.long),
    }


def tiled(count: int) -> dict[str, Tensor]:
    """Each picture one tile."""
    return {"pixel_values": torch.randn(count, 1, 3, 8, 8)}


def pooling(inputs: dict[str, Tensor], images: list[int]) -> dict[str, Tensor]:
    """Each patch a token of its own, counted through all pictures."""
    if sum(images):
        inputs["image_token_pooling"] = torch.arange(4 * sum(images))[:, None]
    return inputs


def by_row(inputs: dict[str, Tensor], images: list[int]) -> dict[str, Tensor]:
    """Two pictures a row, the missing ones blank; every token sees all of its row's."""
    pixels = torch.zeros(len(images), 2, 1, 3, 8, 8)
    for row, count in enumerate(images):
        first = sum(images[:row])
        pixels[row, :count] = inputs.get("pixel_values", pixels[:0, 0])[first : first + count]
    seen = torch.tensor([[1, int(count == 2)] for count in images])
    inputs["pixel_values"] = pixels
    inputs["aspect_ratio_ids"] = torch.ones(len(images), 2, dtype=torch.long)
    inputs["aspect_ratio_mask"] = torch.ones(len(images), 2, 1, dtype=torch.long)
    inputs["cross_attention_mask"] = seen[:, None, :, None].repeat(1, inputs["input_ids"].shape[1], 1, 1)
    return inputs
