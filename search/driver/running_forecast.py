"""The forecast of a running search: made after its dense trial, corrected by its trials, shown by its progress."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...evaluators.base import Measurement, evaluator_class
from ..space.space import Space
from ..study.study import SearchStudy
from ..trial.recovery_attributes import TRAININGS
from ..workers.ray_pool import Pool
from .costs import dense_costs
from .forecast import ExampleCounts, Forecast, Outline
from .forecast_text import forecast_lines
from .phases import CONFIRMING, DRAWING, PROBING, RANDOMISING, RECOVERING, TRANSFERRING
from .remaining import corrected, remaining_steps
from .timing import TIMING_AGAIN

if TYPE_CHECKING:
    from .progress import Progress

CLOSING = (CONFIRMING, RANDOMISING, TRANSFERRING, DRAWING, TIMING_AGAIN)


class RunningForecast:
    """Forecasts the rest of a search.

    Args:
        study: Where the trials are.
        pool: The workers.
        progress: Shows the forecast.
        examples: By evaluator and split, the number of examples; those of the dense trial where it is empty.
    """

    def __init__(self, study: SearchStudy, pool: Pool, progress: "Progress", examples: ExampleCounts) -> None:
        self._study, self._pool, self._progress, self._examples = study, pool, progress, examples
        self._forecast: Forecast | None = None
        self._left: dict[str, int] = {}

    @property
    def closing_seconds(self) -> float:
        """Expected seconds of all that is measured of the final front; 0 before the dense trial."""
        return self._seconds_left(CLOSING)

    @property
    def recovering_seconds(self) -> float:
        """Expected seconds of the trainings; 0 before the dense trial."""
        return self._seconds_left((RECOVERING,))

    def _seconds_left(self, names: Sequence[str]) -> float:
        forecast = self._forecast
        return sum(self._left.get(name, 0) * forecast.pace(name) for name in names) if forecast is not None else 0.0

    def update(self, probes_left: int = 0) -> None:
        """Correct the numbers of steps to come by the trials so far.

        Args:
            probes_left: How many probes are to come at most.
        """
        has_limit = self._study.space.search.stop.minutes is not None
        if self._study.dense_measurements() is None or not (self._progress.is_shown or has_limit):
            return
        forecast = self._begin() if self._forecast is None else self._forecast
        space, results = self._study.space, self._study.results()
        found = remaining_steps(
            results, self._study.score_predictor(), space, CONFIRMING in forecast.phases,
            TIMING_AGAIN in forecast.phases,
        )  # fmt: skip
        self._left = {PROBING: probes_left, **corrected(forecast.phases, found, self._share_done(probes_left))}
        for name, steps in self._left.items():
            self._progress.expect_more(name, steps)

    def _share_done(self, probes_left: int) -> float:
        """The share of the probes and of the budget of trials that is measured."""
        trials, used = self._study.space.search.trials, self._study.budget_used()
        probes = self._forecast.phases[PROBING].steps if self._forecast and PROBING in self._forecast.phases else 0.0
        done = used + max(0.0, probes - probes_left)
        return min(1.0, done / max(trials + probes, 1))

    def _begin(self) -> Forecast:
        """Make the forecast by what the dense trial took, and show it."""
        study, dense = self._study, self._study.results()[0]
        examples = self._examples or examples_of(dense.search, study.space)
        guide = study.guide.evaluator if study.guide is not None else None
        outline = Outline.of(study.space, study.num_layers, guide, examples)
        step_seconds = study.study.user_attrs.get(TRAININGS, {}).get("step_seconds", 0.0)
        costs = replace(dense_costs(dense.seconds, dense.search, guide), training_step=step_seconds)
        self._forecast = Forecast.of(outline, costs, self._pool.size, self._pool.devices)
        for name, phase in self._forecast.phases.items():
            self._progress.guess(name, self._forecast.pace(name))
            self._progress.expect_more(name, round(phase.steps))
        for line in forecast_lines(self._forecast, self._progress.elapsed):
            self._progress.note(line)
        return self._forecast


def examples_of(dense: Mapping[str, Measurement], space: Space) -> ExampleCounts:
    """By evaluator, the number of examples of the search split that dense answered."""
    classes = {name: evaluator_class(name) for name in space.evaluate}
    return {
        name: {"search": max((dense[metric].n for metric in one.metrics if metric in dense), default=0)}
        for name, one in classes.items()
        if one.splits
    }
