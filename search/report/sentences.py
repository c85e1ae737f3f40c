"""The assessment of a study in sentences."""

from collections.abc import Sequence
from pathlib import Path

from ..analysis.agreement import GUIDE_NAMES, losses_and_accuracies
from ..analysis.assessment import selection_bias
from ..analysis.baseline_comparison import quality_metric
from ..analysis.forecast import AHEAD
from ..analysis.study_record import RecoveryOutcome, StudyRecord, all_files, policy_files
from ..analysis.transfer import MIN_POLICIES
from ..guide.wide_gaps import WIDE
from ..space.guide_metrics import DIVERGENCE, QUALITY
from ..space.units import amount, phrase, unit_of
from ..trial.trial_result import IntervalEstimate

MAX_NAMED = 3  # baselines named in one sentence


def selection_bias_line(record: StudyRecord) -> str:
    """How much better the front looks on the search split than on the report split; empty with nothing confirmed."""
    bias, name = selection_bias(record), quality_metric(record)
    if bias is None or name is None:
        return ""
    confirmed = sum(name in record.trial(number).report for number in policy_files(record))
    one = confirmed == 1
    policies, they_were = (
        ("confirmed policy looks", "it was") if one else (f"{confirmed} confirmed policies look", "they were")
    )
    unit = unit_of(name)
    size = f"{abs(100 * bias):.1f} points" if unit == "fraction" else amount(abs(bias), unit)
    return (
        f"Selection bias: compared with dense, the {policies} {size} of {phrase(name)} "
        f"{'better' if bias >= 0 else 'worse'} on the search split, which {they_were} selected on, than on the report "
        "split, on average."
    )


def gap_line(record: StudyRecord) -> str:
    """What the policies in wide gaps of the front are; empty without any."""
    names = [Path(file).stem for number, file in all_files(record).items() if number in record.in_gaps]
    if not names:
        return ""
    by = "by its answers and the guide’s loss" if record.guide else "by its answers"
    return (
        f"{', '.join(names)}: in a gap of the front wider than {WIDE:.0%} of dense, the policy with the highest "
        f"expected {QUALITY}, {by}. No paired test tells it from the cheaper policy that dominates it on the search "
        "split, which may be luck; the report split shows which of the two to take."
    )


def assessment_lines(record: StudyRecord) -> list[str]:
    """Why the search ended, its gain over the baselines, its forecast, and how well its guide ranks policies."""
    assessment = record.assessment
    lines = [f"The search ended: {record.ended}."] if record.ended else []
    if assessment.gain is not None:
        lines.append(gain_line(record.searched, assessment.gain))
        volumes = ", ".join(f"{baseline.name} {baseline.hypervolume:.4f}" for baseline in assessment.baseline_results)
        lines.append(f"Hypervolume of each baseline alone: {volumes}; of the search: {record.hypervolume[-1]:.4f}.")
    if assessment.forecast is not None:
        expected = f"{assessment.forecast.value:.4f} to the hypervolume{interval(assessment.forecast)}"
        lines.append(f"Forecast: another {AHEAD} trials are expected to add {expected}.")
    return [*lines, *filter(None, [random_line(record), agreement_line(record)])]


def recovery_line(record: StudyRecord) -> str:
    """What was trained once the search had ended, and what that changed; empty where nothing was."""
    found = record.recovery
    if found is None:
        return ""
    trained = [one for one in found.recoveries if one.after is not None]
    failed = len(found.recoveries) - len(trained)
    members = sum(record.trial(number).policy.weights is not None for number in record.front)
    minutes = sum(one.seconds for one in found.recoveries) / 60
    policies = "1 policy was" if len(trained) == 1 else f"{len(trained)} policies were"
    rounds = found.settings.get("survivors", ())
    longer = f", and the better half for {', then '.join(map(str, rounds))}" if rounds else ""
    start = (
        f"Recovery: {policies} trained by {found.settings['method']} for {found.settings['steps']} steps each{longer}, "
        f"{minutes:.1f} minutes in all{f'; {failed} failed' if failed else ''}. {members} of them "
        f"{'is' if members == 1 else 'are'} on the front, whose hypervolume went from {found.hypervolume[0]:.4f} to "
        f"{found.hypervolume[1]:.4f} on the search split"
    )
    if found.report_hypervolume is not None:
        before, after = found.report_hypervolume
        start += f", and from {before:.4f} to {after:.4f} on the report split"
    return f"{start}. {rank_sentence(record, found)}"


def rank_sentence(record: StudyRecord, found: RecoveryOutcome) -> str:
    """How far the order of policies before their training is that after it."""
    name = phrase(quality_metric(record) or "")
    ranks = {"search": found.ranks, "report": found.report_ranks}
    texts = [f"{tau(rank.value)}{tau_interval(rank)} on the {split} split" for split, rank in ranks.items() if rank]
    if not texts:
        trained = sum(one.after is not None for one in found.recoveries)
        reason = (
            f"at least {MIN_POLICIES} are needed" if trained < MIN_POLICIES else "all are equal before it or after it"
        )
        return f"Whether training changes the order of policies is not known: {reason}."
    return f"Kendall tau of {name} before with {name} after: {', '.join(texts)}."


def random_line(record: StudyRecord) -> str:
    """How often a random choice of image tokens does as well; empty where none was measured."""
    found = record.assessment.random
    if found is None:
        return ""
    count, name = len(found.gains), phrase(quality_metric(record) or "")
    policies = "policy" if count == 1 else "policies"
    trials = f" (trials {', '.join(map(str, found.as_well))})" if found.as_well else ""
    return (
        f"Image tokens at random: with the same ratios, random did as well for {len(found.as_well)} of {count} "
        f"{policies}{trials}, whose {name} is not significantly better on the report split."
    )


def gain_line(record: StudyRecord, gain: IntervalEstimate) -> str:
    """Whether the search is better than its baselines, by the report split where both fronts are confirmed there."""
    confirmed = record.assessment.confirmed_gain
    decisive = gain if confirmed is None else confirmed
    if decisive.low is None:
        result = "is better than" if decisive.value > 0 else "is not better than"
    else:
        is_significant = decisive.value > 0 and decisive.low > 0
        result = f"is {'' if is_significant else 'not '}significantly better than"
    no_interval = "; no per-example scores were kept, so there is no interval" if gain.low is None else ""
    gains = f"hypervolume {gain.value:+.4f}{interval(gain)} on the search split{no_interval}"
    if confirmed is not None:
        on_report = f"hypervolume {confirmed.value:+.4f}{interval(confirmed)} on the report split"
        gains = f"{on_report}, on which neither front was selected; {gains}"
    return f"The search {result} {_best_baselines(record)}: {gains}."


def _best_baselines(record: StudyRecord) -> str:
    """The baselines on their own front, by name."""
    best = [record.trial(number) for number in record.assessment.best_baselines]
    if not best:
        failing = "is better than dense" if record.dense.feasible else "keeps the constraints"
        return f"the baselines, none of which {failing}"
    named = [f"{trial.baseline} as trial {trial.number}" for trial in best[:MAX_NAMED]]
    named += [f"{len(best) - MAX_NAMED} more"] if len(best) > MAX_NAMED else []
    return f"the best baseline{'' if len(best) == 1 else 's'} ({'; '.join(named)})"


def interval(estimate: IntervalEstimate) -> str:
    """The interval of an estimate in parentheses; empty where it has none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f" (95 % interval {estimate.low:.4f} to {estimate.high:.4f})"


def agreement_line(record: StudyRecord) -> str:
    """How well the search's guide ranks policies by accuracy; empty where too few trials measured both."""
    found = record.assessment.agreement
    if found is None or found.low is None or found.high is None:
        return ""
    subject = GUIDE_NAMES[record.guide or DIVERGENCE]
    count = len(losses_and_accuracies(record))
    return f"{subject} ranks policies by accuracy: Kendall tau {tau(found.value)}{tau_interval(found)}, {count} trials."


def transfer_line(record: StudyRecord) -> str:
    """What policies keep on the transfer tasks, and whether they rank there as on the searched ones; or empty."""
    found = record.assessment.transfer
    if found is None:
        return ""
    policies = f"{found.policies} {'policy' if found.policies == 1 else 'policies'}"
    ranks = [f"{name} {tau(rank.value)}{tau_interval(rank)}" for name, rank in found.ranks.items() if rank is not None]
    kept = {name: [shares[name] for shares in found.kept.values()] for name in found.tasks}
    means = [f"{_mean_share(shares)} on {name}" for name, shares in kept.items()]
    if not found.policies:
        return "No policy of the front was measured on the transfer tasks yet."
    searched = f"{_mean_share([*found.searched.values()])} on the searched tasks"
    start = f"Of what dense has, the front keeps on average {', '.join([searched, *means])}. "
    if ranks:
        return f"{start}Kendall tau with the accuracy on the searched tasks: {'; '.join(ranks)}; {policies}."
    reason = f"at least {MIN_POLICIES} are needed" if found.policies < MIN_POLICIES else "their accuracies are equal"
    return f"{start}Whether policies rank as on the searched tasks is not known from {policies}: {reason}."


def _mean_share(shares: Sequence[IntervalEstimate | None]) -> str:
    """The mean of kept shares in percent; a dash without any."""
    values = [share.value for share in shares if share is not None]
    return f"{100 * sum(values) / len(values):.0f} %" if values else "–"


def tau_interval(rank: IntervalEstimate) -> str:
    """The interval of a rank correlation in parentheses; empty where it has none."""
    return "" if rank.low is None or rank.high is None else f" (95 % interval {tau(rank.low)} to {tau(rank.high)})"


def tau(value: float) -> str:
    """A rank correlation, with a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def share_text(share: IntervalEstimate, unit: str = " %") -> str:
    """A kept share in percent, with its interval where it has one; a table may have the unit in its heading."""
    ends = "" if share.low is None or share.high is None else f" ({100 * share.low:.0f} to {100 * share.high:.0f})"
    return f"{100 * share.value:.0f}{unit}{ends}"
