"""The models that `search.py` searches, measured under policies: a text decoder, and the shipped digits."""

import contextlib
import os
import pickle
import time
from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from search_decoder import LENGTH, SPLITS, WIDE, WIDTH
from search_ledger import KEPT
from search_problems import Codes

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.accuracy.memo import Memo, cached_image_features
from skipsearch.evaluators.flops import flop_counter
from skipsearch.evaluators.statistics import layer_statistics
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.runtime.prefix import PrefixStates
from skipsearch.search.baselines.registry import BASELINES
from skipsearch.search.space.parameters import scale_of
from skipsearch.spaces.digits.evaluate import HERE, Exam

SKIPS: list[dict[str, Any]] = [
    {}, {"attention": "skip"}, {"ffn": "skip"}, {"attention": "skip", "ffn": "skip"}, {"wiring": "parallel"},
]  # fmt: skip


class Measured:
    """A model under policies; each is measured once, also between runs where a folder is given.

    Args:
        name: What it is.
        model: The model.
        inputs: By split, one batch of all its examples.
        kinds: The choices of every layer, dense first.
        by_kind: What each costs, of a dense layer's 1.
        work: By choice, the share of the layer's tokens and sublayers that run, each sublayer counting one half.
        folder: Where measurements are kept; None keeps nothing.
    """

    def __init__(
        self, name: str, model: Any, inputs: dict[str, dict[str, Any]], kinds: list[dict[str, Any]],
        by_kind: Codes, work: Codes, folder: Path | None,
    ) -> None:  # fmt: skip
        self.name, self.model, self.inputs, self.work = name, model, inputs, work
        self._choices = [LayerChoice.model_validate(kind) for kind in kinds]
        self.scales = {kind: scale for kind, one in enumerate(self._choices) if (scale := scale_of(one)) is not None}
        config = model.config.get_text_config()
        self.layers, self.choices = config.num_hidden_layers, len(kinds)
        self.costs = np.tile(by_kind / self.layers, (self.layers, 1))
        self.examples, length = inputs["search"]["input_ids"].shape
        state = self.examples * length * config.hidden_size * 4
        self._states = PrefixStates(KEPT * self.layers * state)
        self._file = folder and folder / f"{name.replace(' ', '_')}_{self.examples}_{length}.pickle"
        self._known: dict[tuple[str, bytes], Codes] = self._kept()
        self._saved = time.monotonic()
        dense = np.zeros(self.layers, np.int8)
        self._dense = {split: self._all(split, dense) for split in SPLITS}

    def measure(self, code: Codes, rows: tuple[int, ...] | None = None) -> float:
        """The loss above that of dense on the examples that the search sees; on some of them where given."""
        if rows is None or len(rows) == self.examples:
            return float((self._all("search", code) - self._dense["search"]).mean())
        return float((self._run("search", code, rows) - self._dense["search"][[*rows]]).mean())

    def held_out(self, code: Codes) -> float:
        """The loss above that of dense on other examples."""
        return float((self._all("held out", code) - self._dense["held out"]).mean())

    def steps(self, code: Codes) -> list[Hashable]:
        """What each layer does: its output depends on these up to it."""
        return code.tolist()

    def losses(self, logits: Any, split: str, rows: tuple[int, ...]) -> Any:
        """The loss by example; logits have the shape (examples, tokens, vocabulary)."""
        raise NotImplementedError

    @cached_property
    def heuristics(self) -> dict[str, list[Codes]]:
        """By published rule, its policies; reading the statistics of the dense model is not counted as executions."""
        inputs = self.inputs["search"]
        masks = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        prompts = [
            {name: v[row][masks[row]][None] if v.shape == masks.shape else v[row][None] for name, v in inputs.items()}
            for row in range(min(16, self.examples))
        ]
        statistics = layer_statistics(self.model, prompts)
        domains = [self._choices] * self.layers
        found = {name: rule.policies(domains, statistics) for name, rule in BASELINES.items()}
        index = self._choices.index
        return {name: [np.array([*map(index, policy)]) for policy in policies] for name, policies in found.items()}

    def save(self) -> None:
        """Keep what was measured, by this process and by others."""
        if self._file:
            self._known = self._kept() | self._known
            fresh = self._file.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(pickle.dumps(self._known))
            fresh.replace(self._file)
        self._saved = time.monotonic()

    def best(self) -> None:
        """Unknown."""

    def policy(self, code: Codes) -> Policy:
        """The policy of a code."""
        return Policy(layers={layer: self._choices[kind] for layer, kind in enumerate(code.tolist()) if kind})

    def _kept(self) -> dict[tuple[str, bytes], Codes]:
        return pickle.loads(self._file.read_bytes()) if self._file and self._file.exists() else {}

    def _all(self, split: str, code: Codes) -> Codes:
        key = split, np.asarray(code, np.int8).tobytes()
        if key not in self._known:
            self._known[key] = self._run(split, code, tuple(range(self.examples)))
            if time.monotonic() > self._saved + 30:
                self.save()
        return self._known[key]

    @torch.inference_mode()
    def _run(self, split: str, code: Codes, rows: tuple[int, ...]) -> Codes:
        inputs = {name: value[[*rows]] for name, value in self.inputs[split].items()}
        with apply_policy(self.model, self.policy(code)) as handle:
            # A draw of examples does not come again.
            whole = len(rows) == self.examples
            with self._states.reused(handle, split) if whole else contextlib.nullcontext():
                logits = self.model(**inputs, use_cache=False).logits
        return self.losses(logits, split, rows).numpy()


class Decoder(Measured):
    """A byte-level decoder; its loss is in nats a byte.

    Args:
        folder: Where measurements are kept; None keeps nothing.
        model: The decoder.
        inputs: By split, (examples, bytes).
    """

    def __init__(self, folder: Path | None, model: Any, inputs: dict[str, Any]) -> None:
        attention = 4 * WIDTH**2 + 2 * LENGTH * WIDTH
        ffn = 3 * WIDTH * WIDE
        by_kind = np.array([attention + ffn, ffn, attention, 0, attention + ffn]) / (attention + ffn)
        work = np.array([1, 0.5, 0.5, 0, 1])
        named = {split: {"input_ids": ids} for split, ids in inputs.items()}
        super().__init__(f"decoder {model.config.num_hidden_layers} x 5", model, named, SKIPS, by_kind, work, folder)

    def losses(self, logits: Any, split: str, rows: tuple[int, ...]) -> Any:
        """Nats a byte of each sequence."""
        wanted = self.inputs[split]["input_ids"][[*rows], 1:]
        each = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), wanted, reduction="none")
        return each.mean(1)


class Digits(Measured):
    """The shipped model; its loss is the probability that the right answer misses, for all answers have one token.

    The share of answers that it misses has a hundred steps where there are a hundred questions, and most policies that
    a search compares would share one. Nats have no upper end: a few questions that a policy gets quite wrong would make
    up most of their mean, and another hundred would rank policies otherwise.

    Args:
        folder: Where measurements are kept; None keeps nothing.
        questions: So many of each split.
    """

    def __init__(self, folder: Path | None, questions: int = 100) -> None:
        model = transformers.AutoModelForImageTextToText.from_pretrained(HERE / "model").eval()
        exams = {
            split: Exam(HERE / "model", name, questions, batch_size=questions)
            for split, name in zip(SPLITS, ("search", "report"), strict=True)
        }
        inputs = {split: dict(exam.batches[0][1]) for split, exam in exams.items()}
        self._answers = {
            split: torch.tensor([exam.processor.tokenizer(exam.answers[p]).input_ids[0] for p in exam.batches[0][0]])
            for split, exam in exams.items()
        }
        ratios = np.array([0.5, 0.25])
        kinds = [*SKIPS, *({"token_ratio": float(ratio)} for ratio in ratios)]
        tokens = float(inputs["search"]["attention_mask"].sum(1).double().mean())
        run = 1 - (1 - ratios) * model.config.image_seq_length / tokens
        work = np.array([1, 0.5, 0.5, 0, 1, *run])
        self._features = Memo(2**28)
        by_kind = self._flops(model, kinds, {name: value[:50] for name, value in inputs["search"].items()})
        layers = model.config.get_text_config().num_hidden_layers
        super().__init__(f"digits {layers} x {len(kinds)}", model, inputs, kinds, by_kind, work, folder)

    def losses(self, logits: Any, split: str, rows: tuple[int, ...]) -> Any:
        """Minus the probability of each right answer."""
        mask = self.inputs[split]["attention_mask"][[*rows]]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        predicted = logits[torch.arange(len(rows)), last].log_softmax(-1)
        return -predicted.gather(1, self._answers[split][[*rows]][:, None])[:, 0].exp()

    def steps(self, code: Codes) -> list[Hashable]:
        """What each layer does: one before a token ratio also finds what tokens are worth."""
        with apply_policy(self.model, self.policy(code)) as handle:
            return handle.steps()

    def _run(self, split: str, code: Codes, rows: tuple[int, ...]) -> Codes:
        with cached_image_features(self.model, self._features):
            return super()._run(split, code, rows)

    @staticmethod
    @torch.inference_mode()
    def _flops(model: Any, kinds: list[dict[str, Any]], inputs: dict[str, Any]) -> Codes:
        """What a layer does under each choice, of what it does in the dense model; counted in layer 1."""
        flops = []
        for kind in kinds:
            policy = Policy.model_validate({"layers": {1: kind} if kind else {}})
            with apply_policy(model, policy), flop_counter() as counter:
                model(**inputs, use_cache=False, logits_to_keep=1)
            flops.append(counter.get_total_flops())
        return (np.array(flops) - flops[3]) / (flops[0] - flops[3])
