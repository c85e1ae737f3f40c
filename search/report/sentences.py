"""The assessment of a study in sentences."""

from ..analysis.agreement import IN_WORDS, figures
from ..analysis.assessment import selection_bias
from ..analysis.baseline_comparison import quality_metric
from ..analysis.forecast import AHEAD
from ..analysis.study_record import StudyRecord, policy_files
from ..space.guide_metrics import DIVERGENCE
from ..space.units import amount, phrase, unit_of
from ..trial.trial_result import Estimate

NAMED = 3  # so many rules are named in a sentence


def selection_bias_line(record: StudyRecord) -> str:
    """How much of what the front shows is luck on the search split; empty where nothing is confirmed."""
    gap, name = selection_bias(record), quality_metric(record)
    if gap is None or name is None:
        return ""
    confirmed = sum(name in record.trial(number).report for number in policy_files(record))
    unit = unit_of(name)
    size = f"{abs(100 * gap):.1f} points" if unit == "fraction" else amount(abs(gap), unit)
    return (
        f"Against dense, the {confirmed} confirmed policies look {size} of {phrase(name)} "
        f"{'better' if gap >= 0 else 'worse'} on the examples that chose them than on examples the search never saw, "
        "on average."
    )


def assessment_lines(record: StudyRecord) -> list[str]:
    """The verdict in sentences."""
    assessment = record.assessment
    lines = [f"The search ended: {record.ended}."] if record.ended else []
    if assessment.gain is not None:
        lines.append(gain_line(record, assessment.gain))
        alone = ", ".join(f"{rule.name} {rule.hypervolume:.4f}" for rule in assessment.by_rule)
        lines.append(f"Hypervolume of each rule by itself: {alone}; of the search {record.hypervolume[-1]:.4f}.")
    if assessment.forecast is not None:
        expected = f"another {AHEAD} trials are expected to add {assessment.forecast.value:.4f}"
        lines.append(f"By the growth of the hypervolume so far, {expected} to it{interval(assessment.forecast)}.")
    return [*lines, *filter(None, [agreement_line(record)])]


def gain_line(record: StudyRecord, gain: Estimate) -> str:
    """Whether the search beats the rules that it began with: by the report split where both fronts are confirmed."""
    best = [record.trial(number) for number in record.assessment.rules]
    named = [f"{trial.baseline} as trial {trial.number}" for trial in best[:NAMED]]
    named += [f"{len(best) - NAMED} more"] if len(best) > NAMED else []
    none = "none better than dense" if record.dense.feasible else "none within the constraints"
    rules = f"the best simple rules ({'; '.join(named)})" if best else f"the simple rules, {none}"
    confirmed = record.assessment.confirmed_gain
    decides = gain if confirmed is None else confirmed
    beaten = decides.value > 0 and (decides.low is None or decides.low > 0)
    result = "beats" if beaten else "is not told apart from"
    unknown = "; no scores of single examples were kept, hence no interval" if gain.low is None else ""
    seen = f"{gain.value:+.4f}{interval(gain)} of hypervolume on the search's examples{unknown}"
    if confirmed is None:
        return f"The search {result} {rules}: {seen}."
    unseen = f"{confirmed.value:+.4f}{interval(confirmed)} of hypervolume on examples that neither was chosen by"
    return f"The search {result} {rules}: {unseen}; {seen}."


def interval(estimate: Estimate) -> str:
    """The interval of an estimate, where it has one."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f" (95 % interval {estimate.low:.4f} to {estimate.high:.4f})"


def agreement_line(record: StudyRecord) -> str:
    """The same in a sentence; empty where it is not known."""
    found = record.assessment.agreement
    if found is None or found.low is None or found.high is None:
        return ""
    ends = f"95 % interval {found.low:.2f} to {found.high:.2f}"
    subject = IN_WORDS[record.guide or DIVERGENCE]
    return f"{subject} ranks accuracy: Kendall tau {found.value:.2f} ({ends}), {len(figures(record))} trials."
