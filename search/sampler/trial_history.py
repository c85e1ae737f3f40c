"""A study's trials as the search strategy sees them, and its proposals as parameters.

It holds nothing that the trials do not say: rows are kept because reading two thousand trials anew takes long.
"""

import math
from bisect import insort
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats
from .acquisition import History
from .candidates import Strategy
from .search_space import Alternatives

REMEMBERED = 1 << 14  # policies whose meaning is kept: who was ranked high once is ranked high again
ASKING = timedelta(minutes=1)  # a trial that has no parameters after that never will: its process died

Params = Mapping[str, Any]
Code = NDArray[np.int16]
When = tuple[datetime, int]  # a trial finished, and its number


class Estimated(NamedTuple):
    """What is expected of a trial that was not measured in full.

    Attributes:
        values: Its objectives.
        error: Standard error of the expensive one; 0 where that was measured.
        constraints: How far those constraints are expected to be broken that the trial itself does not tell.
        score: Where the expensive value only guides, what counts instead, in the objective's unit; NaN if not measured.
        score_error: Standard error of the score.
    """

    values: Sequence[float]
    error: float
    constraints: Mapping[str, float] = MappingProxyType({})
    score: float = math.nan
    score_error: float = 0.0


class Meaning:
    """Between parameters and the codes of variables; tied parameters are one variable.

    Args:
        choices: By parameter.
        neutral: By parameter, what dense does.
        tied: Groups of parameters that have the same choice.
        identity: Equal for parameters that mean the same; None for the parameters themselves.
        allowed: False for parameters that must not be proposed; None allows all.

    Raises:
        ValueError: tied parameters have different choices.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[Any]],
        neutral: Params,
        tied: Sequence[Sequence[str]],
        identity: Callable[[Params], Hashable] | None,
        allowed: Callable[[Params], bool] | None,
    ) -> None:
        self._identity, self._allowed = identity, allowed
        group_of = {name: tuple(n for n in group if n in choices) for group in tied for name in group}
        self.variables = list(dict.fromkeys(group_of.get(name, (name,)) for name in choices))
        for group in self.variables:
            if len({(*choices[name], neutral[name]) for name in group}) > 1:
                raise ValueError(f"tied parameters need the same choices: {', '.join(group)}")
        self.names = list(choices)
        self.values = [
            [neutral[group[0]], *(value for value in choices[group[0]] if value != neutral[group[0]])]
            for group in self.variables
        ]
        self._codes = [{value: code for code, value in enumerate(values)} for values in self.values]
        self._of = lru_cache(REMEMBERED)(self._found)

    def params(self, code: Code) -> dict[str, Any]:
        """The parameters of a policy."""
        taken = zip(self.variables, self.values, code, strict=True)
        return {name: values[number] for group, values, number in taken for name in group}

    def code(self, params: Params) -> Code | None:
        """The codes of parameters; None where tied ones differ, or one is no choice."""
        if any(params[name] != params[group[0]] for group in self.variables for name in group[1:]):
            return None
        firsts = (params[group[0]] for group in self.variables)
        found = [codes.get(value) for codes, value in zip(self._codes, firsts, strict=True)]
        return None if None in found else np.array(found, np.int16)

    def identity(self, params: Params) -> Hashable:
        """Equal for parameters that mean the same."""
        if self._identity:
            return self._identity({name: params[name] for name in self.names})
        return tuple(params[name] for name in self.names)

    def of(self, code: Code) -> tuple[Hashable, bool]:
        """The identity of a policy, and False where it must not be proposed."""
        return self._of(code.tobytes())

    def _found(self, code: bytes) -> tuple[Hashable, bool]:
        params = self.params(np.frombuffer(code, np.int16))
        return self.identity(params), self._allowed is None or self._allowed(params)


@dataclass(frozen=True)
class Row:
    """What one trial says, or is expected to; the code is None where it says nothing to the strategy."""

    when: When
    key: Hashable
    code: Code | None
    values: tuple[float, ...]
    constraints: Mapping[str, float]
    error: float
    expected: bool
    failed: bool
    score: float
    score_error: float
    scored: int = 0

    @property
    def names(self) -> set[str]:
        """Of the constraints, as far as the strategy sees them."""
        return set() if self.code is None else {*self.constraints}


class View:
    """A study's trials, and what to measure next.

    Args:
        meaning: Of the parameters.
        signs: By objective 1 where it is minimised, else -1.
        expensive: Which objective is no sum over the parameters.
        prior_costs: By objective, parameter and choice, what is known beforehand.
        reference: In the objectives' own units; None for what the first trials suggest.
        parts: Of the strategy.
        estimate: What is expected of a pruned trial; where the expensive value only guides, what any trial is told as.
            Of a complete trial None leaves what it was told.
        layers: By parameter, its layer; those that are not named are layers of their own.
        guessing: The expensive objective when guessing, where the value told in its place only guides; else None.
        ignored: Places of objectives that are no concern.
    """

    def __init__(
        self, meaning: Meaning, signs: Sequence[float], expensive: int,
        prior_costs: Mapping[int, Mapping[str, Mapping[Any, float]]], reference: Sequence[float | None] | None,
        parts: Collection[str], estimate: Callable[[Any], tuple[Any, ...] | None] | None,
        layers: Mapping[str, int], guessing: float | None, ignored: Collection[int] = (),
    ) -> None:  # fmt: skip
        self._meaning = meaning
        self._estimate = estimate
        self._guided = guessing is not None
        # The expensive objective comes first.
        self._order = [expensive, *(one for one in range(len(signs)) if one != expensive and one not in ignored)]
        self._objectives = len(signs)
        self._signs = np.array(signs)[self._order]
        beyond = len(meaning.variables) + max(layers.values(), default=0)
        places = [layers.get(group[0], beyond + number) for number, group in enumerate(meaning.variables)]
        self._alternatives = Alternatives(meaning.values, places)
        corner = None if reference is None else np.array(reference, float)[self._order] * self._signs
        tables = {
            number: self._signs[number + 1] * self._table(prior_costs[objective])
            for number, objective in enumerate(self._order[1:])
            if objective in prior_costs
        }
        worst = np.inf if guessing is None else float(self._signs[0] * guessing)
        self._strategy = Strategy(self._alternatives, corner, tables, parts, worst)
        self._seen = 0
        self._open: list[int] = []
        self._ended: list[When] = []
        self._expected: list[int] = []
        self._rows: dict[int, Row] = {}
        self._newest: dict[Hashable | None, When] = {}
        self._failed = 0
        self._names: list[str] = []
        self._history = self._empty()
        self._given: dict[int, Code] = {}
        self._running: dict[int, tuple[Hashable | None, Code | None]] = {}

    def _table(self, costs: Mapping[str, Mapping[Any, float]]) -> Floats:
        """(variables, width): what choices add, those of tied parameters summed."""
        table = np.zeros(self._alternatives.exists.shape)
        for variable, (group, values) in enumerate(zip(self._meaning.variables, self._meaning.values, strict=True)):
            for code, value in enumerate(values):
                by_name = [costs.get(name, {}) for name in group]
                table[variable, code] = sum(known.get(value, 0.0) - known.get(values[0], 0.0) for known in by_name)
        return table

    def precedes(self, trials: Sequence[Any]) -> bool:
        """False for the trials of another study, even if it has the same name."""
        return len(trials) >= self._seen and all(trials[last].datetime_complete == at for at, last in self._ended[-1:])

    def propose(self, trials: Sequence[Any], number: int, seed: int) -> dict[str, Any]:
        """The parameters of the next trial.

        Args:
            trials: All of the study, Optuna's `FrozenTrial`.
            number: Of the trial that needs parameters.
            seed: Of what is random.
        """
        self._follow(trials)
        others = [trials[other] for other in self._open if other != number]
        ahead = sum(self._asks(trial, trials[number]) for trial in others)
        pending, taken = self._pending(others)
        history = replace(self._history, pending=pending)

        def possible(code: Code) -> bool:
            identity, allowed = self._meaning.of(code)
            return allowed and identity not in taken and identity not in self._newest

        # A trial that failed leaves no trace here: one that was killed and is measured again changes nothing.
        begun = len(others) + len(self._ended) - self._failed
        proposals = self._strategy.propose(history, np.random.default_rng([seed, begun]), possible)
        for code in islice(proposals, ahead):
            taken.add(self._meaning.of(code)[0])
        code = next(proposals)
        self._given[number] = code
        return self._meaning.params(code)

    def _follow(self, trials: Sequence[Any]) -> None:
        """Take note of the trials that have finished since; those that had stay as they were."""
        numbers = [*self._open, *range(self._seen, len(trials))]
        self._seen, self._open = len(trials), [one for one in numbers if not trials[one].state.is_finished()]
        new = [trials[one] for one in numbers if trials[one].state.is_finished()]
        found = sorted(map(self._row, new), key=lambda row: row.when)
        # What is expected is told by all who were measured in full.
        anew = bool(self._expected) and not all(row.expected or row.failed for row in found)
        if anew:
            self._rows |= {number: self._row(trials[number]) for number in self._expected}
        self._expected += [row.when[1] for row in found if row.expected]
        for row in found:
            anew |= [row.when] < self._ended[-1:] or row.key in self._newest or not row.names <= set(self._names)
            self._rows[row.when[1]] = row
            self._newest[row.key] = max(row.when, self._newest.get(row.key, row.when))
            self._failed += row.failed
            insort(self._ended, row.when)
            if not anew:
                self._measured([row])
        if anew:
            rows = [self._rows[ended] for _, ended in self._ended]
            self._names = sorted(set().union(*(row.names for row in rows)))
            self._history = self._empty()
            told = (row for row in rows if not row.expected or self._newest[row.key] == row.when)
            self._measured(merged(rows) if self._guided else [*told])

    def _row(self, trial: Any) -> Row:
        key, code = self._told(trial.params)
        state, when = trial.state.name, (trial.datetime_complete, trial.number)
        asked = state in ("PRUNED", "COMPLETE")
        expected = self._estimate(trial) if asked and self._estimate is not None else None
        if expected is not None:
            found = Estimated(*expected)
        else:
            told = state == "COMPLETE" and not self._guided
            found = Estimated(trial.values if told else [np.nan] * self._objectives, 0.0)
        values = self._signs * np.array(found.values, float)[self._order]
        return Row(
            when, key, None if state == "FAIL" else code, tuple(values),
            dict(found.constraints) if self._guided else {**found.constraints, **trial.constraints},
            found.error, expected is not None and not self._guided and state == "PRUNED", state == "FAIL",
            float(self._signs[0] * found.score), found.score_error, len(self._newest) + 1,
        )  # fmt: skip

    def _told(self, params: Params) -> tuple[Hashable | None, Code | None]:
        """The identity of a trial's parameters and their codes, as far as it has them."""
        if not params.keys() >= set(self._meaning.names):
            return None, None
        code = self._meaning.code(params)
        return self._meaning.identity(params) if code is None else self._meaning.of(code)[0], code

    def _asks(self, trial: Any, ours: Any) -> bool:
        """Whether another process asks for a trial just now, and comes first; it is taken to get the same proposals."""
        waits = trial.state.name == "RUNNING" and not trial.params and trial.number not in self._given
        return waits and trial.number < ours.number and ours.datetime_start - trial.datetime_start < ASKING

    def _pending(self, trials: Sequence[Any]) -> tuple[Codes, set[Hashable]]:
        """The policies that are being measured, and the identities of those and of the ones that wait for it."""
        codes, taken = [], set()
        for trial in trials:
            key, code = self._wanted(trial)
            if key is not None:
                taken.add(key)
            if code is not None:
                codes.append(code)
        return np.array(codes, np.int16).reshape(-1, self._alternatives.count), taken

    def _wanted(self, trial: Any) -> tuple[Hashable | None, Code | None]:
        """The identity and the codes of a trial that runs or waits, as far as they are known."""
        if trial.number in self._running:
            return self._running[trial.number]
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if trial.number in self._given:
            # Another thread may be about to write them.
            params = {**self._meaning.params(self._given[trial.number]), **params}
        told = self._told(params)
        if trial.params.keys() >= set(self._meaning.names):
            self._running[trial.number] = told
        return told

    def _empty(self) -> History:
        nothing = np.zeros((0, self._alternatives.count), np.int16)
        costs, excess = np.zeros((0, len(self._order) - 1)), np.zeros((0, len(self._names)))
        scores = (np.zeros(0), np.zeros(0), np.zeros(0, np.int64)) if self._guided else (None, None, None)
        return History(nothing, np.zeros(0), costs, excess, np.zeros(0), nothing, *scores)

    def _measured(self, rows: Sequence[Row]) -> None:
        """What finished next."""
        used = [row for row in rows if row.code is not None]
        if not used:
            return
        values, known = np.array([row.values for row in used]), self._history
        excess = np.array([[row.constraints.get(name, np.nan) for name in self._names] for row in used])
        self._history = replace(
            known,
            codes=np.vstack([known.codes, *(row.code for row in used if row.code is not None)]),
            losses=np.r_[known.losses, values[:, 0]],
            costs=np.vstack([known.costs, values[:, 1:]]),
            excess=np.vstack([known.excess, excess.reshape(len(used), len(self._names))]),
            errors=np.r_[known.errors, [row.error for row in used]],
        )
        if known.scores is not None and known.score_errors is not None and known.scored is not None:
            self._history = replace(
                self._history,
                scores=np.r_[known.scores, [row.score for row in used]],
                score_errors=np.r_[known.score_errors, [row.score_error for row in used]],
                scored=np.r_[known.scored, [row.scored for row in used]],
            )


def merged(rows: Sequence[Row]) -> list[Row]:
    """Each policy once, where it came first, with what its later trials told: a score, a cost that was measured later.

    Args:
        rows: Of all trials, in the order in which they finished.
    """
    found: dict[Hashable, Row] = {}
    for row in rows:
        if row.code is None:
            continue
        first = found.get(row.key)
        if first is None:
            found[row.key] = replace(row, scored=len(found) + 1)
            continue
        values = tuple(old if math.isfinite(old) else new for old, new in zip(first.values, row.values, strict=True))
        told = math.isfinite(row.score)
        found[row.key] = replace(
            first,
            values=values,
            constraints={**first.constraints, **row.constraints},
            score=row.score if told else first.score,
            score_error=row.score_error if told else first.score_error,
            scored=len(found) if told else first.scored,
        )
    return list(found.values())
