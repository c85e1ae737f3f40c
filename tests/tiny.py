"""Tiny random models, saved to a folder with their tokenizer or processor, and tiny lm-eval tasks. No downloads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from skipsearch.evaluators.subject import ModelSpec, load_subject

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
WORDS = [f"w{index}" for index in range(59)]
IMAGE_SIZE, PATCH_SIZE = 12, 4
LAYERS = 4


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def text_config(layers: int = LAYERS) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # Large enough that different inputs, and different policies, give different answers.
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def tiny_llama(folder: Path, layers: int = LAYERS) -> Path:
    """A random Llama of four layers with its tokenizer."""
    path = Path(folder) / "llama"
    torch.manual_seed(0)
    LlamaForCausalLM(text_config(layers)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def tiny_llava(folder: Path, layers: int = LAYERS) -> Path:
    """A random LLaVA (nine image tokens a picture, four decoder layers) with its processor."""
    path = Path(folder) / "llava"
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=16,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config(layers),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(path)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False),
        tokenizer=tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(path)
    return path


def words(random: np.random.Generator, low: int, high: int) -> str:
    """Some random words, of varying number so that batches need padding."""
    return " ".join(random.choice(WORDS, random.integers(low, high)))


def write_task(folder: Path, name: str, data: Path, **config: object) -> Path:
    """Write an lm-eval task over a JSON or parquet file."""
    kind = "json" if data.suffix == ".jsonl" else "parquet"
    task = {
        "task": name,
        "dataset_path": kind,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        **config,
    }
    path = Path(folder) / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task, sort_keys=False))
    return path


CHOICES = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "label"}
# What the random model generates is scored by its first letters, so that some answers are right.
GENERATE = {
    "output_type": "generate_until",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["w7"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "regexes_to_ignore": [r"(?s)(?<=^w\d).*", r"(?<=w)[0-4]"],
        }
    ],
}


def rows(count: int, seed: int) -> list[dict[str, object]]:
    random = np.random.default_rng(seed)
    return [
        {
            "question": words(random, 3, 12),
            "choices": [words(random, 1, 4) for _ in range(3)],
            "label": int(random.integers(3)),
            "answer": f"w{random.integers(10)}",
        }
        for _ in range(count)
    ]


def text_tasks(folder: Path, count: int = 24) -> dict[str, Path]:
    """Text tasks `text_mc` and `text_gen` over the same documents."""
    data = Path(folder) / "text.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows(count, seed=1)))
    return {
        "text_mc": write_task(folder, "text_mc", data, **CHOICES),
        "text_gen": write_task(folder, "text_gen", data, **GENERATE),
    }


def image_tasks(folder: Path, count: int = 12) -> dict[str, Path]:
    """Image tasks `image_mc` and `image_gen` over the same documents, one random picture each."""
    random = np.random.default_rng(2)
    documents = rows(count, seed=3)
    for row in documents:
        pixels = random.integers(0, 256, (IMAGE_SIZE + 4, IMAGE_SIZE, 3), dtype=np.uint8)
        row["question"] = f"w1 <image> {row['question']}"
        row["image"] = Pictures.fromarray(pixels)
    strings, numbers = Value("string"), Value("int64")
    features = Features(question=strings, choices=[strings], label=numbers, answer=strings, image=Image())
    data = Path(folder) / "images.parquet"
    Dataset.from_list(documents, features=features).to_parquet(data)
    image = {"doc_to_image": ["image"]}
    return {
        "image_mc": write_task(folder, "image_mc", data, **CHOICES, **image),
        "image_gen": write_task(folder, "image_gen", data, **GENERATE, **image),
    }


def world(folder: Path) -> SimpleNamespace:
    """Both models, loaded, and the paths of all tasks by name."""
    subjects = {
        "llama": load_subject(ModelSpec(id=str(tiny_llama(folder)), device="cpu")),
        "llava": load_subject(ModelSpec(id=str(tiny_llava(folder)), device="cpu")),
    }
    tasks = {name: str(path) for name, path in {**text_tasks(folder), **image_tasks(folder)}.items()}
    return SimpleNamespace(**subjects, tasks=tasks, folder=Path(folder))
