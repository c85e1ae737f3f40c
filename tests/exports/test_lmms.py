"""A model of lmms-eval under a policy: with stand-ins for lmms-eval's own modules, and with lmms-eval where it is."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from families import batch_of, built, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.apply import applied_policy
from skipsearch.policies.errors import EvaluatorError, PolicyError

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("SKIPSEARCH_LMMS_PYTHON")
SKIPS = Policy.model_validate({"layers": {1: {"ffn": "skip"}, 2: {"attention": "skip"}}})
HALF = Policy.model_validate({"layers": {1: {"token_ratio": 0.5}}})


class Lmms:
    is_simple = True


class LlavaHf(Lmms):
    def __init__(self, pretrained, batch_size):
        self.model, self.given = built("llava", "sdpa"), (pretrained, batch_size)

    def loglikelihood(self, requests):
        return [(0.0, False)] * len(requests)


class OpenAi(Lmms):
    def __init__(self):
        pass


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str
    chat_class_path: str


@pytest.fixture
def lmms(monkeypatch):
    """The module, over stand-ins with the names that it takes from lmms-eval."""
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {
            "get_model": lambda name, force_simple: {"llava_hf": LlavaHf, "openai": OpenAi}[name],
        },
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.utils": {
            "simple_parse_args_string": lambda text: dict(part.split("=") for part in text.split(","))
        },
    }  # fmt: skip
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "skipsearch.exports.lmms", raising=False)
    yield importlib.import_module("skipsearch.exports.lmms")
    sys.modules.pop("skipsearch.exports.lmms", None)
    if handle := applied_policy(built("llava", "sdpa")):
        handle.remove()


def made(lmms, folder, policy):
    policy.save(folder / "policy.yaml")
    return lmms.PolicyModel.create_from_arg_string(
        f"model=llava_hf,pretrained=some/llava,policy={folder / 'policy.yaml'}", {"batch_size": 2, "device": None}
    )


def test_the_model_of_lmms_eval_runs_under_the_policy(lmms, tmp_path):
    inputs = batch_of("llava").padded()
    with apply_policy(built("llava", "sdpa"), SKIPS):
        expected = run(built("llava", "sdpa"), inputs).logits
    model = made(lmms, tmp_path, SKIPS)
    assert type(model) is LlavaHf and model.given == ("some/llava", 2)
    assert torch.equal(run(model.model, inputs).logits, expected)
    assert model.loglikelihood([1]) == [(0.0, False)]
    for path in (lmms.MANIFEST.simple_class_path, lmms.MANIFEST.chat_class_path):
        assert path.rpartition(".")[0] == lmms.__name__ and hasattr(lmms, path.rpartition(".")[2])


def test_given_answers_are_not_scored_where_the_end_of_the_prompt_counts(lmms, tmp_path):
    model = made(lmms, tmp_path, HALF)
    with pytest.raises(EvaluatorError, match="where the prompt ends") as error:
        model.loglikelihood([])
    assert "skipsearch eval" in error.value.hint


def test_arguments_that_are_missing_or_wrong_are_named(lmms, tmp_path):
    make = lmms.PolicyModel.create_from_arg_string
    with pytest.raises(EvaluatorError, match="needs model and policy"):
        make("pretrained=some/llava")
    with pytest.raises(PolicyError, match="none.yaml"):
        make(f"model=llava_hf,policy={tmp_path / 'none.yaml'}")
    SKIPS.save(tmp_path / "policy.yaml")
    with pytest.raises(EvaluatorError, match="openai of lmms-eval has no model here"):
        make(f"model=openai,policy={tmp_path / 'policy.yaml'}")


@pytest.mark.soak
@pytest.mark.skipif(PYTHON is None, reason="SKIPSEARCH_LMMS_PYTHON names no interpreter with lmms-eval")
def test_lmms_eval_answers_as_the_policy_does():
    model, policy = ROOT / "spaces/digits/model", ROOT / "results/example/policies/pareto-05.yaml"
    base = f"pretrained={model},device=cpu,device_map=cpu,dtype=float32"

    def answers(*given):
        command = [PYTHON, "-P", str(Path(__file__).with_name("ask_lmms.py")), *given]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    found = answers("skipsearch", f"model=llava_hf,policy={policy},{base}")
    assert found == answers("llava_hf", base, str(policy)) != answers("llava_hf", base)
