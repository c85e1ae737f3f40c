"""What `search.py` searches: planted interactions with a known best front, a text decoder, and the shipped digits."""

import itertools
import math
import pickle
import random
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

Codes = np.ndarray
CORNER = (1.0, 1.0)  # where the hypervolume counts from: a loss of 1, and the cost of dense


class Planted:
    """Losses of single choices and of pairs within random groups of layers, so that the best front can be computed.

    Args:
        layers: How many; a multiple of `group`.
        seed: Of everything.
        group: So many layers interact with each other, pair by pair.
        choices: Of each layer, dense first.
    """

    units = np.array([6, 4, 2, 0, 3, 5])  # what a layer costs by choice

    def __init__(self, layers: int, seed: int, group: int = 4, choices: int = 5) -> None:
        draw = np.random.default_rng(seed)
        self.name, self.layers, self.choices = f"planted {layers} x {choices}", layers, choices
        importance = np.exp(draw.normal(0, 0.9, layers))
        importance[[0, -1]] *= 3
        share = np.array([0, 0.35, 0.6, 1.0, 0.35, 0.1])[:choices] * np.exp(draw.normal(0, 0.3, (layers, choices)))
        share[:, 3] = share[:, 1] + share[:, 2]
        self.alone = importance[:, None] * share
        self.alone *= min(8, layers / 4) / self.alone[:, 3].sum()
        order = draw.permutation(layers)
        self.groups = [sorted(order[i : i + group]) for i in range(0, layers, group)]
        self.pairs: dict[tuple[int, int], Codes] = {}
        for one, other in itertools.chain.from_iterable(itertools.combinations(g, 2) for g in self.groups):
            strength = max(draw.normal(0.5, 1.0), -0.6)
            jitter = np.exp(draw.normal(0, 0.3, (choices, choices)))
            self.pairs[one, other] = strength * jitter * np.sqrt(np.outer(self.alone[one], self.alone[other]))
        self.costs = np.tile(self.units[:choices] / 6 / layers, (layers, 1))

    def measure(self, code: Codes) -> float:
        """The loss of one policy."""
        return float(self.losses(code[None])[0])

    held_out = measure

    def losses(self, codes: Codes, among: list[int] | None = None) -> Codes:
        """The losses of policies; of a group of layers alone where `codes` has only those."""
        places = {layer: column for column, layer in enumerate(among or range(self.layers))}
        total = sum((self.alone[layer][codes[:, column]] for layer, column in places.items()), np.zeros(len(codes)))
        for (one, other), pair in self.pairs.items():
            if one in places and other in places:
                total = total + pair[codes[:, places[one]], codes[:, places[other]]]
        return total

    def best(self) -> list[tuple[float, float]]:
        """The true front: every combination of each group, and a dynamic program over the groups."""
        least = np.full(6 * self.layers + 1, np.inf)
        least[0] = 0.0
        for group in self.groups:
            codes = np.array(list(itertools.product(range(self.choices), repeat=len(group))))
            of_group = np.full(6 * len(group) + 1, np.inf)
            np.minimum.at(of_group, self.units[codes].sum(1), self.losses(codes, group))
            longer = np.full_like(least, np.inf)
            for cost, loss in enumerate(of_group):
                longer[cost:] = np.minimum(longer[cost:], least[: len(least) - cost] + loss)
            least = longer
        return [(float(loss), cost / 6 / self.layers) for cost, loss in enumerate(least)]


class Cached:
    """A real model under policies; every policy is measured once, also between runs where a folder is given."""

    def __init__(self, name: str, kinds: list[dict[str, Any]], costs: Codes, folder: Path | None) -> None:
        self.name, self.kinds, self.costs = name, kinds, costs
        self.layers, self.choices = costs.shape
        self._file = folder and folder / f"{name.replace(' ', '_')}.pickle"
        self._known: dict[tuple[str, bytes], float] = {}
        if self._file and self._file.exists():
            self._known = pickle.loads(self._file.read_bytes())
        dense = np.zeros(self.layers, int)
        self._dense = {split: self._measured(split, dense) for split in ("search", "held out")}

    def measure(self, code: Codes) -> float:
        """The loss against dense on the examples that the search sees."""
        return self._measured("search", code) - self._dense["search"]

    def held_out(self, code: Codes) -> float:
        """The loss against dense on other examples."""
        return self._measured("held out", code) - self._dense["held out"]

    def _measured(self, split: str, code: Codes) -> float:
        from skipsearch import Policy, apply_policy

        policy = Policy.model_validate(
            {"layers": {layer: self.kinds[kind] for layer, kind in enumerate(code.tolist()) if kind}}
        )
        key = split, policy.fingerprint
        if key not in self._known:
            with apply_policy(self.model(), policy):
                self._known[key] = self.loss(split)
        return self._known[key]

    def save(self) -> None:
        """Keep what was measured."""
        if self._file:
            self._file.write_bytes(pickle.dumps(self._known))

    def best(self) -> None:
        """Nobody knows."""


SKIPS: list[dict[str, Any]] = [
    {}, {"attention": "skip"}, {"ffn": "skip"}, {"attention": "skip", "ffn": "skip"}, {"wiring": "parallel"},
]  # fmt: skip


class Decoder(Cached):
    """A byte-level Llama, trained here on the sources of Python's standard library.

    Args:
        folder: Where weights and measurements are kept; None keeps nothing.
        layers: Of the decoder.
        steps: Of the training.
        sequences: Of 96 bytes each, in each split.
    """

    width, wide, length = 64, 176, 96

    def __init__(self, folder: Path | None, layers: int = 24, steps: int = 1200, sequences: int = 8) -> None:
        import torch

        self._torch = torch
        paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        random.Random(0).shuffle(paths)
        text = b"".join(path.read_bytes() for path in paths)[:3_000_000]
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        cut = int(0.9 * len(data))
        self._model = self._trained(folder, data[:cut], layers, steps)
        halves = data[cut:].chunk(2)
        draw = torch.Generator().manual_seed(0)
        self._ids = {
            split: self._windows(half, sequences, draw)
            for split, half in zip(("search", "held out"), halves, strict=True)
        }
        attention = 4 * self.width**2 + 2 * self.length * self.width
        ffn = 3 * self.width * self.wide
        by_choice = np.array([attention + ffn, ffn, attention, 0, attention + ffn]) / (attention + ffn) / layers
        super().__init__(f"decoder {layers} x 5", SKIPS, np.tile(by_choice, (layers, 1)), folder)

    def _windows(self, data: Any, count: int, draw: Any) -> Any:
        starts = self._torch.randint(len(data) - self.length - 1, (count,), generator=draw).tolist()
        return self._torch.stack([data[start : start + self.length] for start in starts])

    def _trained(self, folder: Path | None, data: Any, layers: int, steps: int) -> Any:
        import transformers

        torch, kept = self._torch, folder and folder / f"decoder_{layers}_{steps}"
        if kept and kept.exists():
            return transformers.LlamaForCausalLM.from_pretrained(kept).eval()
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=256, hidden_size=self.width, intermediate_size=self.wide, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
            initializer_range=0.05,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.95))
        draw = torch.Generator().manual_seed(1)
        for step in range(steps):
            rate = 3e-3 * min(1, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids = self._windows(data, 16, draw)
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if kept:
            model.save_pretrained(kept)
        return model.eval()

    def model(self) -> Any:
        """The decoder."""
        return self._model

    def loss(self, split: str) -> float:
        """Nats a byte."""
        with self._torch.inference_mode():
            return float(self._model(input_ids=self._ids[split], labels=self._ids[split], use_cache=False).loss)


class Digits(Cached):
    """The shipped model: the share of questions of which it misses the answer's first token.

    Args:
        folder: Where measurements are kept; None keeps nothing.
        questions: So many of each split.
    """

    def __init__(self, folder: Path | None, questions: int = 200) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        from skipsearch import Policy, apply_policy
        from skipsearch.evaluators.flops import flop_counter
        from skipsearch.spaces.digits.evaluate import HERE, Exam

        self._torch = torch
        self._model = AutoModelForImageTextToText.from_pretrained(HERE / "model").eval()
        self._exams = {
            split: Exam(HERE / "model", name, questions)
            for split, name in (("search", "search"), ("held out", "report"))
        }
        kinds = [*SKIPS, {"token_ratio": 0.5}, {"token_ratio": 0.25}]
        layers = self._model.config.get_text_config().num_hidden_layers
        one = self._exams["search"].batches[0][1]
        flops = []
        for kind in kinds:
            with apply_policy(self._model, Policy.model_validate({"layers": {1: kind} if kind else {}})):
                with torch.inference_mode(), flop_counter() as counter:
                    self._model(**one, use_cache=False, logits_to_keep=1)
                flops.append(counter.get_total_flops())
        layer = flops[0] - flops[3]
        by_choice = (np.array(flops) - flops[3]) / layer / layers
        super().__init__(f"digits {layers} x {len(kinds)}", kinds, np.tile(by_choice, (layers, 1)), folder)

    def model(self) -> Any:
        """The shipped model."""
        return self._model

    def loss(self, split: str) -> float:
        """The share of answers that begin wrongly."""
        exam, wrong = self._exams[split], 0
        with self._torch.inference_mode():
            for places, inputs in exam.batches:
                logits = self._model(**inputs, use_cache=False).logits
                last = inputs["attention_mask"].shape[1] - 1 - inputs["attention_mask"].flip(1).argmax(1)
                found = logits[self._torch.arange(len(places)), last].argmax(-1)
                answers = [exam.processor.tokenizer(exam.answers[place]).input_ids[0] for place in places]
                wrong += int((found != self._torch.tensor(answers)).sum())
        return wrong / len(exam.answers)
