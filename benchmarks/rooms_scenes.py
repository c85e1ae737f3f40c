"""Rooms: scenes of coloured shapes on a grid of nine places, questions about them, and the LLaVA that answers these."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
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

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (225, 205, 40),
           "purple": (150, 50, 180)}  # fmt: skip
PLACES = [f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")]
EMPTY = 0.3  # share of the places without an object
CELL, IMAGE_SIZE, PATCH_SIZE = 21, 64, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
TEXT = (
    "user assistant : ? . what colour is at the how many are there a read nothing yes no many top middle bottom left "
    "centre right"
)
WORDS = list(dict.fromkeys([*TEXT.split(), *SHAPES, *COLOURS, *map(str, range(10))]))
PROMPT = "USER: <image> {question} ASSISTANT:"


@dataclass(frozen=True)
class Scenes:
    """Some scenes.

    Attributes:
        shapes: By scene and place the number of a shape, or -1 where nothing is, shape (scenes, 9).
        colours: The same for colours.
    """

    shapes: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class Question:
    """A question about one scene, with its answer; both as words.

    Attributes:
        kind: Its kind.
        text: The question.
        answer: The answer.
    """

    kind: str
    text: str
    answer: str


def draw_scenes(draw: np.random.Generator, count: int) -> Scenes:
    """Scenes with objects at random; half of them have few colours, so that counting matters."""
    shapes, colours = draw.integers(0, len(SHAPES), (count, 9)), draw.integers(0, len(COLOURS), (count, 9))
    for row in range(0, count, 2):
        colours[row] = draw.choice(draw.choice(len(COLOURS), 2, replace=False), 9)
    empty = draw.random((count, 9)) < EMPTY
    return Scenes(np.where(empty, -1, shapes), np.where(empty, -1, colours))


def masks(shapes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Which pixels of its cell an object covers, shape (scenes, 9, CELL, CELL); size, place and angle vary."""
    axis = (np.arange(CELL) - (CELL - 1) / 2) / (CELL / 2)
    size, x, y, angle = (
        draw.uniform(low, high, (*shapes.shape, 1, 1))
        for low, high in ((0.7, 0.95), (-0.12, 0.12), (-0.12, 0.12), (-0.2, 0.2))
    )
    across, down = (axis[None, :] - x) / size, (axis[:, None] - y) / size
    u, v = across * np.cos(angle) - down * np.sin(angle), across * np.sin(angle) + down * np.cos(angle)
    radius, widest = np.hypot(u, v), np.maximum(abs(u), abs(v))
    forms = [
        radius < 0.85,
        widest < 0.72,
        (v < 0.7) & (v > -0.8) & (abs(u) < (v + 0.8) / 1.7),
        (np.minimum(abs(u), abs(v)) < 0.25) & (widest < 0.85),
        (radius < 0.88) & (radius > 0.5),
        (abs(v) < 0.28) & (abs(u) < 0.9),
    ]
    return np.select([shapes[..., None, None] == number for number in range(len(SHAPES))], forms, False)


def render(scenes: Scenes, draw: np.random.Generator) -> np.ndarray:
    """Pictures, shape (scenes, IMAGE_SIZE, IMAGE_SIZE, 3), uint8."""
    count = len(scenes.shapes)
    covered = masks(scenes.shapes, draw)
    ink = np.array([*COLOURS.values()])[scenes.colours] + draw.normal(0, 18, (count, 9, 3))
    paper = draw.uniform(200, 255, (count, 1, 1, 1, 1)) * np.ones(3)
    cells = np.where(covered[..., None], ink[:, :, None, None], paper)
    pixels = cells.reshape(count, 3, 3, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5).reshape(count, 63, 63, 3)
    pixels = np.pad(pixels, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge") + draw.normal(0, 8, (count, 64, 64, 1))
    return pixels.clip(0, 255).round().astype(np.uint8)


def ask(kind: str, shapes: np.ndarray, colours: np.ndarray, draw: np.random.Generator) -> Question:
    """Ask one question about a scene.

    Args:
        kind: One of KINDS, or `row`, which only training has.
        shapes: The scene's shapes, by place.
        colours: Its colours.
        draw: Source of every random choice.
    """
    names = [SHAPES[shape] if shape >= 0 else "nothing" for shape in shapes]
    inks = [[*COLOURS][colour] if colour >= 0 else "nothing" for colour in colours]
    place = int(draw.integers(9))
    if kind == "shape":
        return Question(kind, f"What is at the {PLACES[place]}?", names[place])
    if kind == "colour":
        return Question(kind, f"What colour is at the {PLACES[place]}?", inks[place])
    if kind == "row":
        row = int(draw.integers(3))
        said = ["nothing" if shapes[one] < 0 else f"{inks[one]} {names[one]}" for one in range(3 * row, 3 * row + 3)]
        return Question(kind, f"Read {PLACES[3 * row].split()[0]}.", " ".join(said))
    if kind == "find":
        single = [one for one in range(9) if shapes[one] >= 0 and names.count(names[one]) == 1]
        if not single:
            return ask("shape", shapes, colours, draw)
        place = int(draw.choice(single))
        return Question(kind, f"What colour is the {names[place]}?", inks[place])
    counted = [SHAPES, [*COLOURS]][int(draw.integers(2))]
    there = [(names + inks).count(word) for word in counted]
    if kind == "count":
        wanted = draw.choice(np.unique(there))
        word = counted[int(draw.choice(np.flatnonzero(np.array(there) == wanted)))]
        return Question(kind, f"How many {word} are there?", str(wanted))
    is_there = [bool(number) for number in there]
    coin = bool(draw.integers(2)) if len({*is_there}) == 2 else is_there[0]
    word = counted[int(draw.choice([number for number, found in enumerate(is_there) if found == coin]))]
    return Question("exists", f"Is there a {word}?", "yes" if coin else "no")


KINDS = ("shape", "colour", "find", "count", "exists")


def tally(shapes: np.ndarray, colours: np.ndarray, draw: np.random.Generator) -> list[tuple[str, str | None]]:
    """An exercise: words for shapes and colours, and after each how often the scene has it."""
    names = [SHAPES[shape] for shape in shapes if shape >= 0] + [
        [*COLOURS][colour] for colour in colours if colour >= 0
    ]
    words = draw.permutation([*SHAPES, *COLOURS])
    return [("many", None), *((str(word), str(names.count(word))) for word in words)]


def build_processor() -> LlavaProcessor:
    """Build the processor: word-level tokens, pictures of IMAGE_SIZE, `<image>` becomes IMAGE_TOKENS places."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left", model_max_length=256,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    pictures = CLIPImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=pictures, tokenizer=fast, patch_size=PATCH_SIZE, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """Build the model with random weights: 3 vision layers of width 64, 10 decoder layers of width 96."""
    pad, bos, eos = (SPECIAL.index(token) for token in ("<pad>", "<bos>", "<eos>"))
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=64,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=96, intermediate_size=256, num_hidden_layers=10,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.04,
        tie_word_embeddings=False, pad_token_id=pad, bos_token_id=bos, eos_token_id=eos,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=SPECIAL.index("<image>"),
            image_seq_length=IMAGE_TOKENS, vision_feature_layer=-1, vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(pad_token_id=pad, bos_token_id=bos, eos_token_id=eos, do_sample=False)
    return model


def to_pixel_values(pictures: np.ndarray) -> torch.Tensor:
    """What the processor makes of pictures of the right size, for a whole batch at once."""
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5


def write_tasks(folder: Path, counts: dict[str, int], seeds: dict[str, int]) -> None:
    """Write one lm-eval task a split, each over scenes of its own, every kind of question equally often.

    Args:
        folder: Where they go.
        counts: Questions by split.
        seeds: Of the scenes, by split.
    """
    text = Value("string")
    features = Features(image=Image(), question=text, answer=text, kind=text)
    for split, count in counts.items():
        draw = np.random.default_rng(seeds[split])
        scenes = draw_scenes(draw, count)
        rows = []
        for index, picture in enumerate(render(scenes, draw)):
            kind = KINDS[index % len(KINDS)]
            asked = replace(ask(kind, scenes.shapes[index], scenes.colours[index], draw), kind=kind)
            file = io.BytesIO()
            Pictures.fromarray(picture).save(file, format="PNG")
            entry = {"question": asked.text, "answer": asked.answer, "kind": asked.kind}
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, **entry})
        data = folder / f"{split}.parquet"
        Dataset.from_list(rows, features=features).to_parquet(data)
        task = {
            "task": f"rooms_{split}", "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": str(data.resolve())}}, "test_split": "test",
            "output_type": "generate_until", "doc_to_image": ["image"],
            "doc_to_text": PROMPT.format(question="{{question}}"), "doc_to_target": "answer",
            "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 4, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "num_fewshot": 0,
        }  # fmt: skip
        (folder / f"{split}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
