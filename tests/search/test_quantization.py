"""Quantisation as a choice of a study: a label beside those of layers, on one model, against the unquantised one."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import searching
import torch

import skipsearch
import tiny
from skipsearch import applied_policy, apply_policy
from skipsearch.evaluators.accuracy.harness import PolicyModel
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.exports.export import why_not
from skipsearch.exports.registry import target_class, target_names
from skipsearch.exports.target import Source, with_model
from skipsearch.policies.choice import CHOICES
from skipsearch.policies.errors import SpaceError, UsageError
from skipsearch.policies.metadata import ModelRef
from skipsearch.policies.policy import Policy
from skipsearch.policies.quantized.weights import quantization_of
from skipsearch.recovery.recover import recover
from skipsearch.recovery.settings import RecoverySettings
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.cli_exports import model_spec, served_model
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.report.folder import environment, exported
from skipsearch.search.report.layer_map import describe
from skipsearch.search.space.parameters import Parameters
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.study.warm_start import file_setting
from skipsearch.search.trial.time_model import COST, TimedPolicy, TimeModel, features
from skipsearch.search.workers.evaluate import PolicyEvaluator
from skipsearch.search.workers.prefix_affinity import layer_keys
from skipsearch.testing.pool import LocalPool

SPACE = """
schema: skipsearch/space/v1
model: {id: ./llama, device: cpu, quantization: [none, int8]}
layers: [{range: 1-last, ffn: [run, skip]}]
evaluate:
  answer_loss: {tasks: [./text_mc.yaml], search: {limit: 4}, report: {limit: 4}}
  flops:
  memory:
objectives: {answer_loss: minimize, weight_bytes: minimize}
search: {trials: 10, seed: 1, start: none}
workers: {count: 1}
"""
INT8 = ModelRef(quantization="int8")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    tiny.tiny_llama(folder)
    tiny.text_tasks(folder)
    (folder / "tiny.yaml").write_text(SPACE)
    return folder / "tiny.yaml"


def test_what_weights_are_quantised_to_is_a_label_of_a_policy(path):
    space = searching.loaded(path).space
    parameters = Parameters(space, tiny.LAYERS)
    assert parameters.options["quantization"] == ["none", "int8"] and parameters.size == 16
    assert parameters.policy({}) == parameters.policy({"quantization": "none"}) and parameters.policy({}).is_dense
    quantised = parameters.policy({"quantization": "int8", "layer_02.ffn": "skip_ffn"})
    assert (
        quantised == Policy(model=INT8, layers={2: CHOICES["skip_ffn"]}) and describe(quantised)[-1] == "int8 weights"
    )
    labels = parameters.encode(quantised)
    assert labels is not None and labels["quantization"] == "int8" and parameters.policy(labels) == quantised
    assert all(one["quantization"] == "int8" for one in parameters.deletions(labels).values())
    reordered = searching.loaded(path, model__quantization="[int8, none]").space
    assert Parameters(reordered, tiny.LAYERS).options["quantization"] == ["none", "int8"]
    plain = searching.loaded(path, model__quantization="none").space
    assert "quantization" not in Parameters(plain, tiny.LAYERS).options
    assert (
        len({one.fingerprint() for one in (space, plain, searching.loaded(path, model__quantization="int8").space)})
        == 3
    )
    for given in ("[int8]", "[none, int8, int8]", "[none, int3]", "int3"):
        with pytest.raises(SpaceError, match="quantization"):
            searching.loaded(path, model__quantization=given)
    with pytest.raises(SpaceError, match="a model with quantised weights cannot be trained"):
        searching.loaded(path, search__recover="{method: lora, data: ./text_mc.yaml}")


def test_a_policy_file_for_int8_weights_starts_a_search_that_offers_or_loads_them(path, tmp_path):
    file = tmp_path / "int8.yaml"
    Policy(model=INT8, layers={2: CHOICES["skip_ffn"]}).save(file)
    offered = Parameters(searching.loaded(path).space, tiny.LAYERS)
    loaded = Parameters(searching.loaded(path, model__quantization="int8").space, tiny.LAYERS)
    assert file_setting(offered, str(file))[2]["quantization"] == "int8"
    assert loaded.policy(file_setting(loaded, str(file))[2]) == Policy(layers={2: CHOICES["skip_ffn"]})
    with pytest.raises(SpaceError, match="`model.quantization` of the space are against it"):
        file_setting(Parameters(searching.loaded(path, model__quantization="none").space, tiny.LAYERS), str(file))


def test_times_and_prefixes_tell_quantised_policies_apart():
    plain, quantised = Policy(layers={1: CHOICES["skip_ffn"]}), Policy(model=INT8, layers={1: CHOICES["skip_ffn"]})
    assert {*features(quantised, 4).items()} - {*features(plain, 4).items()} == {(("weights int8", COST), 1.0)}
    assert not {*layer_keys(plain, 4)} & {*layer_keys(quantised, 4)}
    timed = [TimedPolicy(features(plain, 4), 0.9, 1e-4), TimedPolicy(features(Policy(), 4), 1.0, 1e-4)]
    unseen = TimeModel(4, timed)
    # Nothing was timed with such weights: the time is not known at all.
    assert unseen.predict(features(quantised, 4)).error > 0.9 > unseen.predict(features(plain, 4)).error
    halved = [TimedPolicy(features(Policy(model=INT8, layers=one.layers), 4), share, 1e-4)
              for one, share in ((plain, 0.4), (Policy(), 0.5))]  # fmt: skip
    seen = TimeModel(4, timed + halved)
    assert abs(seen.predict(features(quantised, 4)).ratio - 0.4) < 0.1


def test_a_search_weighs_pruning_and_quantisation_against_the_unquantised_model(path, tmp_path):
    space, threads = searching.loaded(path).space, torch.get_num_threads()
    evaluator = PolicyEvaluator(space, threads=1)
    torch.set_num_threads(threads)
    study = SearchStudy(tmp_path / "study.db", "tiny", space, tiny.LAYERS)
    driver = Driver(study, LocalPool(evaluator), Progress(space.search.trials, space.objectives, shown=False))
    study.end(driver.search())
    assert quantization_of(evaluator.subject.model) == "none"
    record = read_record(tmp_path)
    dense = record.dense
    assert dense.policy.is_dense and not any(trial.failure for trial in record.trials)
    measured = {trial.policy.fingerprint: trial for trial in record.trials if trial.duplicate_of is None}
    alone = measured[Policy(model=INT8).fingerprint]
    assert alone.search["weight_bytes"].value < 0.6 * dense.search["weight_bytes"].value
    assert alone.search["answer_loss"].value != dense.search["answer_loss"].value
    for trial in measured.values():
        twin = measured.get(Policy(layers=trial.policy.layers).fingerprint)
        if twin is not None and twin is not trial:
            assert trial.search["decode_flops"].value == twin.search["decode_flops"].value
            assert trial.search["weight_bytes"].value < twin.search["weight_bytes"].value
    files = [exported(record, record.trial(number)) for number in record.front]
    kinds = {policy.model.quantization for policy in files}
    assert kinds == {"none", "int8"} and all(policy.model.id == record.model_id for policy in files)
    files[-1].save(tmp_path / "policy.yaml")
    assert Policy.load(tmp_path / "policy.yaml").model == files[-1].model


def test_a_model_that_is_loaded_quantised_is_its_own_dense_model(path):
    space = searching.loaded(path, model__quantization="int8").space
    evaluator = PolicyEvaluator(space)
    described = evaluator.describe()
    assert described["quantized_share"] > 0.9 and quantization_of(evaluator.subject.model) == "int8"
    assert environment([{**described, "node": 1}], space, "x")["quantization"] == "int8"
    plain = PolicyEvaluator(searching.loaded(path, model__quantization="none").space)
    names = ["memory", "flops"]
    ours, theirs = (one.measure(Policy(), names).measurements for one in (evaluator, plain))
    assert ours["weight_bytes"].value < theirs["weight_bytes"].value
    assert {**ours, "weight_bytes": None} == {**theirs, "weight_bytes": None}
    memory = evaluator.memory()
    assert memory["weights_bytes"] == ours["weight_bytes"].value
    # A batch has 16 rows where the space says nothing else.
    assert memory["batch_cache_bytes"] == 16 * ours["kv_cache_bytes"].value > 0


def test_every_way_of_using_a_policy_for_int8_weights_has_them_or_refuses_it(path, tmp_path):
    model, policy = str(path.parent / "llama"), Policy(model=INT8, layers={2: CHOICES["skip_ffn"]})
    policy.save(tmp_path / "policy.yaml")
    given = {"revision": None, "dtype": "auto", "device": "cpu", "trust_remote_code": False}
    served = served_model(Namespace(model=model, **given), policy)
    measured = PolicyModel(pretrained=model, policy=str(tmp_path / "policy.yaml"), dtype="float32").handle.model
    loaded = skipsearch.from_pretrained(tmp_path, base=model)
    assert applied_policy(loaded).policy == policy and applied_policy(loaded).weights is None
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with torch.no_grad(), apply_policy(served.model, policy):
        expected = served.model(**inputs).logits
        assert torch.equal(loaded(**inputs).logits, expected) and torch.equal(measured(**inputs).logits, expected)
    dense = load_subject(ModelSpec(id=model, device="cpu")).model
    for source in (Source(dense, id=model), Source(served.model, id=model)):
        for name in target_names():
            reasons = why_not(policy if source.model is dense else Policy(), source, target_class(name)())
            refused = "the weights are quantised to int8, and it writes those of the checkpoint" in reasons
            assert refused is (name != "hub"), name
    assert with_model(policy, Source(dense, id=model)).model.quantization == "int8"
    for one, chosen in ((dense, policy), (loaded, Policy())):
        with pytest.raises(UsageError, match="a policy cannot be recovered on quantised weights"):
            recover(one, None, chosen, [], RecoverySettings(method="lora"), tmp_path, "")
    other = SimpleNamespace(policy=tmp_path / "policy.yaml", model=model, **given)
    assert model_spec(other, policy).quantization == "none"
