"""The contract of image-token scores, run over all scores in the table, and what each score is."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import slow_scores
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from families import batch_of, built, run
from skipsearch import Policy, apply_policy
from skipsearch.policies import plugins
from skipsearch.policies.document import Document
from skipsearch.policies.errors import PolicyError
from skipsearch.policies.runtime.tokens import ForwardTokens
from skipsearch.policies.schemas import policy_schema
from skipsearch.policies.scores import table
from skipsearch.policies.scores.relevance import MixedScore
from skipsearch.policies.scores.table import CLASSES, SCORES, find_score
from skipsearch.policies.scores.token_selection import TokenSelection
from skipsearch.testing import check_score
from skipsearch.testing.scores import BATCH, COUNTS, RECORDED, TOKENS, sample_states, sample_tokens, scores_of

every_score = pytest.mark.parametrize("name", SCORES)
WEIGHTS = (0.0, 0.3, 1.0)
RATIOS = (0.1, 0.5, 0.9)
# Scores that read what earlier layers record.
RECORDING = [name for name, score in SCORES.items() if score.records]


class Half(MixedScore):
    """A mixture as a class, as the contract takes one."""

    def __init__(self):
        super().__init__(0.5)


@pytest.mark.parametrize("score", [*CLASSES, Half])
def test_a_score_keeps_the_contract(score):
    check_score(score)


@every_score
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("diversity", WEIGHTS)
def test_a_score_is_what_its_definition_says(name, ratio, diversity):
    if diversity and name != "relevance":
        return
    tokens, hidden = sample_tokens((True,) * BATCH), sample_states()
    chosen = tokens.choose_images(hidden, ratio, find_score(name, diversity))
    selection = TokenSelection(score=name, diversity=diversity)
    for row, count in enumerate(COUNTS):
        text = tokens.masks["text"][row].nonzero().flatten().tolist()
        candidates = tokens.images.mask[row].nonzero().flatten().tolist()
        record = dict(enumerate(tokens.recorded[row].tolist()))
        expected = slow_scores.chosen(hidden[row], candidates, text, int(count * ratio + 1e-9), selection, record)
        assert set(chosen.mask[row].nonzero().flatten().tolist()) == expected


# Where no earlier layer recorded anything


@pytest.mark.parametrize("name", RECORDING)
def test_uniform_decides_in_rows_without_a_record(name):
    hidden, uniform = sample_states(), SCORES["uniform"]
    mixed = sample_tokens(RECORDED[2]).choose_images(hidden, 0.5, SCORES[name]).mask
    without = torch.tensor(RECORDED[2]).logical_not()
    assert torch.equal(mixed[without], sample_tokens(RECORDED[1]).choose_images(hidden, 0.5, uniform).mask[without])
    with_record = sample_tokens(RECORDED[0]).choose_images(hidden, 0.5, SCORES[name]).mask
    assert torch.equal(mixed[~without], with_record[~without])


@every_score
def test_layer_0_follows_the_rule_that_the_score_states(name):
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()

    def logits(score):
        layers = {0: {"token_ratio": 0.5}}
        with apply_policy(model, Policy.model_validate({"layers": layers, "token_selection": {"score": score}})):
            return run(model, inputs).logits

    falls_back = torch.equal(logits(name), logits("uniform"))
    assert falls_back == (name in [*RECORDING, "uniform"])
    assert ("`uniform` decides" in SCORES[name].meaning) == (name in RECORDING)


# The costs of the greedy choice


class Operations(TorchDispatchMode):
    """Counts operations, and refuses those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function) and "nonzero" not in str(function)
        self.count += "view" not in str(function) and "select.int" not in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "diversity", "most"), [("diverse", 0.0, 3), ("relevance", 0.5, 4)])
def test_a_step_of_the_greedy_choice_takes_few_operations_and_never_waits(name, diversity, most):
    image = torch.ones(2, 40, dtype=torch.bool)
    tokens, hidden = ForwardTokens.read(image, None, None), torch.randn(2, 40, 16)

    def operations(keep):
        with Operations() as counted:
            scores_of(find_score(name, diversity), tokens, hidden, [keep, keep])
        return counted.count

    assert operations(30) - operations(10) <= 20 * most


# Names, schemas, documentation


def test_policies_and_their_schema_take_the_names_of_the_table():
    assert {Policy(token_selection=TokenSelection(score=name)).token_selection.score for name in SCORES} == {*SCORES}
    with pytest.raises(PolicyError, match="found 'best', expected 'attention', 'change'.* or 'uniform'"):
        read("{score: best}")
    key = policy_schema()["$defs"]["TokenSelection"]["properties"]["score"]
    assert {"enum": [*SCORES]} in key["anyOf"]
    assert all(f"`{name}`: {score.meaning}" in key["description"] for name, score in SCORES.items())


def test_diversity_is_a_weight_of_relevance():
    assert read("{score: relevance, diversity: 0.5}").token_selection.label == "relevance, diversity 0.5"
    with pytest.raises(PolicyError, match="found diversity beside score norm, expected score relevance"):
        read("{score: norm, diversity: 0.5}")
    with pytest.raises(PolicyError, match="diversity: found 2, expected 1 or less"):
        read("{score: relevance, diversity: 2}")


def test_the_fingerprint_tells_weights_apart_and_no_more():
    prints = {text: read(text).fingerprint for text in (
        "{}", "{diversity: 0.0}", "{score: relevance}", "{score: relevance, diversity: 0.5}", "{score: diverse}",
        "{score: relevance, diversity: 1.0}",
    )}  # fmt: skip
    assert prints["{}"] == prints["{diversity: 0.0}"] == "12e277c18b99e728"
    assert prints["{score: diverse}"] == prints["{score: relevance, diversity: 1.0}"]
    assert len({*prints.values()}) == 4


def read(selection: str) -> Policy:
    text = f"schema: skipsearch/policy/v1\nlayers: {{2: {{token_ratio: 0.5}}}}\ntoken_selection: {selection}\n"
    return Policy.read(Document(text, "policy.yaml", PolicyError))


@every_score
def test_the_page_about_policies_describes_each_score(name):
    page = Path(__file__).parents[2] / "policies" / "README.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert f"| `{name}` | {SCORES[name].meaning} |" in text


def test_the_table_can_be_read_without_torch():
    code = "import sys, skipsearch.policies.policy; print(*({'torch', 'transformers'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Scores of other packages


class Last:
    """Keeps the last image tokens."""

    name = "last"
    meaning = "the later the token stands, the higher"
    records = None

    def depends_on_positions_only(self, inputs):
        return True

    def scores(self, inputs):
        return torch.arange(inputs.hidden.shape[1]).float().expand(inputs.candidates.shape)


class Empty:
    name = "empty"


class Greedy(Last):
    """Scores that depend on the batch."""

    name = "greedy"

    def scores(self, inputs):
        return super().scores(inputs) * (1.0 if len(inputs.keep) == 1 else -1.0)


@pytest.fixture
def install(monkeypatch):
    """Pretend that a package brings these scores."""

    def caches_cleared():
        table.find_score.cache_clear()
        table.score_names.cache_clear()

    def installed(**values):
        entries = [EntryPoint(name, f"{__name__}:{value}", table.GROUP) for name, value in values.items()]
        entries = [entry._for(SimpleNamespace(name="extra-scores", version="1.2")) for entry in entries]
        monkeypatch.setattr(plugins, "installed", lambda group: entries if group == table.GROUP else [])
        caches_cleared()

    yield installed
    monkeypatch.undo()
    caches_cleared()


def test_an_installed_score_ranks_image_tokens(install):
    install(last="Last")
    check_score(Last)
    policy = read("{score: last}")
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()
    seen = []
    with apply_policy(model, policy) as handle:
        hook = model.get_decoder().layers[2].register_forward_hook(lambda *_: seen.append(handle.tokens.processed))
        run(model, inputs)
        hook.remove()
    assert seen[0].mask[0].nonzero().flatten().tolist() == [*range(8, 12)]


def test_scores_with_mistakes_are_refused_by_name(install):
    install(empty="Empty", norm="Last")
    with pytest.raises(PolicyError, match=f"{__name__}:Empty, from extra-scores 1.2, is no token score") as told:
        find_score("empty")
    assert {line.partition(":")[0] for line in told.value.details} >= {"meaning", "records", "scores"}
    with pytest.raises(PolicyError, match="the token score 'norm' exists 2 times"):
        find_score("norm")
    with pytest.raises(PolicyError, match="found 'last', expected 'attention', .*'empty'"):
        read("{score: last}")


def test_the_contract_finds_a_score_that_depends_on_the_batch():
    with pytest.raises(AssertionError, match="keeps other tokens alone"):
        check_score(Greedy)


def test_random_scores_are_the_same_in_every_process():
    places = torch.ones(1, TOKENS, dtype=torch.bool)
    tokens = ForwardTokens.read(places, None, None)
    found = scores_of(SCORES["random"], tokens, torch.zeros(1, TOKENS, 4), [5])
    assert found[0].tolist() == [slow_scores.hashed(number) for number in range(1, TOKENS + 1)]
    assert found.unique().numel() == TOKENS
