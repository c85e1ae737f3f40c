"""The benchmarks run, and end with their figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_cost_of_a_policy_is_measured():
    script = Path(__file__).parent.parent / "benchmarks" / "apply.py"
    done = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    cases = {(row["case"], row["phase"]): row for model in figures["models"] for row in model["cases"]}
    assert cases["empty policy", "prefill"]["flops_share"] == 1.0
    assert cases["half the layers", "decode"]["flops_share"] == 1.0
    assert cases["token_ratio 0.5, norm", "prefill"]["flops_share"] < 0.8
