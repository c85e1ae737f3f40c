"""The front, its reference point and its hypervolume, against brute force and against Optuna."""

import itertools
import math
import random
import time

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from skipsearch.evaluators.base import Direction, Measurement, Metric
from skipsearch.policies.policy import Policy
from skipsearch.search.trial.hypervolume import hypervolume, hypervolume_history, reference_point
from skipsearch.search.trial.pareto import (
    dominates,
    feasible_points,
    front_trials,
    objective_point,
    objective_value,
    pareto,
)
from skipsearch.search.trial.trial_result import TrialResult

MAX, MIN = "maximize", "minimize"


def random_points(count: int, dims: int, seed: int) -> list[tuple[float, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.random() for _ in range(dims)) for _ in range(count)]


def directions_of(dims: int) -> list[Direction]:
    return [MAX, *[MIN] * (dims - 1)]


def test_dominates_needs_one_strict_gain() -> None:
    assert dominates((0.9, 5), (0.9, 6), [MAX, MIN])
    assert dominates((0.95, 5), (0.9, 5), [MAX, MIN])
    assert not dominates((0.9, 5), (0.9, 5), [MAX, MIN])
    assert not dominates((0.8, 4), (0.9, 5), [MAX, MIN])


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_pareto_equals_the_definition(dims: int) -> None:
    draw = random.Random(dims)
    points = [tuple(draw.randrange(20) for _ in range(dims)) for _ in range(300)]
    directions = directions_of(dims)
    expected = [
        i
        for i, point in enumerate(points)
        if not any(dominates(other, point, directions) for other in points) and point not in points[:i]
    ]
    assert pareto(points, directions) == expected


def test_pareto_keeps_the_first_of_equals_and_no_nan() -> None:
    assert pareto([(1, 1), (1, 1), (math.nan, 0), (2, 3)], [MAX, MIN]) == [0, 3]
    assert pareto([], [MAX]) == []


@pytest.mark.parametrize(("dims", "count"), list(itertools.product([1, 2, 3, 4], [0, 1, 2, 17])))
def test_hypervolume_equals_optuna(dims: int, count: int) -> None:
    points = random_points(count, dims, seed=10 * dims + count)
    signs = np.array([-1.0] + [1.0] * (dims - 1))
    reference = [0.1, 0.9, 0.9, 0.9][:dims]
    inside = [p for p in points if all(s * x < s * r for s, x, r in zip(signs, p, reference, strict=True))]
    expected = compute_hypervolume(np.array(inside) * signs, np.array(reference) * signs) if inside else 0.0
    assert hypervolume(points, directions_of(dims), reference) == pytest.approx(expected, abs=1e-12)


def test_hypervolume_equals_counted_grid_cells() -> None:
    draw = random.Random(3)
    points = [tuple(draw.randrange(8) for _ in range(3)) for _ in range(30)]
    cells = itertools.product(range(8), repeat=3)
    counted = sum(any(all(x <= c for x, c in zip(point, cell, strict=True)) for point in points) for cell in cells)
    assert hypervolume(points, [MIN] * 3, [8, 8, 8]) == counted


def test_history_is_the_normalised_hypervolume_of_every_prefix() -> None:
    points: list[tuple[float, ...] | None] = [(a, 40 * b, 7 * c) for a, b, c in random_points(40, 3, seed=5)]
    points[7], points[11] = None, (math.nan, 1.0, 1.0)
    directions, reference = [MAX, MIN, MIN], [0.0, 40.0, 7.0]
    curve = hypervolume_history(points, directions, reference)
    for end in range(1, len(points) + 1):
        known = [point for point in points[:end] if point is not None]
        assert curve[end - 1] == pytest.approx(hypervolume(known, directions, reference) / (40 * 7), abs=1e-12)
    assert 0 < curve[-1] < 1
    assert curve[7] == curve[6]


def test_history_of_500_trials_with_a_wide_front_is_fast() -> None:
    rows = [np.abs(row) / np.linalg.norm(row) for row in np.random.default_rng(0).normal(size=(500, 3))]
    started = time.perf_counter()
    hypervolume_history([tuple(1 - row) for row in rows], [MIN] * 3, [1.0] * 3)
    assert time.perf_counter() - started < 10


def test_latency_is_compared_by_its_interleaved_ratio() -> None:
    dense = Measurement(100.0, dense=103.0)
    on_a_slowed_machine = Measurement(120.0, dense=200.0)
    assert objective_value("ttft_ms", on_a_slowed_machine, dense) == pytest.approx(60.0)
    assert objective_value("ttft_ms", dense, dense) == 100.0
    assert objective_value("ttft_ms", Measurement(80.0), dense) == 80.0
    assert objective_value("prefill_flops", Measurement(5.0, dense=10.0), Measurement(20.0)) == 5.0


def test_a_point_needs_every_objective_to_be_finite() -> None:
    dense = {"accuracy": Measurement(0.9), "prefill_flops": Measurement(10.0)}
    assert objective_point(dense, dense, ["prefill_flops", "accuracy"]) == (10.0, 0.9)
    assert objective_point({"accuracy": Measurement(0.9)}, dense, dense) is None
    assert objective_point(dense | {"accuracy": Measurement(math.nan)}, dense, dense) is None


def test_reference_point_follows_the_dense_model() -> None:
    metrics = {
        "accuracy": Metric("fraction", MAX, ""),
        "error": Metric("fraction", MIN, ""),
        "prefill_flops": Metric("flops", MIN, ""),
    }
    objectives: dict[str, Direction] = {"accuracy": MAX, "error": MIN, "prefill_flops": MIN}
    dense = {name: Measurement(value) for name, value in (("accuracy", 0.9), ("error", 0.1), ("prefill_flops", 8e12))}
    assert reference_point(dense, objectives, metrics) == {"accuracy": 0.0, "error": 1.0, "prefill_flops": 8e12}
    told = dense | {"accuracy": Measurement(0.9, detail={"floor": 0.25})}
    assert reference_point(told, objectives, metrics)["accuracy"] == 0.25


def trial(number: int, accuracy: float, flops: float, excess: float = -1.0) -> TrialResult:
    measured = {"accuracy": Measurement(accuracy), "prefill_flops": Measurement(flops)}
    return TrialResult(number, "complete", Policy(), measured, violations={"accuracy": excess})


def test_front_trials_leave_out_the_infeasible_and_start_with_the_dearest() -> None:
    trials = [trial(0, 0.9, 10), trial(1, 0.5, 2, excess=0.1), trial(2, 0.8, 4), trial(3, 0.85, 7), trial(4, 0.7, 7)]
    objectives: dict[str, Direction] = {"accuracy": MAX, "prefill_flops": MIN}
    assert front_trials(trials, objectives) == (0, 3, 2)
    assert feasible_points(trials, objectives)[1] is None
