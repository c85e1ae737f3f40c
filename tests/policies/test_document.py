"""What a YAML document may not be, whatever it is for."""

from __future__ import annotations

import time

import pytest
from policy_files import HEAD, complaint, load

from skipsearch import Policy
from skipsearch.policies.document import MAX_BYTES
from skipsearch.policies.errors import PolicyError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("layers:\n  5: {ffn: skip}\n  5: {ffn: skip}\n", "policy.yaml:4:3"),
        ("layers: {1: {ffn: skip, ffn: run}}\n", "policy.yaml:2:25"),
        ("layers: {}\nlayers: {}\n", "policy.yaml:3:1"),
        ("layers: {5: {}, '5': {}}\n", "policy.yaml:2:17"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text, place, tmp_path):
    told = complaint(tmp_path, HEAD + text)
    assert place in told and "duplicate key" in told


def test_aliases_may_be_used(tmp_path):
    policy = load(tmp_path, HEAD + "layers:\n  1: &off {ffn: skip}\n  2: *off\n")
    assert policy == Policy.model_validate({"layers": {1: {"ffn": "skip"}, 2: {"ffn": "skip"}}})


NESTED = "\n".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9 if n else ['x'] * 9)}]" for n in range(9))


@pytest.mark.parametrize(
    "text",
    [
        NESTED,
        "layers: &a {1: *a}\n",
        f"x: {'[' * 5000}",
        f"x: {'{a: ' * 300}1{'}' * 300}",
        b"layers: {1: {ffn: \xff\xfe}}",
        "#" * MAX_BYTES + "\n",
        "layers: {1: {ffn: skip}\n",
        "\tlayers: {}\n",
        "- layers\n",
        "",
        "layers: {}\n---\nlayers: {}\n",
        "layers: !!python/object/apply:os.abort []\n",
        "layers: {[1, 2]: {}}\n",
        "null: 1\ntrue: 2\n1.5: 3\n",
        "layers: {1: {ffn: \x01}}\n",
    ],
    ids=range(15),
)
def test_what_is_no_policy_is_refused_quickly_and_by_name(text, tmp_path):
    before = time.perf_counter()
    told = complaint(tmp_path, text)
    assert time.perf_counter() - before < 5
    assert told.startswith("policy.yaml") and len(told) < 2000


def test_a_file_that_is_not_there_is_told(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(PolicyError, match=str(path)):
            Policy.load(path)
