"""Formats the values of metrics by the unit that their evaluator declares."""

import math
import re

from ...evaluators.base import declared_metric

WORDS = {"flops": "FLOPs", "kv": "KV", "ttft": "TTFT", "tpot": "TPOT"}
# Units of metrics that are measured on examples: reported with their standard error, not as a share of dense.
EXAMPLE_UNITS = ("fraction", "nats")
SI = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]
BINARY = [(2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes")]


def unit_of(metric: str) -> str:
    """The unit that a metric's evaluator declares; empty where the evaluator is not installed."""
    declared = declared_metric(metric)
    return declared.unit if declared is not None else ""


def phrase(metric: str) -> str:
    """A metric's name in prose: `prefill FLOPs` for `prefill_flops`, `TTFT (8 at a time)` for `ttft_ms_c8`."""
    under_load = re.fullmatch(r"(.+)_c(\d+)", metric)
    plain, requests = (under_load[1], f" ({under_load[2]} at a time)") if under_load else (metric, "")
    plain = plain.removesuffix("_ms").removesuffix("_bytes")
    return " ".join(WORDS.get(word, word) for word in plain.split("_")) + requests


def amount(value: float, unit: str) -> str:
    """A value with its unit, to three significant digits; a fraction in percent, to one decimal."""
    if not math.isfinite(value):
        return "not a number"
    if unit == "fraction":
        return f"{100 * value:.1f} %"
    if unit == "nats":
        return f"{value:.3g} nat{'' if value == 1 else 's'}"
    if unit in ("flops", "bytes"):
        scales = SI if unit == "flops" else BINARY
        scale, prefix = next((pair for pair in scales if abs(value) >= pair[0]), scales[-1])
        return f"{three_digits(value / scale)} {prefix}{'FLOPs' if unit == 'flops' else ''}"
    return f"{three_digits(value)} {unit}".rstrip()


def with_error(value: float, stderr: float | None, unit: str) -> str:
    """A value with its unit and its standard error, where it has one; the error of a fraction is in points."""
    spread = "" if stderr is None else f" ± {100 * stderr:.1f}" if unit == "fraction" else f" ± {stderr:.2g}"
    return amount(value, unit) + spread


def versus_dense(value: float, dense: float, unit: str) -> str:
    """A value relative to dense: a cost as a share of it, an accuracy as a difference in points."""
    if unit == "nats":
        return "from dense"
    if unit == "fraction":
        return f"{signed_points(value - dense)} vs dense {amount(dense, unit)}"
    ratio = value / dense if dense else math.nan
    return f"{amount(ratio, 'fraction')} of dense {amount(dense, unit)}"


def signed_points(difference: float) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f} points".replace("-", "−")


def three_digits(value: float) -> str:
    """Three significant digits without an exponent."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, 2 - magnitude)}f}"
