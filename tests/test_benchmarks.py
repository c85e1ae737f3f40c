"""The benchmarks run, and end with their figures."""

from __future__ import annotations

import io
import json
import random
import runpy
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import policy_of

from families import LAYERS, batch_of, built, run
from skipsearch import apply_policy
from skipsearch.policies.runtime.prefix import PrefixStates
from skipsearch.search.space.load import load_space
from skipsearch.search.workers.evaluate import PolicyEvaluator

FOLDER = Path(__file__).parent.parent / "benchmarks"


def printed(script: str, *arguments: str | Path) -> list[str]:
    """Run a benchmark in this process, which has loaded torch already; gives the lines that it prints."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.syspath_prepend(FOLDER)
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    return out.getvalue().splitlines()


def figures_of(script: str, *arguments: str) -> dict[str, Any]:
    return json.loads(printed(script, *arguments)[-1])


def test_the_cost_of_a_policy_is_measured():
    figures = figures_of("apply.py", "--quick")
    cases = {(row["case"], row["phase"]): row for model in figures["models"] for row in model["cases"]}
    assert cases["empty policy", "prefill"]["work_share"] == 1.0
    assert cases["half the layers", "decode"]["work_share"] == 1.0
    assert cases["token_ratio 0.5, norm", "prefill"]["work_share"] < 0.8
    for phase in ("prefill", "decode"):
        # What a width saves is linear in the channels that do not run.
        quarter, half = (1 - cases[f"ffn_ratio {ratio}", phase]["work_share"] for ratio in (0.25, 0.5))
        assert half > 0.1 and quarter == pytest.approx(1.5 * half, abs=3e-4)


def test_a_model_is_trained_to_live_with_a_policy():
    found = figures_of("recovery.py", "--quick", "--policies", "interval 2", "--methods", "connector")
    rows = found["policies"]["interval 2"]
    assert rows["layers"] == [2, 4, 6, 8, 10] and 0 < rows["before"] <= 1 and rows["connector"]["trained"] == 28928
    assert found["dense"] > 0.9


def test_what_is_counted_at_full_size_is_what_papers_report():
    rows = figures_of("flops_papers.py", "--papers", "FastV", "p-MoD")["figures"]
    assert [row["unit"] for row in rows] == ["T", "G of one layer", "% less", "% less", "T", "T", "% of KV"]
    for row in rows:
        assert row["prefill_flops"] == row["closed_form"] + row["ranking_flops"]
        assert row["ranking_flops"] < 2e-5 * row["closed_form"]
        # The one figure whose paper does not say what it counts beside the formula.
        unexplained = row["what"].startswith("shifted cosine")
        assert abs(row["difference"]) < (0.03 if unexplained else 0.01)


@pytest.mark.soak
def test_a_search_that_trains_is_held_against_one_with_more_trials(tmp_path):
    file = str(tmp_path / "found.json")
    found = figures_of("recover_search.py", "--quick", "--json", file)
    (run,) = found["runs"]
    assert run["trials"]["trials"] > run["recover"]["trials"] == 4
    for front in (run["recover"]["after"], run["trials"]["before"], run["trials"]["after"]):
        assert front["points"] and 0 < front["hypervolume"] < 1
    assert run["recover"]["seconds"]["training"] > 0
    # What is there is not done again.
    assert figures_of("recover_search.py", "--quick", "--json", file) == found


@pytest.mark.soak
def test_a_race_saves_answers_and_no_hypervolume():
    settings = figures_of("racing.py", "--quick")["settings"]
    assert [row["patience"] for row in settings] == ["none", 3] * 2
    assert all(row["held_out_ratio"] > 0.98 for row in settings)
    assert all(row["lost_share"] <= 0.05 for row in settings if row["patience"] == "none")
    savings = [row["saving"] for row in settings]
    assert savings[0] > 1.1 and savings[1] > 1.2 * savings[0] and savings[2] > 2 and savings[3] > savings[2]


def test_what_is_for_a_gpu_runs_small_on_any_machine():
    found = figures_of("gpu.py", "--tiny", "--repeats", "1", "--only", "from layer", "skip_ffn, everywhere")["batches"]
    dense, ratio, skipped = found["1"].values()
    assert ratio["kv_cache_bytes"] < dense["kv_cache_bytes"] == skipped["kv_cache_bytes"]
    assert skipped["prefill_flops"] < ratio["prefill_flops"] < dense["prefill_flops"]
    assert "graph_tpot_ms" in skipped and "graph_tpot_ms" in ratio


def test_whole_searches_race_on_fewer_answers():
    runs = figures_of("racing_search.py", "--quick")["runs"]
    (full,), (raced,) = runs["none"], runs["{}"]
    assert full["answers"] == 6 * 100 and full["whole"] == 6
    assert raced["answers"] < full["answers"] and 1 <= raced["whole"] <= 6
    assert all(0 < run["held_out"] <= 1.1 and 1 <= run["front"] <= run["whole"] for run in (full, raced))


@pytest.mark.soak
def test_a_search_is_held_against_a_plain_greedy_at_equal_answers(monkeypatch):
    document = figures_of("guided.py", "--quick")
    walk, search = document["runs"]
    points = walk["points"]
    assert [point["share"] for point in points] == sorted({point["share"] for point in points}, reverse=True)
    assert points[0]["share"] == 1 and points[-1]["share"] <= 0.9
    # The loss of the start, of each of the 24 sublayers, and renewed ones, on 8 questions; each accuracy on 40.
    assert points[0]["answers"] == 8 + 40 and points[1]["answers"] >= (1 + 24) * 8 + 2 * 40
    assert all(point["answers"] % 8 == 0 for point in points)
    assert search["answers"] > 40 and search["points"][0]["share"] == 1
    (claim,) = document["claims"]
    assert {row["share"] for row in claim["rows"]} >= {0.95, 1.0}

    monkeypatch.syspath_prepend(FOLDER)
    from guided import best_at

    points = [{"share": 0.9, "search": 0.5, "answers": 10}, {"share": 0.4, "search": 0.6, "answers": 30}]
    assert best_at(points, 0.95) == best_at(points, 0.4) == points[1]
    assert best_at(points, 0.95, answers=20) == points[0] and best_at(points, 0.5, answers=20) is None


@pytest.mark.soak
def test_another_model_is_trained_with_tasks_and_a_space_of_its_own(tmp_path):
    printed("rooms.py", tmp_path, "--share", "0.004")
    space = load_space(str(tmp_path / "space.yaml")).space
    bench = PolicyEvaluator(space, threads=1)
    assert bench.num_layers == 10
    splits = [bench.evaluators[-1]._tasks(split)[f"rooms_{split}"].instances for split in ("search", "report")]
    pictures = [{request.doc["image"].tobytes() for request in requests} for requests in splits]
    assert [len(found) for found in pictures] == [300, 600] and not pictures[0] & pictures[1]
    for requests in splits:
        assert Counter(request.doc["kind"] for request in requests).most_common(1)[0][1] == len(requests) / 5
        assert not any("<unk>" in bench.subject.tokenizer.decode(ids_of(bench, request)) for request in requests)


def ids_of(bench: PolicyEvaluator, request: Any) -> list[int]:
    return bench.subject.tokenizer(f"{request.args[0]} {request.doc['answer']}")["input_ids"]


def test_missing_data_is_told_before_anything_is_made(tmp_path):
    command = [sys.executable, FOLDER / "smollm2.py", tmp_path / "made", "--data", tmp_path / "none.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "none.jsonl does not exist\nhint: " in done.stderr
    assert not (tmp_path / "made").exists()


def test_searches_are_compared_on_planted_spaces_a_decoder_and_the_digits(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from search_strategies import SEARCHES

    kept, plot = tmp_path / "all.json", tmp_path / "curves.png"
    document = json.loads(printed("search.py", "--quick", "--json", kept)[-1])
    others = {name for name, search in SEARCHES.items() if search.of_models or search.of_scales}
    runs = {(run["problem"], run["search"]): run for run in document["runs"]}
    assert {name for problem, name in runs if problem == "planted 6 x 4"} == SEARCHES.keys() - others
    assert {problem for problem, name in runs if name == "fastv (FastV)"} == {"digits 12 x 7"}
    for found in runs.values():
        assert found["counts"][-1] == found["evaluations"]
        for axis in ("counts", "executions", "reused", "seen"):
            assert found[axis] == sorted(found[axis])
        assert all(reused <= run for reused, run in zip(found["reused"], found["executions"], strict=True))
    assert runs["planted 6 x 4", "Puzzle"]["seen"] == runs["planted 6 x 4", "Puzzle"]["held_out"]
    kept_states = runs["decoder 4 x 5", "BlockPruner"]["total"]
    assert kept_states[1] < 0.8 * kept_states[0]

    merged = printed("search.py", "--merge", kept, "--plot", plot)
    assert json.loads(merged[-1])["runs"] == document["runs"] and plot.stat().st_size > 10_000
    assert sum(line.startswith("| SkipSampler |") for line in merged) == 5
    # What is there already is not done again.
    again = json.loads(printed("search.py", "--quick", "--only", "planted", "--json", kept)[-1])
    assert again["runs"] == document["runs"]


def test_the_shipped_decoder_knows_what_it_is_measured_on_and_a_saved_one_comes_back(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from search_decoder import load, save, trained

    def loss(model, ids):
        with torch.no_grad():
            return model(input_ids=ids, labels=ids).loss.item()

    model, inputs = load()
    assert model.config.num_hidden_layers == 24 and model.dtype == torch.float32
    assert {split: ids.shape for split, ids in inputs.items()} == dict.fromkeys(("search", "held out"), (64, 64))
    # A byte drawn at random tells log 256 = 5.5 nats.
    assert all(1.0 < loss(model, ids) < 1.5 for ids in inputs.values())
    made, drawn = trained(layers=2, steps=1, examples=3)
    save(tmp_path, made, drawn)
    model, inputs = load(tmp_path)
    assert all(torch.equal(inputs[split], ids) for split, ids in drawn.items())
    pairs = zip(model.parameters(), made.parameters(), strict=True)
    assert all(torch.equal(one, other.float()) for one, other in pairs)


def test_the_tables_of_searches_are_what_the_shipped_document_gives():
    lines = printed("search.py", "--merge", FOLDER / "search.json")
    rows = {line for line in lines if line.startswith("| ")}
    assert len(rows) > 20 and rows <= {*(FOLDER / "README.md").read_text().splitlines()}


@pytest.mark.parametrize("capacity", [2, 7, 1000])
def test_layers_are_counted_as_prefix_states_run_them(capacity, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from search_ledger import Reuse

    model, inputs, draw = built("llama", "sdpa"), batch_of("llama").padded(), random.Random(0)
    one = inputs["input_ids"].numel() * model.config.hidden_size * 4
    states, counted = PrefixStates(capacity * one), Reuse(capacity)
    kinds = [{}, {"attention": "skip"}, {"ffn": "skip"}]
    layers_run = 0
    for _ in range(25):
        code = draw.choices(range(3), weights=(4, 1, 1), k=LAYERS)
        policy = policy_of({layer: kinds[kind] for layer, kind in enumerate(code)})
        with apply_policy(model, policy) as handle, states.reused(handle, "batch"):
            run(model, inputs, use_cache=False)
        layers_run += LAYERS - counted.first(code)
    assert layers_run == states.run < states.asked


def test_the_offspring_of_evopress_leave_out_as_much_as_their_parent(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from search_strategies import offspring

    parent = np.array([3, 3, 1, 2, 0, 0, 0, 0])
    children = offspring(parent, 32, np.random.default_rng(0))
    assert len({child.tobytes() for child in (parent, *children)}) == 33
    for child in children:
        assert (child & 1).sum() == (parent & 1).sum() and (child & 2).sum() == (parent & 2).sum()


def test_hypervolume_is_read_off_at_equal_counts_and_equal_executions(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from search_figures import Table, claims

    def made(search: str, seed: int, held_out: list[float], passes: list[float]) -> dict[str, Any]:
        more = {"counts": [1, 2, 4], "held_out": held_out, "executions": passes, "reused": passes, "evaluations": 4}
        return {"problem": "toy 3", "search": search, "seed": seed, "total": [passes[-1]] * 2} | more

    runs = [
        made("SkipSampler", 0, [0.1, 0.2, 0.4], [1, 2, 4]),
        made("SkipSampler", 1, [0.1, 0.3, 0.4], [1, 2, 4]),
        made("EvoPress", 0, [0.1, 0.2, 0.2], [20, 30, 40]),
    ]
    table = Table({"name": "toy 3", "layers": 3, "budget": 8, "bound": 0.5}, runs)
    assert table.at("SkipSampler", "counts", 3) == pytest.approx([0.4, 0.6])
    assert table.at("EvoPress", "executions", 19.9) == [0.0] and table.at("EvoPress", "executions", 30) == [0.4]
    assert table.area("SkipSampler") == pytest.approx([0.525, 0.575])
    (share,) = claims(table, {})
    assert share == {"what": "share of the best after 8", "value": 0.8, "needed": 0.99, "holds": False}
    model = Table({"name": "toy 3", "layers": 3, "budget": 8, "bound": None}, runs)
    shown = {claim["what"]: claim for claim in claims(model, {"optuna": [], "greedy": ["EvoPress"], "heuristics": []})}
    assert shown["after 2, EvoPress at its end"]["value"] == 0.25 and shown["after 2, EvoPress at its end"]["holds"]
    assert shown["of EvoPress's at 25 dense passes"]["value"] == pytest.approx(4.0)
    assert not shown["fewer executions where states are kept"]["holds"]


def test_the_cost_of_accuracy_in_a_trial_is_measured_beside_lm_eval():
    (digits,) = figures_of("trial.py", "--quick")["problems"]
    assert {"simple_evaluate", "per answer", "trial", "forwards"} == digits["seconds"].keys()
    assert digits["seconds"]["forwards"] < digits["seconds"]["trial"]
