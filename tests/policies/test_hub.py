"""Policies in folders and repositories: what is saved is loaded, cards parse, and what is broken is named."""

from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import skipsearch
import tiny
from skipsearch import Policy, applied_policy, apply_policy
from skipsearch.exports.export import export
from skipsearch.exports.registry import target_class
from skipsearch.exports.target import Source
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import ExportError, HubError, ModelError, PolicyError, PolicyMismatch
from skipsearch.policies.metadata import Measured, ModelRef

HUB = ModelRef(id="org/base", revision="abc", num_layers=4)
SKIPPED = {1: CHOICES["parallel"], 2: LayerChoice(attention="skip", phase="decode"), 3: CHOICES["skip_ffn"]}
MEASURED = {"accuracy": Measured(value=0.6, dense=0.65, split="report"), "prefill_flops": Measured(value=1e9)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.tiny_llama(tmp_path_factory.mktemp("llama"))


def policy_of(model=HUB, layers=SKIPPED):
    return Policy(model=model, layers=layers, measured=MEASURED)


def test_a_folder_holds_the_policy_and_a_card_that_the_hub_reads(tmp_path):
    policy = policy_of()
    policy.save_pretrained(tmp_path / "new" / "folder")
    policy.save_pretrained(tmp_path / "new" / "folder")
    assert Policy.from_pretrained(tmp_path / "new" / "folder") == policy
    card = ModelCard.load(tmp_path / "new" / "folder" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "skipsearch",
        "tags": ["skipsearch", "layer-skipping"],
        "base_model": "org/base",
        "base_model_relation": "adapter",
    }
    for line in ("| accuracy | 0.6 | 0.65 | report |", "| prefill_flops | 1000000000 |  |  |", "- revision: abc",
                 "- parallel: 1 layer", f"- fingerprint {policy.fingerprint}",
                 'model = skipsearch.from_pretrained("REPOSITORY")'):  # fmt: skip
        assert line in card.text


def test_a_card_says_what_is_known_alone(tmp_path):
    Policy(layers={1: LayerChoice(token_ratio=0.5)}).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.base_model is None
    assert "base=MODEL" in card.text and "## Figures" not in card.text and "- not named" in card.text


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "there is no folder"),
        (lambda folder: folder.write_text("x"), "is a file"),
        (lambda folder: folder.mkdir(), "found nothing, expected policy.yaml"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").touch()), "found a.txt, expected policy.yaml"),
    ],
)
def test_broken_folders_are_named(tmp_path, make, expected):
    make(tmp_path / "folder")
    with pytest.raises(HubError, match=expected) as caught:
        Policy.from_pretrained(tmp_path / "folder")
    assert caught.value.hint


def test_mistakes_in_the_policy_have_their_places(tmp_path):
    (tmp_path / "policy.yaml").write_text("schema: skipsearch/policy/v1\nlayers: {1: {fnn: skip}}\n")
    with pytest.raises(PolicyError, match=r"policy.yaml:2:14  layers\[1\].fnn: unknown key"):
        Policy.from_pretrained(tmp_path)
    with pytest.raises(HubError, match="found the revision 'v1'"):
        Policy.from_pretrained(tmp_path, "v1")


def test_a_readme_that_is_no_card_of_a_policy_is_not_replaced(tmp_path):
    for text in ("# My model\n", "---\nlibrary_name: transformers\n---\n", "---\n{\n---\n"):
        (tmp_path / "README.md").write_text(text)
        with pytest.raises(HubError, match="is no card of a policy"):
            policy_of().save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == text


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository, `user/policy`, with the revision `v1`."""
    policy_of().save_pretrained(tmp_path / "repository")
    asked = []

    def download(repository, name, revision=None):
        asked.append((repository, name, revision))
        response = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co"))
        if repository == "user/offline":
            raise LocalEntryNotFoundError("offline")
        if repository == "user/slow":
            raise OSError("the connection broke\nlong story")
        if repository != "user/policy":
            kind = RemoteEntryNotFoundError if repository == "user/model" else RepositoryNotFoundError
            raise kind("not found", response=response)
        if revision not in (None, "v1"):
            raise RevisionNotFoundError("no revision", response=response)
        return str(tmp_path / "repository" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_a_repository_gives_its_policy_at_a_revision(hub):
    assert Policy.from_pretrained("user/policy") == Policy.from_pretrained("user/policy", revision="v1") == policy_of()
    assert hub == [("user/policy", "policy.yaml", None), ("user/policy", "policy.yaml", "v1")]


@pytest.mark.parametrize(
    ("repository", "revision", "expected"),
    [
        ("user/policy", "v2", "user/policy has no revision v2"),
        ("user/model", None, "user/model holds no policy"),
        ("user/nowhere", "v1", "no folder and no repository user/nowhere"),
        ("user/offline", None, "the hub cannot be reached for user/offline"),
        ("user/slow", None, "user/slow cannot be read\n  the connection broke\n"),
        ("./user/policy", None, "there is no folder ./user/policy"),
        ("a/b/c", None, "there is no folder a/b/c"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_hint(hub, repository, revision, expected):
    with pytest.raises(HubError) as caught:
        Policy.from_pretrained(repository, revision)
    assert expected in str(caught.value) and caught.value.hint


def test_a_push_creates_the_repository_and_uploads_policy_and_card(monkeypatch):
    seen = {}

    class Commit:
        commit_url = "https://huggingface.co/user/policy/commit/1"

    def upload(**given):
        folder = Path(given["folder_path"])
        seen.update(given, files=sorted(file.name for file in folder.iterdir()), policy=Policy.from_pretrained(folder))
        return Commit

    monkeypatch.setattr("huggingface_hub.create_repo", lambda name, **given: seen.update(created=name, **given))
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    policy = policy_of()
    assert policy.push_to_hub("user/policy", private=True) == Commit.commit_url
    assert seen["created"] == seen["repo_id"] == "user/policy" and seen["private"] and seen["exist_ok"]
    assert seen["files"] == ["README.md", "policy.yaml"] and seen["policy"] == policy
    assert policy.fingerprint in seen["commit_message"]


def test_a_push_that_others_could_not_load_or_that_the_hub_refuses_is_named(monkeypatch, tmp_path):
    for model in (ModelRef(), ModelRef(id=str(tmp_path))):
        with pytest.raises(HubError, match="names no model that others can load"):
            policy_of(model).push_to_hub("user/policy")

    def refuse(*given, **more):
        raise OSError("401 unauthorised")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    with pytest.raises(HubError, match="401 unauthorised"):
        policy_of().push_to_hub("user/policy")


# The base model with its policy


def saved(tmp_path, model, layers=SKIPPED):
    policy_of(model, layers).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def test_from_pretrained_gives_the_base_model_under_the_policy(tmp_path, llama):
    folder = saved(tmp_path, ModelRef(id=str(llama), num_layers=4))
    model = skipsearch.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    assert not model.training and model.dtype == torch.float64 and model.config._attn_implementation == "eager"
    assert applied_policy(model).policy == policy_of(ModelRef(id=str(llama), num_layers=4))
    dense = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64, attn_implementation="eager").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found = model(ids).logits
        with apply_policy(dense, policy_of()):
            assert torch.equal(found, dense(ids).logits)
        applied_policy(model).remove()
        assert torch.equal(model(ids).logits, dense(ids).logits)


def test_a_model_that_takes_images_has_its_own_auto_class(tmp_path):
    llava = tiny.tiny_llava(tmp_path)
    folder = saved(tmp_path, ModelRef(num_layers=4), {1: LayerChoice(token_ratio=0.5)})
    model = skipsearch.from_pretrained(folder, base=llava)
    assert type(model) is type(AutoModelForImageTextToText.from_pretrained(llava))


def test_the_base_model_is_loaded_at_the_revision_of_the_policy(tmp_path, monkeypatch):
    asked = []

    def load(name, **given):
        asked.append((name, given.get("revision")))
        raise OSError("no network\nmore")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", load)
    folder = saved(tmp_path, HUB)
    with pytest.raises(ModelError, match="the base model org/base at revision abc cannot be loaded\n  OSError: no net"):
        skipsearch.from_pretrained(folder)
    with pytest.raises(ModelError):
        skipsearch.from_pretrained(folder, base=tmp_path)
    assert asked == [("org/base", "abc"), (str(tmp_path), None)]


def test_another_base_model_is_refused(tmp_path, llama):
    with pytest.raises(PolicyMismatch, match="the policy was made for org/base\n  found base='org/other'"):
        skipsearch.from_pretrained(saved(tmp_path, HUB), base="org/other")
    with pytest.raises(PolicyMismatch, match="policy was made for 5 layers, model has 4"):
        skipsearch.from_pretrained(saved(tmp_path, ModelRef(num_layers=5)), base=llama)
    with pytest.raises(HubError, match="the policy names no base model"):
        skipsearch.from_pretrained(saved(tmp_path, ModelRef()))
    with pytest.raises(ModelError, match="cannot be loaded"):
        skipsearch.from_pretrained(saved(tmp_path, HUB), base=tmp_path / "empty")


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path, llama):
    model = AutoModelForCausalLM.from_pretrained(llama)
    state = {key: value for key, value in model.state_dict().items() if "layers.2.mlp.up" not in key}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(ModelError, match="lacks 1 tensors\n  model.layers.2.mlp.up_proj.weight"):
        skipsearch.from_pretrained(saved(tmp_path, ModelRef()), base=tmp_path / "part")


def test_a_policy_needs_no_torch_to_be_saved_and_loaded(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from skipsearch import Policy; p = Policy(layers={1: {'ffn': 'skip'}}); "
        f"p.save_pretrained({str(tmp_path)!r}); Policy.from_pretrained({str(tmp_path)!r}); "
        "print(*{'torch', 'transformers', 'huggingface_hub'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# The export target


def test_the_target_hub_writes_the_folder_and_loads_it_in_a_fresh_process(tmp_path, llama):
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    policy = policy_of(HUB, {**SKIPPED, 0: CHOICES["skip_attention"]})
    done = export(policy, Source(model, id=str(llama)), target_class("hub")(), tmp_path / "out")
    assert done.difference == 0
    assert Policy.from_pretrained(tmp_path / "out") == policy
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.base_model, data.base_model_relation, data.pipeline_tag) == ("org/base", "adapter", "text-generation")


def test_the_target_hub_refuses_another_model_and_one_without_a_name(tmp_path, llama):
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    target = target_class("hub")()
    for source, expected in ((Source(model, id="org/other"), "org/base"), (Source(model), "neither")):
        with pytest.raises(ExportError, match=expected):
            export(policy_of(), source, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    noted = target.write(policy_of(ModelRef()), Source(model, id=str(llama)), tmp_path)
    assert "name one of the hub in policy.yaml before you upload it" in noted[1]
