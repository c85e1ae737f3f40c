"""Train the digits model and write everything the space needs: `python -m skipsearch.spaces.digits.train`.

Stage by stage, for questions alone from random weights stay at chance: the vision tower learns to name the four
digits; then, with the tower frozen, the decoder learns captions; then questions of all kinds, later together with
drills that show what `count`, `exists` and `compare` are about; then the same with the regularisers of `regularise.py`.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from . import data
from .architecture import LAYERS, PROMPT, build_model, build_processor, to_pixel_values
from .packing import Segments, answered, image_slice, pack, segment_logits, segment_loss
from .regularise import Regulariser

HERE = Path(__file__).parent
AUGMENT = 2.0
THIN_CHANCE = 0.7
KEPT_EVERY = 50  # steps
EVERY_KIND = dict.fromkeys([*data.KINDS, "caption"], 1)
DRILLS: dict[str, Callable[[np.ndarray, np.random.Generator], data.Question | data.Drill]] = {
    "tally": data.tally,
    "ladder": data.ladder,
    "margin": data.margin,
    "margins": partial(data.ladder, margins=True),
}
log = logging.getLogger("digits")


class DigitReader(nn.Module):
    """Names the four digits from the tower's patches; only there to teach the tower, and thrown away after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(4, width) * 0.1)
        self.classify = nn.Linear(width, 10)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return logits (scenes, 4, 10)."""
        patches = self.norm(patches)
        weights = (patches @ self.queries.T).softmax(1)
        return self.classify(weights.transpose(1, 2) @ patches)


def tower_patches(model: LlavaForConditionalGeneration, scenes: torch.Tensor) -> torch.Tensor:
    """Return what LLaVA hands to its projector: the last layer's patches without the class token."""
    return model.model.vision_tower(to_pixel_values(scenes)).last_hidden_state[:, 1:]


class Interrupted:
    """The file that an interrupted stage goes on from: its step, weights, optimiser and random numbers.

    Args:
        file: The file; None keeps nothing.
        modules: What is trained.
        optimizer: Its optimiser.
        rng: The generator that the stage draws from, beside torch's own.
    """

    def __init__(
        self, file: Path | None, modules: list[nn.Module], optimizer: torch.optim.Optimizer, rng: np.random.Generator
    ) -> None:
        self._file, self._parts, self._rng = file, [*modules, optimizer], rng

    def load(self) -> tuple[int, float]:
        """Restore what the file has; gives the number of finished steps and the mean loss."""
        if self._file is None or not self._file.exists():
            return 0, 0.0
        kept = torch.load(self._file)
        for part, state in zip(self._parts, kept["parts"], strict=True):
            part.load_state_dict(state)
        self._rng.bit_generator.state = kept["numpy"]
        torch.set_rng_state(kept["torch"])
        log.info("%s: %d steps are done", self._file, kept["step"])
        return kept["step"], kept["mean"]

    def save(self, step: int, mean: float) -> None:
        """Write the file; a kill meanwhile leaves the one before."""
        if self._file is None:
            return
        state = {"step": step, "mean": mean, "parts": [part.state_dict() for part in self._parts],
                 "numpy": self._rng.bit_generator.state, "torch": torch.get_rng_state()}  # fmt: skip
        written = self._file.with_suffix(".new")
        torch.save(state, written)
        written.replace(self._file)


def steps_of(
    name: str, steps: int, modules: list[nn.Module], peak: float, rng: np.random.Generator, kept: Path | None = None
) -> Iterator[tuple[int, Callable[[torch.Tensor], None]]]:
    """Yield each step with a function that takes the loss and updates the weights; logs the progress.

    Args:
        name: What the log calls the stage.
        steps: How many steps.
        modules: What is trained.
        peak: The highest learning rate, reached after a twentieth of the steps; a cosine leads to a fiftieth of it.
        rng: The generator that the stage draws from.
        kept: A file that the stage is kept in every `KEPT_EVERY` steps, and goes on from where it exists.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    interrupted = Interrupted(kept, modules, optimizer, rng)
    first, mean = interrupted.load()
    warm = max(1, steps // 20)
    started = time.monotonic()

    def update(loss: torch.Tensor) -> None:
        nonlocal mean
        done = step / steps
        rate = peak * min((step + 1) / warm, 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean = loss.item() if step == 0 else 0.97 * mean + 0.03 * loss.item()

    for step in range(first, steps):
        yield step, update
        if (step + 1) % KEPT_EVERY == 0:
            interrupted.save(step + 1, mean)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log.info("%s %d/%d loss %.3f, %.0f s", name, step + 1, steps, mean, time.monotonic() - started)


def train_tower(
    model: LlavaForConditionalGeneration, pools: dict[str, data.DigitPool], steps: int, seed: int, kept: Path | None
) -> None:
    """Teach the vision tower to name the digit at each place."""
    rng = np.random.default_rng(seed)
    reader = DigitReader(model.config.vision_config.hidden_size)
    for _, update in steps_of("tower", steps, [model.model.vision_tower, reader], 1.5e-3, rng, kept):
        labels = rng.integers(0, 10, (64, 4))
        scenes = data.render(pools["train"], labels, rng, AUGMENT)
        logits = reader(tower_patches(model, scenes))
        update(F.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten(), label_smoothing=0.05))
    with torch.inference_mode():
        labels = rng.integers(0, 10, (500, 4))
        found = reader(tower_patches(model, data.render(pools["search"], labels, rng))).argmax(-1).numpy()
    log.info("tower: %.4f of the digits in unseen scenes named right", (found == labels).mean())


def take_tower(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Copy the vision tower of a trained model, which two models that differ in the decoder alone can share."""
    trained = LlavaForConditionalGeneration.from_pretrained(folder)
    model.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())


@dataclass(frozen=True)
class Stage:
    """One stretch of the decoder's training.

    Attributes:
        name: What log and checkpoint call it.
        steps: How many steps.
        scenes: Scenes in a batch.
        plan: How many questions of each kind are asked about a scene.
        peak: The highest learning rate.
        drop: Chance of a sublayer to be left out; image tokens vanish too if it is above zero.
    """

    name: str
    steps: int
    scenes: int
    plan: dict[str, int]
    peak: float
    drop: float = 0.0


class DecoderTraining:
    """Trains projector and decoder, the tower frozen.

    Args:
        model: The model.
        processor: Its processor.
        pools: The digit pools.
        seed: Seed of scenes and questions.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        pools: dict[str, data.DigitPool],
        seed: int,
    ) -> None:
        self.model, self.pools = model, pools
        self.tokenizer = processor.tokenizer
        self.rng = np.random.default_rng(seed)
        self.prefix_ids = torch.tensor(self.tokenizer(PROMPT.split("<image>")[0])["input_ids"])

    def batch(self, split: str, scenes: int, plan: dict[str, int]) -> tuple[torch.Tensor, Segments]:
        """Draw scenes and what is asked about each of them."""
        labels = data.draw_labels(self.rng, scenes)
        strength = AUGMENT if split == "train" else 1.0
        with torch.no_grad():
            features = tower_patches(self.model, data.render(self.pools[split], labels, self.rng, strength))
        kinds = [kind for kind, count in plan.items() for _ in range(count)]
        asked = [[self.exercise(kind, row) for kind in kinds] for row in labels]
        return features, pack(self.tokenizer, asked)

    def exercise(self, kind: str, labels: np.ndarray) -> data.Question | data.Drill:
        """Ask one question, of a kind that the tasks have or that only training has."""
        if kind == "caption":
            return data.caption(labels)
        if kind in DRILLS:
            return DRILLS[kind](labels, self.rng)
        return data.ask(kind, labels, self.rng)

    def run(self, stage: Stage, kept: Path | None = None) -> None:
        """Train for one stage, which goes on from the file where it was interrupted."""
        decoder = self.model.model.language_model
        modules = [decoder, self.model.lm_head, self.model.model.multi_modal_projector]
        regulariser = Regulariser(decoder, stage.drop, THIN_CHANCE, image_slice(self.prefix_ids))
        for step, update in steps_of(stage.name, stage.steps, modules, stage.peak, self.rng, kept):
            features, segments = self.batch("train", stage.scenes, stage.plan)
            regulariser.draw()
            with regulariser.attached() if stage.drop else nullcontext():
                update(segment_loss(self.logits(features, segments), segments))
            if (step + 1) % 100 == 0 or step + 1 == stage.steps:
                self.report(stage.name)

    def logits(self, features: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Run the model over a batch."""
        return segment_logits(self.model, self.prefix_ids, features, segments)

    @torch.inference_mode()
    def report(self, name: str) -> None:
        """Log the share of right answers of each kind in scenes of the search pool."""
        drawing, self.rng = self.rng, np.random.default_rng(0)
        features, segments = self.batch("search", 200, dict.fromkeys([*EVERY_KIND, *DRILLS], 1))
        self.rng = drawing
        right = answered(self.logits(features, segments), segments).float().mean(0)
        kinds = [*EVERY_KIND, *DRILLS]
        log.info("%s: %s", name, ", ".join(f"{kind} {share:.3f}" for kind, share in zip(kinds, right, strict=True)))


def decoder_stages(arguments: argparse.Namespace) -> list[Stage]:
    """Return what the decoder learns, in order."""
    margins = {**EVERY_KIND, "compare": 2, "tally": 1, "margin": 3, "margins": 1}
    robust = {**EVERY_KIND, "count": 2, "exists": 2, "compare": 2, "tally": 2, "margin": 1}
    return [
        Stage("captions", arguments.caption_steps, 48, {"caption": 1}, 1.5e-3),
        Stage("questions", arguments.question_steps, 32, EVERY_KIND, 1.2e-3),
        Stage("drills", arguments.drill_steps, 24, {**EVERY_KIND, "tally": 2, "ladder": 2}, 1.2e-3),
        Stage("margins", arguments.margin_steps, 24, margins, 1.2e-3),
        Stage("robust", arguments.robust_steps, 24, robust, 8e-4, arguments.drop),
    ]


def train(arguments: argparse.Namespace) -> None:
    """Run all stages and save model and processor."""
    model, processor, pools = build_model(arguments.seed, arguments.layers), build_processor(), data.digit_pools()
    started = time.monotonic()

    def checkpointed(name: str, action: Callable[[Path | None], None]) -> None:
        if arguments.checkpoints is None:
            action(None)
            return
        done, interrupted = (arguments.checkpoints / f"{name}{suffix}" for suffix in (".pt", "-interrupted.pt"))
        if done.exists():
            model.load_state_dict(torch.load(done))
            log.info("%s: taken from %s", name, done)
            return
        done.parent.mkdir(parents=True, exist_ok=True)
        action(interrupted)
        torch.save(model.state_dict(), done)
        interrupted.unlink(missing_ok=True)

    first_seed = arguments.seed * 10
    if arguments.tower:
        take_tower(model, arguments.tower)
    else:
        checkpointed("tower", partial(train_tower, model, pools, arguments.tower_steps, first_seed))
    model.model.vision_tower.requires_grad_(False)
    for index, stage in enumerate(decoder_stages(arguments), 1):
        # Every stage has a seed of its own, so that it does the same after a checkpoint as in one go.
        torch.manual_seed(first_seed + index)
        training = DecoderTraining(model, processor, pools, first_seed + index)
        checkpointed(stage.name, partial(training.run, stage))
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    log.info("trained in %.1f minutes, saved to %s", (time.monotonic() - started) / 60, arguments.out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "model", help="folder of the model and its processor")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the decoder")
    parser.add_argument("--tower", type=Path, help="take the vision tower of this model instead of training one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=1800)
    parser.add_argument("--caption-steps", type=int, default=400)
    parser.add_argument("--question-steps", type=int, default=1000)
    parser.add_argument("--drill-steps", type=int, default=600)
    parser.add_argument("--margin-steps", type=int, default=250)
    parser.add_argument("--robust-steps", type=int, default=450)
    parser.add_argument("--drop", type=float, default=0.07, help="chance of a sublayer to be dropped in the last stage")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is best on a shared machine")
    parser.add_argument("--checkpoints", type=Path, help="keep the training here, and go on from what is there")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    train(arguments)


if __name__ == "__main__":
    main()
