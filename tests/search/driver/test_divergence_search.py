"""A search that minimises the divergence: its front, report, table and selection, with dense at a divergence of 0."""

import json
import re

import pytest
import searching

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.metadata import Measured
from skipsearch.policies.policy import Policy
from skipsearch.search import cli
from skipsearch.search.driver.progress import best_saving
from skipsearch.search.report.figures import hover_text
from skipsearch.search.report.folder import write_folder
from skipsearch.search.report.html.page import page
from skipsearch.search.report.layer_map import layer_map
from skipsearch.search.report.planes import dots, planes
from skipsearch.search.report.sections import headline, headline_criterion, headline_trial
from skipsearch.search.report.terminal import print_evaluation, reuse_line
from skipsearch.search.run import run_study
from skipsearch.search.space.objectives import first_cost
from skipsearch.search.space.units import amount, unit_of, versus_dense, with_error
from skipsearch.search.trial.pareto import front_trials
from skipsearch.search.trial.trial_result import TrialResult

BOTH = {"divergence": "minimize", "prefill_flops": "minimize"}
EVALUATE = "{accuracy: {tasks: [image_mc.yaml], search: {limit: 8}, report: {limit: 8}}, divergence: , flops: }"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = searching.tiny_space(tmp_path_factory.mktemp("space"))
    loaded = searching.loaded(
        path,
        evaluate=EVALUATE,
        objectives=json.dumps(BOTH),
        constraints="{divergence: '<= 9'}",
        search__trials=12,
        search__racing="none",
    )
    folder = tmp_path_factory.mktemp("results") / "near"
    with searching.cluster():
        return run_study(loaded, folder, shown=False), folder


def test_dense_is_at_0_and_a_nat_is_the_worst_that_counts(finished):
    record, _ = finished
    assert record.dense.search["divergence"].value == 0
    assert record.reference == {"divergence": 1.0, "prefill_flops": record.dense.search["prefill_flops"].value}
    assert 0 <= record.hypervolume[-1] <= 1
    assert record.front[0] == record.dense.number
    costs = [record.trial(number).search["prefill_flops"].value for number in record.front]
    assert costs == sorted(costs, reverse=True)
    assert all("divergence" in record.trial(number).report for number in record.front)


def test_every_trial_counts_the_layers_that_it_was_spared(finished):
    record, _ = finished
    assert 0 < record.summary["layers_run"] < record.summary["layers_asked"]
    times = record.summary["layers_asked"] / record.summary["layers_run"]
    assert reuse_line(record).endswith(f"were saved, {times:.2f} times fewer")


def test_the_report_speaks_of_nats(finished):
    record, folder = finished
    trial = headline_trial(record)
    assert trial is not None
    told = amount(trial.report["divergence"].value, "nats")
    assert f"is {told} from dense on examples the search never saw." in headline(record)
    assert "0.01 nats of dense" in headline_criterion(record)
    text = page(record)
    assert "divergence, nats" in text and "search split, n 8" in text and "report split, n 8" in text
    assert "divergence 1 nat" in text and "nan" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "Divergence ranks policies by accuracy: Kendall tau" in text
    write_folder(folder)


def test_every_trial_stands_in_the_figure_at_its_nats(finished):
    record, _ = finished
    (plane,) = planes(record)
    assert (plane.x, plane.y) == ("prefill_flops", "divergence")
    found = {dot.trial.number: dot for dot in dots(record, plane)}
    assert {*found} == {trial.number for trial in record.trials if trial.state == "complete"}
    for number, dot in found.items():
        assert dot.y == record.trial(number).search["divergence"].value
        if number in record.front and number:
            assert dot.confirmed is not None
            assert dot.confirmed[1] == record.trial(number).report["divergence"].value
            assert dot.stderr == record.trial(number).report["divergence"].stderr
    assert "nats, from dense" in hover_text(record, record.trial(record.front[-1]))


def test_commands_tell_and_pick(finished, capsys):
    _, folder = finished
    assert cli.main(["report", str(folder)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "dense 0 nats" in told and "prefix reuse: " in told and "divergence 1 nat," in told
    assert cli.main(["report", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["front"][0]["divergence"]["share"] is None
    assert {"value", "low", "high"} == {*data["verdict"]["divergence_ranks_accuracy"]}
    assert cli.main(["report", str(folder), "--pick", "prefill_flops<=0.9*dense"]) == 0
    picked = capsys.readouterr()
    assert "divergence" in picked.err
    assert "divergence:" in picked.out
    file = next((folder / "policies").glob("*.yaml"))
    assert cli.main(["show", str(file)]) == 0
    assert re.search(r"divergence +[\d.e-]+ nats ± ", capsys.readouterr().out)
    assert cli.main(["ls", "--out", str(folder.parent)]) == 0


def test_a_divergence_is_told_in_nats_and_never_as_a_share():
    assert [unit_of(name) for name in ("divergence", "image_divergence", "some_nats", "accuracy")] == [
        "nats", "", "", "fraction",
    ]  # fmt: skip
    assert [amount(value, "nats") for value in (0, 1, 0.03456, 2e-7)] == [
        "0 nats",
        "1 nat",
        "0.0346 nats",
        "2e-07 nats",
    ]
    assert with_error(0.5, 0.0123, "nats") == "0.5 nats ± 0.012"
    assert with_error(0.5, 0.0123, "fraction") == "50.0 % ± 1.2"
    assert versus_dense(0.3, 0.0, "nats") == "from dense"


def test_a_policy_file_with_a_divergence_can_be_shown(capsys):
    from rich.console import Console

    measured = {"divergence": Measured(value=0.02, dense=0.0, stderr=0.001, n=50, split="report")}
    console = Console(width=100)
    console.print(layer_map(Policy().model_copy(update={"measured": measured}), 4))
    assert "0.02 nats ± 0.001  from dense  n 50 report" in capsys.readouterr().out


def test_the_front_is_ordered_by_cost_and_not_by_divergence():
    assert first_cost(BOTH) == "prefill_flops"
    assert first_cost({"accuracy": "maximize", "divergence": "minimize"}) is None
    trials = [
        TrialResult(number, "complete", Policy(), {"divergence": Measurement(far), "prefill_flops": Measurement(cost)})
        for number, (far, cost) in enumerate([(0.0, 10.0), (0.3, 4.0), (0.1, 7.0)])
    ]
    assert front_trials(trials, BOTH) == (0, 2, 1)
    assert best_saving(trials, BOTH) == "best saving 60% of prefill_flops"
    assert best_saving(trials, {"divergence": "minimize"}) == ""


def test_an_evaluation_says_which_figures_are_of_which_examples(capsys):
    dense = {name: Measurement(value) for name, value in (("divergence", 0.0), ("prefill_flops", 2e6))}
    found = {"divergence": Measurement(0.1, 9, stderr=0.02), "prefill_flops": Measurement(1e6)}
    print_evaluation(found, dense, "report", as_json=False)
    told = capsys.readouterr().out
    assert "0.1 nats ± 0.02" in told and "50.0%" in told and "divergence on the report split" in told
