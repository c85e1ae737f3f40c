"""What a search knows at a proposal: costs, expected losses, the front, and what a candidate would add to it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..guide.accuracy_curve import Quality
from ..trial.arrays import Codes, Floats
from ..trial.dominance import non_dominated
from .additive_cost import Sum
from .ehvi import Gain, budgets
from .gaussian_process import FEWEST, Surrogate
from .knapsack import additive_front
from .search_space import Alternatives

KNOWN = 768  # policies that the surrogate stands on at most
EPOCHS = 16  # settings are chosen anew when a search has grown by one part in so many
# Expected gain looks one trial ahead. What a trial tells is worth more than that while many are to come, so that part
# of a standard deviation counts as so much more; but never as more than this share of the losses that count, for where
# hardly anything is known, as where all is lost, there would always be more to learn.
CURIOSITY = 0.7
CURIOUS = 0.05
# A loss beyond those that count says that a policy is too bad, and little about why: where too much is left out at once
# choices do what they do nowhere else. So it is taken to stray by such a share of how far beyond it lies.
DOUBT = 0.3
COLUMNS = ("codes", "losses", "costs", "excess", "errors")


@dataclass(frozen=True)
class History:
    """What is measured; policies in the order in which they finished.

    Attributes:
        codes: (n, variables).
        losses: (n,): the expensive objective, minimised; NaN where it was not measured.
        costs: (n, costs): the other objectives, likewise.
        excess: (n, constraints): how far each constraint is broken, 0 or less where it holds; NaN where not measured.
        errors: (n,): standard error where the loss is an estimate, of a policy that was given up or set aside on few
            examples; else 0.
        pending: (m, variables): policies that are being measured.
        scores: (n,): where the loss only guides, what counts instead, minimised; NaN where it was not measured. None
            where the loss itself counts.
        score_errors: (n,): standard errors of these.
        scored: (n,): how many policies were known when the score was told.
    """

    codes: Codes
    losses: Floats
    costs: Floats
    excess: Floats
    errors: Floats
    pending: Codes
    scores: Floats | None = None
    score_errors: Floats | None = None
    scored: NDArray[np.int64] | None = None

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(n,): where every objective was measured; where the loss only guides, a cost may come later."""
        whole = np.isfinite(self.costs).all(1) if self.scores is None else True
        return np.isfinite(self.losses) & whole

    def first(self, count: int) -> "History":
        """The policies that finished first."""
        begun = {name: getattr(self, name)[:count] for name in COLUMNS}
        if self.scores is not None and self.scored is not None and self.score_errors is not None:
            told = self.scored[:count] <= count
            begun["scores"] = np.where(told, self.scores[:count], np.nan)
            begun["score_errors"], begun["scored"] = self.score_errors[:count], self.scored[:count]
        return replace(self, **begun)

    def quality(self, worst: float) -> Quality | None:
        """What losses are expected to score; None where the loss itself counts.

        Args:
            worst: The score of guessing.
        """
        if self.scores is None or self.score_errors is None:
            return None
        both = np.isfinite(self.scores) & np.isfinite(self.losses)
        seen = self.losses[np.isfinite(self.losses)]
        return Quality.fit(self.losses[both], self.scores[both], self.score_errors[both], worst, seen)

    def continues(self, other: "History") -> bool:
        """True where the other is how this one began."""
        start = self.first(len(other.codes))
        return all(
            np.array_equal(getattr(start, name), getattr(other, name), equal_nan=name != "codes") for name in COLUMNS
        )


class Bound:
    """A constraint: a function of the loss where it is one, else a sum over the variables."""

    def __init__(self, alternatives: Alternatives, history: History, losses: Floats, excess: Floats) -> None:
        both = np.isfinite(losses) & np.isfinite(excess)
        self.slope = self.level = 0.0
        self.sum: Sum | None = None
        # A line goes through any two points; a third is too few to be sure.
        if np.count_nonzero(both) > 3 and np.ptp(losses[both]) > 0:
            self.slope, self.level = np.polyfit(losses[both], excess[both], 1)
        misfit = np.abs(self.slope * losses[both] + self.level - excess[both]).max(initial=0.0)
        if not self.slope or misfit > 1e-6 * max(np.abs(excess[both]).max(initial=0.0), 1e-300):
            self.sum = Sum(alternatives, history.codes, excess)

    def chance(self, codes: Codes) -> Floats:
        """The probability that policies keep a bound that does not depend on the loss."""
        if self.sum is None:
            return np.ones(len(codes))
        ease = np.clip(self.sum(codes) / max(self.sum.error, 1e-9), -40, 40)
        return 1 / (1 + np.exp(1.7 * ease))

    @property
    def most(self) -> float:
        """The largest loss that keeps the bound."""
        return -self.level / self.slope if self.sum is None and self.slope > 0 else np.inf

    def holds(self, losses: Floats) -> NDArray[np.bool_]:
        """Where losses keep a bound that depends on them."""
        return np.ones(len(losses), bool) if self.sum else self.slope * losses + self.level <= 0


class Epoch:
    """What is learned from a history as a whole, and holds until it has grown by a good part.

    Args:
        alternatives: What may be chosen.
        history: What was measured, at least two policies of it completely.
        tables: By cost what each choice adds, where it is known beforehand.
        reference: See `Memory`.
        parts: Of the strategy: whether the surrogate has `pairs`, some of them by themselves (`sparse`).
        guessing: The score of guessing, where the loss only guides.

    Attributes:
        corner: The loss, or the score where the loss only guides, and each cost, beyond which nothing counts.
        worst: The largest loss above dense's that counts.
    """

    def __init__(
        self, alternatives: Alternatives, history: History, tables: Mapping[int, Floats], reference: Floats | None,
        parts: Collection[str], guessing: float = np.inf,
    ) -> None:  # fmt: skip
        codes, measured = history.codes, history.measured
        dense = np.flatnonzero(measured & ~codes.any(1))
        self.dense_loss = float(history.losses[dense[0]] if len(dense) else history.losses[measured].min())
        losses = history.losses - self.dense_loss
        self.costs = [
            Sum(alternatives, codes, figures, tables.get(number)) for number, figures in enumerate(history.costs.T)
        ]
        self.bounds = [Bound(alternatives, history, losses, excess) for excess in history.excess.T]
        sums = [*self.costs, *(bound.sum for bound in self.bounds if bound.sum)]
        self.axes = [figure.axis for figure in sums]
        losses = self.losses(history)
        chosen = np.flatnonzero(np.isfinite(losses))
        most = max(KNOWN // 2, KNOWN - len(codes) // EPOCHS)  # The others come until the next epoch.
        if len(chosen) > most:
            costs = np.array([cost(codes[chosen]) for cost in self.costs]).reshape(len(self.costs), len(chosen)).T
            cheaper = (costs[:, None] <= costs).all(2)
            least = np.where(cheaper, losses[chosen][:, None], np.inf).min(0)
            chosen = np.sort(chosen[np.argsort(losses[chosen] - least, kind="stable")[:most]])
        # What the first policies lost is what counts as too much: they differ from dense in a third of the variables.
        early = np.flatnonzero(measured)[: alternatives.kind.max() + 2]
        self.corner = np.r_[history.losses[early].max(), [cost.dense for cost in self.costs]]
        if reference is not None:
            self.corner = np.where(np.isnan(reference), self.corner, reference)
        quality = history.quality(guessing)
        beyond = self.corner[0] if quality is None else quality.inverse(float(self.corner[0]))
        self.worst = min(beyond - self.dense_loss, *(bound.most for bound in self.bounds), np.inf)
        shares = (figure.alone() / max(np.ptp(figure.alone()), 1e-300) for figure in sums)
        by_feature = np.abs(sum(shares, np.zeros(len(alternatives.variable))))
        largest = by_feature.max() or 1.0
        whole = int(np.count_nonzero(history.errors[chosen] == 0))
        self.surrogate = Surrogate(
            alternatives, by_feature + 0.2 * largest, codes[chosen], losses[chosen],
            self.errors(history, losses)[chosen], "pairs" in parts,
            "sparse" in parts and whole >= FEWEST,
        )  # fmt: skip

    def losses(self, history: History) -> Floats:
        """Losses against dense; also of policies that were given up because of a bound that depends on the loss."""
        losses = history.losses - self.dense_loss
        for bound, excess in zip(self.bounds, history.excess.T, strict=True):
            if bound.sum is None:
                losses = np.where(np.isfinite(losses), losses, (excess - bound.level) / bound.slope)
        return losses

    def errors(self, history: History, losses: Floats) -> Floats:
        """How far losses may stray."""
        return np.hypot(history.errors, DOUBT * np.maximum(losses - self.worst, 0.0))


class Knowledge:
    """What is known at one proposal.

    Args:
        alternatives: What may be chosen.
        epoch: What was learned from the history as a whole.
        surrogate: Of the losses, with all that was measured.
        history: What was measured, and what is being measured.
        quality: What losses are expected to score, where they only guide.
    """

    def __init__(
        self, alternatives: Alternatives, epoch: Epoch, surrogate: Surrogate, history: History,
        quality: Quality | None = None,
    ) -> None:  # fmt: skip
        self._alternatives, self._epoch, self._quality = alternatives, epoch, quality
        self.surrogate = surrogate.with_pending(history.pending)
        relative = history.losses - epoch.dense_loss
        # Of many estimates the best were lucky; what all others say of these policies makes up for it.
        rough = history.errors > 0
        if rough.any():
            relative[rough] = surrogate.link.inverse(surrogate.mean(history.codes[rough]))
        held = np.all([bound.holds(relative) | ~rough for bound in epoch.bounds], axis=0)
        # A cost that was not measured yet is what it is expected to be.
        costs = np.where(np.isfinite(history.costs), history.costs, self._costs(history.codes))
        counted, worst = self._counted(relative, history), epoch.corner[0]
        worst = worst if quality is not None else worst - epoch.dense_loss
        inside = np.isfinite(history.losses) & ~(history.excess > 0).any(1) & held & (counted <= worst)
        inside &= (costs <= epoch.corner[1:]).all(1)
        figures, codes = np.c_[counted, costs][inside], history.codes[inside]
        kept = non_dominated(figures)
        self.front = codes[kept]
        awaited = self._counts(surrogate.link.inverse(self.surrogate.awaited))
        self._curious = CURIOUS * max(0.0, float(surrogate.link(np.array(epoch.worst))))
        lowest = np.array([cost.least for cost in epoch.costs])
        self._gain = Gain(
            budgets(lowest, epoch.corner[1:], alternatives.count),
            np.r_[figures[kept, 0], awaited],
            np.vstack([figures[kept, 1:], self._costs(history.pending)]),
            worst,
        )

    def _counts(self, relative: Floats) -> Floats:
        """What losses above dense's count as: the score that is expected of them, or themselves."""
        return relative if self._quality is None else self._quality(relative + self._epoch.dense_loss)

    def _counted(self, relative: Floats, history: History) -> Floats:
        """The same of what was measured, with what was measured of the scores themselves."""
        if self._quality is None or history.scores is None or history.score_errors is None:
            return relative
        losses = relative + self._epoch.dense_loss
        return self._quality.posterior(losses, history.scores, history.score_errors)[0]

    def _costs(self, codes: Codes) -> Floats:
        sums = [cost(codes) for cost in self._epoch.costs]
        return np.array(sums).T.reshape(len(codes), len(sums))

    def _chance(self, codes: Codes) -> Floats:
        chances = [bound.chance(codes) for bound in self._epoch.bounds]
        return np.prod(chances, axis=0) if chances else np.ones(len(codes))

    def additive_front(self, draw: np.random.Generator, around: NDArray[np.int16]) -> Codes:
        """The front of an additive loss for one weighing of the costs.

        Args:
            draw: Draws the weights.
            around: (variables,): the policy that each choice is added to.
        """
        space, axes = self._alternatives, self._epoch.axes
        weights = draw.dirichlet(np.ones(len(axes))) if axes else np.zeros(0)
        losses = space.by_combination(space.table(self.surrogate.added(around[None])[0]))
        costs = sum((weight * axis for weight, axis in zip(weights, axes, strict=True)), np.zeros(losses.shape))
        return space.separate(additive_front(losses, costs))

    def expected_gain(self, codes: Codes) -> Floats:
        """What policies are expected to add."""
        means, deviations = self.surrogate.predict(codes)
        # How far the mean is expected to move once the policy is measured: little where measurements stray much.
        told = deviations**2 / np.sqrt(deviations**2 + self.surrogate.noise)
        chance, link = self._chance(codes), self.surrogate.link

        def loss(drawn: Floats) -> Floats:
            return self._counts(link.inverse(drawn))

        def allowed(losses: Floats) -> Floats:
            held = [bound.holds(losses) for bound in self._epoch.bounds if bound.sum is None]
            return chance * np.all(held, axis=0) if held else chance

        curious = np.minimum(CURIOSITY * told, self._curious)
        return self._gain.expected(means, deviations + curious, self._costs(codes), loss, allowed)


class Memory:
    """Keeps what was learned for as long as it holds; a history that is not a continuation is learned anew.

    Args:
        alternatives: What may be chosen.
        reference: The loss, and each cost, beyond which nothing counts; None for what the first policies suggest.
        tables: See `Epoch`.
        parts: See `Epoch`; with `refit` it is learned from more policies than there are choices.
        guessing: The score of guessing, where the loss only guides.
    """

    def __init__(
        self, alternatives: Alternatives, reference: Floats | None, tables: Mapping[int, Floats],
        parts: Collection[str], guessing: float = np.inf,
    ) -> None:  # fmt: skip
        self._guessing = guessing
        self._alternatives, self._reference, self._tables, self._parts = alternatives, reference, tables, parts
        self._most = None if "refit" in parts else len(alternatives.variable)
        self._learned: tuple[History, Epoch, Surrogate, int] | None = None

    def of(self, history: History) -> Knowledge:
        """What is known from a history."""
        epoch, surrogate = self._learn(history.first(self._most) if self._most else history)
        return Knowledge(self._alternatives, epoch, surrogate, history, history.quality(self._guessing))

    def _learn(self, history: History) -> tuple[Epoch, Surrogate]:
        count = len(history.codes)
        begun = count - count % max(1, count // EPOCHS)
        if np.count_nonzero(history.first(begun).measured) < 2:
            begun = count
        if self._learned is not None and self._learned[3] == begun and history.continues(self._learned[0]):
            known, epoch, surrogate, _ = self._learned
        else:
            known = history.first(begun)
            epoch = Epoch(self._alternatives, known, self._tables, self._reference, self._parts, self._guessing)
            surrogate = epoch.surrogate
        new = np.arange(count) >= len(known.codes)
        losses = epoch.losses(history)
        rows = new & np.isfinite(losses)
        surrogate = surrogate.with_measured(history.codes[rows], losses[rows], epoch.errors(history, losses)[rows])
        self._learned = (history, epoch, surrogate, begun)
        return epoch, surrogate
