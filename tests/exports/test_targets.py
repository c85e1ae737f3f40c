"""The contract of export targets: for every choice, what is written computes the same, or it is refused by name.

Each target is read back in this process, by what its tool reads. That the tools load the same files in processes of
their own is shown in the tests of each target.
"""

from __future__ import annotations

import json
import random
from importlib.util import find_spec

import pytest
import torch
from contract import CHOICES, policy_of
from support import refused
from tiers import soak

from families import FAMILIES, LAYERS, REFUSED, batch_of, built
from skipsearch import Policy, apply_policy
from skipsearch.exports.checkpoint import run
from skipsearch.exports.gguf import read_back
from skipsearch.exports.graph.run import TOOLS, outputs_of
from skipsearch.exports.reference import Reference
from skipsearch.exports.registry import OWN, target_class
from skipsearch.exports.target import Source, count_choices

# Llama's layer; windows and norms after sublayers; experts; a parallel residual; no gated FFN; images.
SOME = ("llama", "qwen3", "gemma3", "mixtral", "neox", "gpt2", "llava", "qwen2.5-vl")
GRAPHS = ("torch-export", "onnx", "openvino")
TEXTS = ("mergekit", "llm-drop", "evopress", "swift")
ACCEPTED = 1e-4


def cases():
    """Every target with some families; plain checkpoints with all of them, and in `make exports` each with each."""
    for target in OWN:
        for family in FAMILIES:
            # A hub's folder is the policy and its card, whatever the family.
            families = SOME[-1:] if target == "hub" else SOME
            quick = target == "hf" or (family in families and target not in GRAPHS)
            yield (target, family) if quick else soak(target, family)


def kinds(family: str):
    """Every choice that the family can run, once."""
    images = FAMILIES[family].image_tokens > 0
    every = [choice for choices in CHOICES.values() for choice in choices]
    every = [choice for choice in every if images or not {"tokens", "token_ratio"} & {*choice}]
    return [choice for choice in every if not any(refused(family, layer, choice) for layer in range(1, LAYERS - 1))]


def source_of(family: str, target: str, folder) -> Source:
    """The model, with a prompt of text and, where the tool takes images and the dense model answers, rows with them."""
    model = built(family, "eager" if (family, "sdpa") in REFUSED else "sdpa")
    layouts = ("text",) if target in (*GRAPHS, "gguf") or family == "phi4-multimodal" else ("text", "ragged")
    return Source(model, prompts=[batch_of(family, layout).padded() for layout in layouts], id=str(folder / "base"))


def read_checkpoint(folder, reference, source):
    model = run.load(str(folder), reference.kind, True, "float32", reference.attention)
    return run.outputs_of(model, reference.prompts)


def read_vllm(folder, reference, source):
    """The dense model in the folder, under the policy that its configuration names."""
    model = run.load(str(folder), reference.kind, False, "float32", reference.attention)
    with apply_policy(model, policy_of(json.loads((folder / "config.json").read_text())["skipsearch"]["layers"])):
        return run.outputs_of(model, reference.prompts)


def read_hub(folder, reference, source):
    with apply_policy(source.model, Policy.from_pretrained(str(folder))):
        return run.outputs_of(source.model, reference.prompts)


def read_gguf(folder, reference, source):
    model = read_back.load(str(folder / "model.gguf"), torch.float32, reference.attention)
    return run.outputs_of(model, reference.prompts)


def read_graph(name):
    def read(folder, reference, source):
        graph = TOOLS[name](str(folder / target_class(name).file))
        return [outputs_of(graph, prompt, run.NEW_TOKENS) for prompt in reference.prompts]

    return read


READERS = {
    "hf": read_checkpoint,
    "hf-remote": read_checkpoint,
    "vllm": read_vllm,
    "gguf": read_gguf,
    "hub": read_hub,
    **{name: read_graph(name) for name in GRAPHS},
}


def test_every_target_is_read_back():
    assert {*READERS, *TEXTS} == {*OWN}


@pytest.mark.parametrize(("name", "family"), [*cases()])
def test_what_is_written_computes_the_same_or_is_refused_by_name(name, family, tmp_path, monkeypatch):
    monkeypatch.setattr("skipsearch.exports.vllm.target.require_vllm", lambda python: None)
    if missing := [package for package in getattr(target_class(name), "packages", ()) if find_spec(package) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    target, source = target_class(name)(), source_of(family, name, tmp_path)
    of_model = target.can(Policy(), source)
    allowed = []
    for choice in kinds(family):
        policy = policy_of({1: choice})
        reasons = target.can(policy, source)
        assert {*of_model} <= {*reasons}
        if not reasons:
            allowed.append(choice)
        elif not of_model:
            (label,) = count_choices(policy)
            assert any(label in reason for reason in reasons), (choice, reasons)
    if of_model:
        return
    weights = {key: value.clone() for key, value in source.model.state_dict().items()}
    for number, policy in enumerate(policies(target, source, allowed, family)):
        folder = tmp_path / str(number)
        folder.mkdir()
        reference = Reference.of(policy, source)
        target.write(policy, source, folder)
        assert all(torch.equal(value, weights[key]) for key, value in source.model.state_dict().items())
        if name in TEXTS:
            assert target.check(folder, reference) == 0
        else:
            difference = reference.difference(READERS[name](folder, reference, source))
            assert difference <= ACCEPTED, f"{difference} under\n{policy.to_yaml()}"


def policies(target, source, allowed, family):
    """As few policies as have all allowed choices, some of them side by side."""
    left = [*allowed]
    random.Random(f"{target.name} {family}").shuffle(left)
    while left:
        together = dict(zip(range(1, LAYERS - 1), left, strict=False))
        pairs = sum(choice.get("wiring") == "pair" for choice in together.values())
        if pairs > 1 or target.can(policy_of(together), source):
            together = {1: left[0]}
        yield policy_of(together)
        left = left[len(together) :]
