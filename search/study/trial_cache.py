"""Reads the trials of a study as plain values, and reads again only those that have changed."""

from collections.abc import Iterable
from dataclasses import replace

import optuna
from optuna.trial import FrozenTrial

from ..trial.trial_result import TrialResult
from .trial_attributes import read_trial


def merge_promotions(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Merge each promoted trial into the trial that it continues: its number, with its latest measurements.

    Args:
        results: Results by ascending number.
    """
    merged: dict[int, TrialResult] = {}
    for result in results:
        first = result.number if result.promoted_from is None else result.promoted_from
        if first != result.number and result.state == "failed":
            continue  # The measurements from before the promotion stay valid.
        merged[first] = result if first == result.number else replace(result, number=first)
    return list(merged.values())


def read_trials(study: optuna.Study) -> list[TrialResult]:
    """Every trial that has a policy, by number, with its measurements on the report split."""
    attrs = study.user_attrs
    asked = [trial for trial in study.get_trials(deepcopy=False) if "policy" in trial.user_attrs]
    return merge_promotions(read_trial(trial, attrs) for trial in asked)


def ended_by_itself(trial: FrozenTrial) -> bool:
    """True for a finished trial that was measured, rather than sharing the measurements of a duplicate."""
    return trial.state.is_finished() and "seconds" in trial.user_attrs and "shared_from" not in trial.user_attrs


def running_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Wall-clock seconds in which at least one trial ran; overlapping trials count once.

    Args:
        spans: Start and end of every trial, in seconds.
    """
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


class TrialCache:
    """The trials of a study as plain values.

    Args:
        study: The study. Its storage replaces a trial that changes by a new object, so that an object that is still
            there needs no reading.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self._read: dict[int, tuple[FrozenTrial, TrialResult]] = {}
        self._trials: list[FrozenTrial] = []
        self._unfinished: list[int] = []
        self._results: dict[int, TrialResult] = {}
        self._ended: dict[int, FrozenTrial] = {}

    def result(self, number: int) -> TrialResult:
        """The trial with this number; it has a policy."""
        return self.read(self.frozen_trial(number))

    def results(self) -> list[TrialResult]:
        """Every trial that has a policy, by number; without the measurements on the report split."""
        self._update()
        return [self._results[number] for number in sorted(self._results)]

    def _update(self) -> None:
        """Read the trials that are new, and those that had not finished."""
        before, self._trials = self._trials, self.study.get_trials(deepcopy=False)
        numbers = [*self._unfinished, *range(len(before), len(self._trials))]
        self._unfinished = [number for number in numbers if not self._trials[number].state.is_finished()]
        changed = [self._trials[number] for number in numbers]
        with_policy = [self.read(trial) for trial in changed if "policy" in trial.user_attrs]
        self._results |= {result.number: result for result in merge_promotions(with_policy)}
        self._ended |= {trial.number: trial for trial in changed if ended_by_itself(trial)}

    def budget_used(self) -> int:
        """How many trials of the budget are used: those measured or failed, without duplicates and probes."""
        self._update()
        uncounted = {"continues", "probe"}
        return sum(trial.user_attrs.keys().isdisjoint(uncounted) for trial in self._ended.values())

    def finished_trials(self) -> list[TrialResult]:
        """Measured and failed trials by the time that they ended; a promoted trial counts each time."""
        self._update()
        ordered = sorted((str(trial.datetime_complete), trial.number) for trial in self._ended.values())
        return [self.result(number) for _, number in ordered]

    def seconds_used(self) -> float:
        """Wall-clock seconds in which trials ran, without the time between an interruption and its resume."""
        spans = []
        self._update()
        for trial in self._ended.values():
            if trial.datetime_start is None or trial.datetime_complete is None:
                continue
            start, end = trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()
            # A trial that a resume told has a later end than its measurement had, so its own seconds count. The seconds
            # of a promoted trial include those from before the promotion, so its span counts.
            promoted = "continues" in trial.user_attrs
            seconds = end - start if promoted else trial.user_attrs["seconds"].get("total", 0.0)
            spans.append((start, start + seconds))
        return running_seconds(spans)

    def frozen_trial(self, number: int) -> FrozenTrial:
        """Optuna's trial with this number."""
        return self.study.get_trials(deepcopy=False)[number]

    def read(self, trial: FrozenTrial) -> TrialResult:
        """Read a trial of Optuna's, from memory where it has not changed."""
        before, result = self._read.get(trial.number, (None, None))
        if result is None or before is not trial:
            result = read_trial(trial)
            self._read[trial.number] = trial, result
        return result
