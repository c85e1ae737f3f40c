"""Accuracy of the digits model with half of its layers skipped: before and after recovery, by method, with minutes.

`python benchmarks/recovery.py` trains each method on questions of the training pool, and answers the 1,000 questions of
the report split. `--quick` trains for 2 steps and answers 50. Prints one JSON document last.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import FlopsEvaluator
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.choice import CHOICES
from skipsearch.policies.trained.routers import Routers, routed_layers
from skipsearch.recovery.examples import Example
from skipsearch.recovery.recover import recover
from skipsearch.recovery.settings import RATES, RecoverySettings
from skipsearch.search.cli_rank import attention_ranks
from skipsearch.spaces.digits import data
from skipsearch.spaces.digits.architecture import PROMPT
from skipsearch.spaces.digits.evaluate import Exam

MODEL = Path(data.__file__).parent / "model"
LAYERS, BATCH, STRENGTH = 12, 32, 2.0
DECAY = {"schedule": {"shifted_cosine": {"ratio": 0.5, "max": 0.85, "min": 0.15}}}


def routed(**options) -> dict:
    """p-MoD's decay with routers; the options change what they do beside ranking."""
    return {**DECAY, "token_selection": {"score": "router", "router": options}}


GAMMA_MOD = {"gate": "sigmoid", "alpha": 1.0, "beta": 0.0, "reweights_rest": False, "reads": "norm", "shared": True}


# Half of the layers leave out half of the image tokens: those of the lowest ARank, and to compare, the others.
PLACED = ("γ-MoD", "γ-MoD on the other layers")
TASK, RANKED = MODEL.parent / "tasks" / "digits_search.yaml", 32  # what ARank is measured on, and how many examples

# ima-lmms' interval 2 never skips the first and the last layer; the second policy skips each other layer to the end.
POLICIES = {
    "interval 2": {"schedule": {"interval": {"interval": 2, "start": 0, "choice": "skip_layer"}}},
    "every second": {"layers": {layer: CHOICES["skip_layer"] for layer in range(1, LAYERS, 2)}},
    "a third of the attentions": {"layers": {layer: CHOICES["skip_attention"] for layer in range(1, LAYERS, 3)}},
    "half of the channels and heads": {"layers": dict.fromkeys(range(LAYERS), {"ffn_ratio": 0.5, "head_ratio": 0.5})},
    "p-MoD by attention": DECAY,
    "p-MoD": routed(),
    "p-MoD without TanhNorm": routed(gate="linear"),
    "p-MoD without STRing": routed(reweights_rest=False),
    "γ-MoD's router": routed(**GAMMA_MOD),
    "γ-MoD's router by its threshold": routed(**GAMMA_MOD, threshold=0.5),
}
ROUTER_LOSS = {"sigmoid": 0.01}  # by gate, as γ-MoD trains; none for the others
# A small model takes larger steps than the defaults, which are for billions of weights.
LEARNING_RATES = {"connector": 1e-3, "lora": 2e-3, "full": 5e-4, "router": 1e-2, "adapter": 3e-3}


def placed(subject) -> dict[str, dict]:
    """γ-MoD's placement and the opposite one, with its router."""
    ranks, _ = attention_ranks(subject, [str(TASK)], RANKED)
    order = sorted(range(LAYERS), key=lambda index: ranks[index])
    halves = order[: LAYERS // 2], order[LAYERS // 2 :]
    selection = {"score": "router", "router": GAMMA_MOD}
    return {
        name: {"layers": {index: {"token_ratio": 0.5} for index in sorted(half)}, "token_selection": selection}
        for name, half in zip(PLACED, halves, strict=True)
    }


def questions(count: int, seed: int) -> list[Example]:
    """Questions about scenes of the training pool, one of each kind about every scene."""
    rng = np.random.default_rng(seed)
    labels = data.draw_labels(rng, -(-count // len(data.KINDS)))
    scenes = data.render(data.digit_pools()["train"], labels, rng, STRENGTH).numpy()
    made = []
    for pixels, row in zip(scenes, labels, strict=True):
        asked = [data.ask(kind, row, rng) for kind in data.KINDS]
        picture = Image.fromarray(pixels)
        made += [Example(PROMPT.format(question=one.text), f" {one.answer}", (picture,)) for one in asked]
    return made[:count]


def recovered(subject, policy, method, examples, exam, options) -> dict:
    """Train one method, and answer the questions with what it wrote."""
    router = policy.token_selection.router
    settings = RecoverySettings(
        router_loss=0.0 if router is None else ROUTER_LOSS.get(router.gate, 0.0),
        method=method, steps=options.steps, batch_size=BATCH, learning_rate=LEARNING_RATES[method], seed=options.seed,
        distil="kl" if options.distil else None, freeze=options.freeze, skip=options.skip,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = recover(subject.model, subject.processor, policy, examples, settings, Path(folder), "benchmark")
        with apply_policy(subject.model, folder) as handle:
            right, flops = exam.right(subject.model), share_of_flops(subject, handle)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    losses = [step.loss for step in done.curve]
    return {
        "accuracy": share(right), "flops": flops,
        "minutes": round(done.minutes, 2), "trained": done.count, "bytes": size,
        "first_loss": round(statistics.fmean(losses[: max(1, len(losses) // 10)]), 4),
        "last_loss": round(statistics.fmean(losses[-max(1, len(losses) // 10) :]), 4),
    }  # fmt: skip


def share_of_flops(subject, handle) -> float:
    """The prefill FLOPs under a policy, as a share of the dense model's."""
    counted = FlopsEvaluator(FlopsEvaluator.options(), subject)
    own = counted.measure(handle, "search")["prefill_flops"].value
    with handle.dense():
        return round(own / counted.measure(handle, "search")["prefill_flops"].value, 4)


def share(right: list[bool]) -> float:
    """The share of right answers."""
    return round(sum(right) / len(right), 4)


def main() -> None:
    """Measure all policies and methods, and print the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distil", action="store_true", help="train on the dense model's predictions")
    parser.add_argument("--freeze", action="store_true", help="freeze adapters, so that FFNs take them in")
    parser.add_argument("--skip", type=int, help="how many of the policy's attentions stay skipped, with adapter")
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=["connector", "lora", "full"])
    parser.add_argument("--policies", nargs="+", choices=[*POLICIES, *PLACED], default=[*POLICIES, *PLACED])
    options = parser.parse_args()
    options.steps = 2 if options.quick else options.steps
    torch.set_num_threads(1)
    subject = load_subject(ModelSpec(id=str(MODEL), dtype="float32", device="cpu"))
    exam = Exam(MODEL, "report", 50 if options.quick else None)
    examples = questions(4000 if not options.quick else 2 * BATCH, options.seed)
    found = {"questions": len(exam.answers), "steps": options.steps, "batch": BATCH, "distil": options.distil,
             "dense": share(exam.right(subject.model)), "policies": {}}  # fmt: skip
    policies = {**POLICIES, **(placed(subject) if {*PLACED} & {*options.policies} else {})}
    for name in options.policies:
        policy = Policy.model_validate({"model": {"num_layers": LAYERS}, **policies[name]})
        routers = Routers.of(subject.model, policy) if routed_layers(policy) else None
        with apply_policy(subject.model, policy, routers) as handle:
            before, flops = share(exam.right(subject.model)), share_of_flops(subject, handle)
        rows = found["policies"][name] = {"layers": [*policy.layers], "flops": flops, "before": before}
        print(f"{name}: dense {found['dense']}, before {before}", flush=True)
        for method in options.methods:
            rows[method] = recovered(subject, policy, method, examples, exam, options)
            print(f"{name}, {method}: {rows[method]}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
