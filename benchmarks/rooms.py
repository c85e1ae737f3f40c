"""A second small model that answers questions about pictures: `python benchmarks/rooms.py FOLDER`.

What a search finds on `digits`, whose model and questions its authors look at every day, need not hold elsewhere. So
this trains another LLaVA from nothing, in under half an hour of one core: ten decoder layers instead of twelve, 64
image tokens instead of 49, coloured shapes on nine places instead of digits. It is good, not perfect.

Writes into FOLDER: the model (`model/`), one lm-eval task a split (`search.yaml`, `report.yaml`) with scenes that
training did not see, and a space, `space.yaml`. Prints, while it trains, the share of right
answers of each kind.
"""

import argparse
import logging
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from made_space import write_space
from rooms_scenes import (
    COLOURS,
    IMAGE_TOKENS,
    KINDS,
    PROMPT,
    SHAPES,
    Scenes,
    ask,
    build_model,
    build_processor,
    draw_scenes,
    render,
    tally,
    to_pixel_values,
    write_tasks,
)
from torch import nn

from skipsearch.spaces.digits.packing import NOTHING, Segments, answered, segment_logits, segment_loss
from skipsearch.spaces.digits.regularise import Regulariser
from skipsearch.spaces.digits.train import steps_of

SEGMENT = 13  # tokens of the longest question with its answer and <eos>
SPLITS = {"search": 300, "report": 600}
SEEDS = {"search": 7001, "report": 7002}
# By stage: steps, scenes in a batch, learning rate, questions about a scene, and how often a sublayer is left out.
EVERY = dict.fromkeys(KINDS, 1)
STAGES = {
    "rows": (260, 32, 2e-3, {"row": 3}, 0.0),
    "questions": (560, 24, 1.8e-3, {**EVERY, "row": 1, "tally": 2}, 0.0),
    "robust": (220, 24, 1e-3, {**EVERY, "find": 2, "count": 2, "exists": 2, "row": 1, "tally": 1}, 0.05),
}


class Reader(nn.Module):
    """Names shape and colour at each place from the tower's patches; there to teach the tower, and thrown away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(9, width) * 0.1)
        self.norm = nn.LayerNorm(width)
        self.shapes, self.colours = nn.Linear(width, len(SHAPES) + 1), nn.Linear(width, len(COLOURS) + 1)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of shapes and of colours, each (scenes, 9, kinds); the first kind is nothing."""
        patches = self.norm(patches)
        seen = (patches @ self.queries.T).softmax(1).transpose(1, 2) @ patches
        return self.shapes(seen), self.colours(seen)


def patches_of(model, scenes: Scenes, draw: np.random.Generator) -> torch.Tensor:
    """What the tower says of some scenes, without its class token."""
    return model.model.vision_tower(to_pixel_values(render(scenes, draw))).last_hidden_state[:, 1:]


def train_tower(model, steps: int, draw: np.random.Generator) -> None:
    """Teach the tower to name what is at each place, then freeze it."""
    reader = Reader(model.config.vision_config.hidden_size)
    for update in steps_of("tower", steps, [model.model.vision_tower, reader], peak=2e-3):
        scenes = draw_scenes(draw, 48)
        found = reader(patches_of(model, scenes, draw))
        targets = (torch.from_numpy(one + 1).flatten() for one in (scenes.shapes, scenes.colours))
        losses = (F.cross_entropy(logits.flatten(0, 1), target) for logits, target in zip(found, targets, strict=True))
        update(sum(losses))
    model.model.vision_tower.requires_grad_(False)


class Packer:
    """Puts questions into token ids, many about one scene.

    Args:
        tokenizer: The tokenizer.
        draw: Source of the questions.
    """

    def __init__(self, tokenizer, draw: np.random.Generator) -> None:
        self.words, self.draw = tokenizer.get_vocab(), draw
        self.tokenizer = tokenizer

    def row(self, kind: str, shapes: np.ndarray, colours: np.ndarray) -> tuple[list[int], list[int]]:
        """Token ids of one question and its answer, and what is to be said at each."""
        if kind == "tally":
            said = tally(shapes, colours, self.draw)
            ids = [self.words[word] for word, _ in said]
            targets = [NOTHING if number is None else self.words[number] for _, number in said]
        else:
            asked = ask(kind, shapes, colours, self.draw)
            before = self.tokenizer(PROMPT.split("<image>")[1].format(question=asked.text))["input_ids"]
            answer = [self.words[word] for word in (*asked.answer.split(), "<eos>")]
            ids, targets = before + answer, [NOTHING] * (len(before) - 1) + answer + [NOTHING]
        rest = SEGMENT - len(ids)
        return ids + [0] * rest, targets + [NOTHING] * rest

    def pack(self, scenes: Scenes, plan: dict[str, int]) -> Segments:
        """The questions of a plan about each of some scenes."""
        rows = [
            [self.row(kind, *scene) for kind, count in plan.items() for _ in range(count)]
            for scene in zip(scenes.shapes, scenes.colours, strict=True)
        ]
        ids, targets = (torch.tensor([[pair[part] for pair in row] for row in rows]) for part in (0, 1))
        return Segments(ids, targets)


def train(folder: Path, seed: int, share: float) -> None:
    """Train the model stage by stage and save it."""
    draw, model, processor = np.random.default_rng(seed), build_model(seed), build_processor()
    packer, decoder = Packer(processor.tokenizer, draw), model.model.language_model
    prefix = torch.tensor(processor.tokenizer(PROMPT.split("<image>")[0])["input_ids"])
    train_tower(model, round(350 * share), draw)
    modules = [decoder, model.lm_head, model.model.multi_modal_projector]
    image = slice(len(prefix), len(prefix) + IMAGE_TOKENS)
    for name, (steps, count, peak, plan, drop) in STAGES.items():
        regulariser = Regulariser(decoder, drop, 0.5, image)
        for step, update in enumerate(steps_of(name, round(steps * share), modules, peak)):
            scenes = draw_scenes(draw, count)
            with torch.no_grad():
                patches = patches_of(model, scenes, draw)
            segments = packer.pack(scenes, plan)
            regulariser.draw()
            with regulariser.attached() if drop else nullcontext():
                update(segment_loss(segment_logits(model, prefix, patches, segments), segments))
            if (step + 1) % 100 == 0:
                say(name, step + 1, model, prefix, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.inference_mode()
def say(name: str, step: int, model, prefix: torch.Tensor, seed: int) -> None:
    """Print the share of right answers by kind, on scenes of its own."""
    draw = np.random.default_rng(seed + 10**6)
    scenes = draw_scenes(draw, 100)
    segments = Packer(build_processor().tokenizer, draw).pack(scenes, EVERY)
    right = answered(segment_logits(model, prefix, patches_of(model, scenes, draw), segments), segments)
    shares = ", ".join(f"{kind} {share:.2f}" for kind, share in zip(KINDS, right.float().mean(0), strict=True))
    print(f"{name} {step}: {shares}, {time.process_time():.0f} s", flush=True)


def main() -> None:
    """Train, write, and print how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--share", type=float, default=1.0, help="of the training steps; a small one to try the script")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    given.folder.mkdir(parents=True, exist_ok=True)
    train(given.folder / "model", given.seed, given.share)
    write_tasks(given.folder, SPLITS, SEEDS)
    choices = ["keep", "skip_ffn", "skip_attention", "skip_layer", {"token_ratio": [0.5, 0.25]}]
    write_space(given.folder, choices, [*SPLITS], batch_size=50)
    print(f"trained in {time.process_time() / 60:.1f} minutes of one core")


if __name__ == "__main__":
    main()
