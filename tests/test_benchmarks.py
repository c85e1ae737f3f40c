"""The benchmarks run, and end with their figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def figures_of(script: str, *arguments: str) -> dict[str, Any]:
    path = Path(__file__).parent.parent / "benchmarks" / script
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cost_of_a_policy_is_measured():
    figures = figures_of("apply.py", "--quick")
    cases = {(row["case"], row["phase"]): row for model in figures["models"] for row in model["cases"]}
    assert cases["empty policy", "prefill"]["work_share"] == 1.0
    assert cases["half the layers", "decode"]["work_share"] == 1.0
    assert cases["token_ratio 0.5, norm", "prefill"]["work_share"] < 0.8


def test_what_is_counted_at_full_size_is_what_papers_report():
    rows = figures_of("flops_papers.py", "--papers", "FastV", "p-MoD")["figures"]
    assert [row["unit"] for row in rows] == ["T", "G of one layer", "% less", "% less", "T", "T", "% of KV"]
    for row in rows:
        assert row["prefill_flops"] == row["closed_form"] + row["ranking_flops"]
        assert row["ranking_flops"] < 2e-5 * row["closed_form"]
        # The one figure whose paper does not say what it counts beside the formula.
        unexplained = row["what"].startswith("shifted cosine")
        assert abs(row["difference"]) < (0.03 if unexplained else 0.01)


def test_a_race_saves_answers_and_no_hypervolume():
    settings = figures_of("racing.py", "--quick")["settings"]
    assert [row["confidence"] for row in settings] == [0.9, 0.95, 0.99] * 2
    for row in settings:
        assert row["saving"] > 1.1 and row["lost_share"] <= 1 - row["confidence"]
        assert row["held_out_ratio"] > 0.99
    assert min(row["saving"] for row in settings if row["bounded"]) > 2
