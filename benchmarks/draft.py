"""A policy as a draft of its own model: equal tokens, acceptance and speed. `python benchmarks/draft.py FOLDER`.

FOLDER is what `smollm2.py` writes: the model, and questions of two splits. Sublayers are ranked on the report split:
how many tokens of the dense model's own answers stay the likeliest ones where one sublayer is skipped. Drafts that skip
the first ones of this ranking are timed on other questions of that split, in turns with the dense model alone. The
fastest of them then drafts answers to 200 questions of the search split. Times are CPU times of one thread, so that
other work on the machine does not count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipsearch import LayerChoice, Policy, apply_policy, draft
from skipsearch.evaluators.flops import FlopsEvaluator
from skipsearch.evaluators.prompts import generate
from skipsearch.evaluators.speculative import Checks, Speculation, assisted_generate
from skipsearch.evaluators.subject import ModelSpec, Subject, load_subject

SKIPS = {"attention": LayerChoice(attention="skip"), "ffn": LayerChoice(ffn="skip")}
Sublayer = tuple[int, str]


def prompts(subject: Subject, path: Path, count: int) -> list[dict[str, Tensor]]:
    """The first questions of a file that `smollm2.py` wrote, as inputs of the model."""
    if not path.is_file():
        sys.exit(f"{path} does not exist\nhint: make the folder with benchmarks/smollm2.py")
    rows = [json.loads(line) for line in path.read_text().splitlines()[:count]]
    texts = [f"{row['query']}\nAnswer:" for row in rows]
    return [dict(subject.tokenizer(text, return_tensors="pt")) for text in texts]


def skipping(sublayers: Sequence[Sublayer]) -> Policy:
    """The policy that skips some sublayers."""
    layers: dict[int, LayerChoice] = {}
    for index, part in sublayers:
        layers[index] = layers.get(index, LayerChoice()).model_copy(update={part: "skip"})
    return Policy(layers=layers)


def ranked(model: Any, inputs: list[dict[str, Tensor]], new_tokens: int) -> list[Sublayer]:
    """All sublayers, the one first without which most tokens of the dense model's answers stay the likeliest."""
    answers = [generate(model, one, new_tokens).sequences for one in inputs]
    kept: dict[Sublayer, int] = {}
    for index in range(model.config.num_hidden_layers):
        for part, choice in SKIPS.items():
            with apply_policy(model, Policy(layers={index: choice})), torch.no_grad():
                likeliest = [model(ids).logits[:, -new_tokens - 1 : -1].argmax(-1) for ids in answers]
            equal = [(one == ids[:, -new_tokens:]).sum() for one, ids in zip(likeliest, answers, strict=True)]
            kept[index, part] = int(sum(equal))
    return sorted(kept, key=lambda sublayer: -kept[sublayer])


def drafted(model: Any, policy: Policy, inputs: list[dict[str, Tensor]], given: argparse.Namespace) -> dict[str, Any]:
    """Answers with a draft and without, in turns; how many are equal, and what came of the drafts."""
    guesser, found, equal = draft(model, policy), Speculation(), 0
    constant = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    guesser.generation_config.update(num_assistant_tokens=given.draft_tokens, **constant)
    for number, one in enumerate(inputs):
        answers, checks = {}, Checks()
        for with_draft in (number % 2 == 0, number % 2 == 1):
            start = time.process_time()
            if with_draft:
                answers[with_draft] = assisted_generate(model, guesser, one, given.new_tokens, streamer=checks)
            else:
                answers[with_draft] = generate(model, one, given.new_tokens).sequences
            (found.seconds if with_draft else found.plain_seconds).append(time.process_time() - start)
        equal += torch.equal(answers[True], answers[False])
        found.count(checks.tokens[1:], given.new_tokens, given.draft_tokens)
    ratios = [plain / own for plain, own in zip(found.plain_seconds, found.seconds, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "prompts": len(inputs),
        "equal": equal,
        "accepted_tokens": sum(found.accepted) / len(found.accepted),
        "draft_acceptance": sum(found.accepted) / sum(found.drafted),
        "tokens_a_second": len(inputs) * given.new_tokens / sum(found.seconds),
        "tokens_a_second_alone": len(inputs) * given.new_tokens / sum(found.plain_seconds),
        "speedup": sum(found.plain_seconds) / sum(found.seconds),
        "speedup_quartiles": [low, median, high],
    }


def share_of_flops(subject: Subject, policy: Policy) -> float:
    """FLOPs of a decode step under a policy over those of the dense model."""
    flops = []
    for one in (policy, Policy()):
        with apply_policy(subject.model, one) as handle:
            measured = FlopsEvaluator(FlopsEvaluator.options(), subject).measure(handle, "search")
        flops.append(measured["decode_flops"].value)
    return flops[0] / flops[1]


def main() -> None:
    """Rank, choose and measure; the last line printed is a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--trials", type=int, default=4, help="questions that rank sublayers, and that choose a draft")
    parser.add_argument("--skipped", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--draft-tokens", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_subject(ModelSpec(id=str(given.folder / "model"), dtype="float32", device="cpu"))
    known = prompts(subject, given.folder / "report.jsonl", 2 * given.trials)
    order = ranked(subject.model, known[: given.trials], given.new_tokens)
    rows = []
    for count in given.skipped:
        policy = skipping(order[:count])
        found = drafted(subject.model, policy, known[given.trials :], given)
        rows.append({"skipped": count, "decode_flops": share_of_flops(subject, policy), **found})
        print({name: round(value, 3) for name, value in rows[-1].items() if not isinstance(value, list)}, flush=True)
    best = max(rows, key=lambda row: row["speedup"])["skipped"]
    asked = prompts(subject, given.folder / "search.jsonl", given.prompts)
    final = drafted(subject.model, skipping(order[:best]), asked, given)
    print({name: value for name, value in final.items() if not isinstance(value, list)}, flush=True)
    settings = {name: value for name, value in vars(given).items() if name != "folder"}
    skipped = [f"{part} {index}" for index, part in order[:best]]
    print(json.dumps({"settings": settings, "choosing": rows, "skipped": skipped, "final": final}))


if __name__ == "__main__":
    main()
