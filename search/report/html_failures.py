"""What went wrong, in full: the traceback of each exception, once, with the trials that it failed."""

from collections import defaultdict
from html import escape

from ..analysis.study_record import StudyRecord

SHOWN = 20  # different tracebacks


def failures_section(record: StudyRecord) -> str:
    """Tracebacks, and trials that failed when they were to answer more; empty where there are none."""
    trials: defaultdict[str, list[int]] = defaultdict(list)
    for trial in record.trials:
        if trial.traceback is not None and trial.duplicate_of is None:
            trials[trial.traceback].append(trial.number)
    parts = [
        f"<details><summary>trial {', '.join(map(str, numbers))}: {escape(trace.strip().splitlines()[-1])}</summary>"
        f"<pre>{escape(trace)}</pre></details>"
        for trace, numbers in [*trials.items()][:SHOWN]
    ]
    setbacks = [
        f"<li>trial {trial.number}, when it was to answer more examples; those that it had answered count: "
        f"{escape('; '.join(trial.setbacks))}</li>"
        for trial in record.trials
        if trial.setbacks
    ]
    if setbacks:
        parts.append(f"<ul>{''.join(setbacks)}</ul>")
    return f"<h3>What went wrong</h3>{''.join(parts)}" if parts else ""
