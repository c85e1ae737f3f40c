"""Seeded made-up studies with everything in them, for the analysis and the report."""

import random
import re
from collections.abc import Mapping
from dataclasses import replace

from skipsearch.evaluators.base import Direction, Measurement, Metric
from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.recovery_outcome import quality_ranks
from skipsearch.search.analysis.study_record import RecoveryOutcome, StudyRecord
from skipsearch.search.trial.hypervolume import hypervolume_history, reference_point
from skipsearch.search.trial.pareto import feasible_points, front_trials
from skipsearch.search.trial.recovery import Recovery, with_recoveries
from skipsearch.search.trial.trial_result import State, TrialResult

METRICS = {
    "accuracy": Metric("fraction", "maximize", "Mean accuracy over the tasks, as lm-eval counts it."),
    "prefill_flops": Metric("flops", "minimize", "FLOPs of the decoder over the prompt, counted on the work that ran."),
    "vision_flops": Metric("flops", "minimize", "FLOPs of the vision tower and the projector."),
    "ttft_ms": Metric("ms", "minimize", "Median time from the request to the first token, interleaved with dense."),
    "kv_cache_bytes": Metric("bytes", "minimize", "Bytes of keys and values after the prompt, read off the cache."),
}
OBJECTIVES: dict[str, Direction] = {name: metric.direction for name, metric in METRICS.items()}
NAMES = ("keep", "skip_ffn", "skip_attention", "skip_layer", "parallel")
DRAWN = [KEEP, *(CHOICES[name] for name in NAMES), *(LayerChoice(token_ratio=r) for r in (0.75, 0.5, 0.25))]
SPACE = "schema: skipsearch/space/v1\nmodel: {id: some/model}  # <verbatim> & $unharmed\n"


def random_policy(draw: random.Random, layers: int) -> Policy:
    busy = draw.random() ** 1.5
    return Policy.of([draw.choice(DRAWN) if draw.random() < busy else KEEP for _ in range(layers)])


def share_of_work(policy: Policy, layers: int) -> float:
    """A made-up cost: attention a third of a layer, ffn two thirds, image tokens three quarters of all."""
    work = 0.0
    for choice in policy.choices(layers):
        ratio = 1.0 if choice.token_ratio is None else choice.token_ratio
        work += ((choice.attention == "run") / 3 + (choice.ffn == "run") * 2 / 3) * (0.25 + 0.75 * ratio)
    return work / layers


def measure(policy: Policy, layers: int, draw: random.Random) -> tuple[dict[str, Measurement], dict[str, Measurement]]:
    work = share_of_work(policy, layers)
    luck = random.Random(policy.fingerprint).random() if work < 1 else 0.0
    true = max(0.05, 0.82 * (1 - (1 - work) ** 2.2) - 0.08 * luck)
    machine = draw.uniform(0.8, 1.25)
    time = 0.2 + 0.8 * work
    search = {
        "prefill_flops": Measurement(8.4e12 * work),
        "vision_flops": Measurement(1.9e11),
        "kv_cache_bytes": Measurement(3.2e8 * (0.1 + 0.9 * work)),
        "accuracy": Measurement(true + draw.gauss(0, 0.015 * (work < 1)), n=200, stderr=0.027),
        "ttft_ms": Measurement(120 * time * machine, n=20, dense=120 * machine, iqr=1.7),
    }
    return search, {"accuracy": Measurement(true - 0.01, n=1000, stderr=0.012)}


def one_trial(number: int, layers: int, draw: random.Random) -> TrialResult:
    policy = random_policy(draw, layers) if number else Policy()
    search, _ = measure(policy, layers, draw)
    state: State = "complete"
    failure, violations = None, {"accuracy": 0.75 * 0.82 - search["accuracy"].value}
    if number and draw.random() < 0.05:
        state, search, violations = "failed", {}, {}
        failure = draw.choice(["CUDA out of memory (attempt <2>)", "worker lost: node went away"])
    elif violations["accuracy"] > 0:
        search.pop("ttft_ms")
    seconds = {"apply": 0.1, "accuracy": 4.0, "total": 4.5}
    return TrialResult(number, state, policy, search, {}, violations, failure, seconds, "worker-0")


def study(
    trials: int = 60,
    layers: int = 12,
    objectives: tuple[str, ...] = ("accuracy", "prefill_flops", "ttft_ms"),
    seed: int = 0,
) -> StudyRecord:
    """A study with everything in it: a front that is confirmed, broken constraints, failures, duplicates."""
    draw = random.Random(seed)
    made = [one_trial(number, layers, draw) for number in range(trials)]
    if trials > 40:
        made[40] = replace(made[39], number=40, worker=None, duplicate_of=39)
    return refronted(
        StudyRecord(
            name="digits-2026",
            model_id="some/model",
            num_layers=layers,
            objectives={name: OBJECTIVES[name] for name in objectives},
            constraints={"accuracy": ">= 0.75 * dense"},
            metrics=METRICS,
            trials=tuple(made),
            front=(),
            hypervolume=(),
            reference={},
            space_text=SPACE,
            environment={"python": "3.12.1", "hardware": {"gpu": "none", "cores": 2}, "seed": seed},
            summary={"seconds_per_trial": 4.52, "forward_seconds_per_trial": 4.3, "overhead": 0.051},
        )
    )


def with_gap(record: StudyRecord) -> StudyRecord:
    """The study with a policy in a wide gap of its front, confirmed too."""
    others = [trial for trial in record.trials if trial.full_fidelity and trial.number not in (0, *record.front)]
    number = others[0].number
    trial = record.trial(number)
    report = measure(trial.policy, record.num_layers, random.Random(number))[1]
    return replace(changed(record, number, report=report), in_gaps=(number,))


def trained(record: StudyRecord) -> StudyRecord:
    """The study after the trainings of its front, of which the last failed."""
    front = [record.trial(number) for number in record.front if number]
    found = [Recovery(one, better(one, 0.02 * place), None, 90.0, 200) for place, one in enumerate(front)]
    found[-1] = replace(found[-1], after=None, failure="the loss is <NaN>", steps=0)
    recoveries = tuple(found)
    ranks = quality_ranks(record, recoveries, on_report=False)
    settings = {"method": "lora", "steps": 200, "data": None}
    outcome = RecoveryOutcome(recoveries, settings, ranks, None, (0.41, 0.44), (0.40, 0.43), record)
    return replace(record, trials=tuple(with_recoveries(record.trials, found, record.objectives)), recovery=outcome)


def better(trial: TrialResult, gain: float) -> TrialResult:
    """The trial with a higher accuracy on both splits."""

    def raised(entries: Mapping[str, Measurement]) -> dict[str, Measurement]:
        own = entries["accuracy"]
        return {**entries, "accuracy": replace(own, value=own.value + gain)}

    return replace(trial, search=raised(trial.search), report=raised(trial.report))


def refronted(record: StudyRecord, confirm: bool = True) -> StudyRecord:
    """The record with front, reference, hypervolume and confirmation made from its trials."""
    directions = list(record.objectives.values())
    front = front_trials(record.trials, record.objectives)
    reference = reference_point(record.dense.search, record.objectives, record.metrics)
    points = feasible_points(record.trials, record.objectives)
    finished = [point for point, trial in zip(points, record.trials, strict=True) if trial.state != "running"]
    curve = hypervolume_history(finished, directions, list(reference.values()))
    again = [
        replace(t, report=measure(t.policy, record.num_layers, random.Random(t.number))[1])
        if confirm and t.number in {0, *front}
        else replace(t, report={})
        for t in record.trials
    ]
    return replace(record, trials=tuple(again), front=front, hypervolume=tuple(curve), reference=reference)


def changed(record: StudyRecord, number: int, **fields: object) -> StudyRecord:
    """The record with other fields in one trial."""
    return replace(
        record,
        trials=tuple(replace(t, **fields) if t.number == number else t for t in record.trials),
    )


def without_library(text: str) -> str:
    longest = max(re.findall(r"<script>.*?</script>", text, re.DOTALL), key=len)
    return text.replace(longest, "")
