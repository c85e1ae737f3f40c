"""The model and its processor before any training: a small but ordinary LLaVA."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .data import IMAGE_SIZE

PATCH_SIZE = 8
LAYERS = 12  # of the decoder
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
_TEXT = (
    "user assistant : ? . which what how is are there digit digits at the a many plus larger than read all "
    "top bottom left right yes no"
)
WORDS = [*_TEXT.split(), *(str(number) for number in range(19))]
PROMPT = "USER: <image> {question} ASSISTANT:"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer; it adds no token of its own to a text."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Build the processor: images of any size become one IMAGE_SIZE square, `<image>` its IMAGE_TOKENS places."""
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy "default" drops again
        image_token="<image>",
    )


def build_config(layers: int = LAYERS) -> LlavaConfig:
    """Describe the model: 4 vision layers of width 96, decoder layers of width 128."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=96,
    )
    pad, bos, eos = (SPECIAL_TOKENS.index(token) for token in ("<pad>", "<bos>", "<eos>"))
    text = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(WORDS),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.04,
        tie_word_embeddings=False,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL_TOKENS.index("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model(seed: int, layers: int = LAYERS) -> LlavaForConditionalGeneration:
    """Build the model with random weights."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(layers))
    text = model.config.text_config
    model.generation_config = GenerationConfig(
        pad_token_id=text.pad_token_id,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        do_sample=False,
    )
    return model


def to_pixel_values(scenes: torch.Tensor) -> torch.Tensor:
    """Do what the processor does to uint8 scenes of the right size, for a whole batch at once."""
    return (scenes.permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5
