#!/usr/bin/env bash
# LLaVA-1.5-7B shapes with random weights on one GPU: dense against policies, batch 1 and 8, then compiled decode.
# Needs an environment with skipsearch, or this clone under the name skipsearch on PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/gpu.py --batch 1 8 "$@"
python benchmarks/gpu.py --batch 1 8 --compiled "$@"
