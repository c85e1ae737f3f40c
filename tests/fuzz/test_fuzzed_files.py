"""Random spaces and policies: each is read or refused, with no other exception and without taking long."""

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skipsearch.policies.errors import SkipsearchError
from skipsearch.policies.policy import Policy
from skipsearch.search.space.load import SPACES, validate_file

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
SECONDS = 2.0
POLICY = """schema: skipsearch/policy/v1
model: {id: some/model, revision: null, num_layers: 32}
layers:
  5: {token_ratio: 0.75}
  12: {attention: skip}
  13: {ffn: skip, tokens: image}
  20: {attention: skip, ffn: skip, phase: decode}
  21: {wiring: parallel}
token_selection: {score: attention, reselect: each_layer}
measured: {accuracy: {value: 0.6, dense: 0.7, stderr: 0.01, n: 200, split: report}}
provenance: {study: some, trial: 4, skipsearch: 0.1.0}
"""
TEXTS = [POLICY, *(file.read_text() for file in sorted(SPACES.glob("*.yaml")))]
# Words and numbers that some key takes, and those that none should.
WORDS = [
    *("schema", "skipsearch/space/v1", "skipsearch/policy/v1", "model", "id", "layers", "range", "choices", "keep"),
    *("skip_ffn", "skip_layer", "parallel", "token_ratio", "attention", "ffn", "tokens", "image", "phase", "decode"),
    *("evaluate", "accuracy", "flops", "latency", "tasks", "search", "report", "limit", "objectives", "maximize"),
    *("minimize", "constraints", ">= 0.9 * dense", "trials", "seed", "start", "workers", "count", "auto", "schedules"),
    *("interval", "fastv", "tied", "every", "forbid", "consecutive", "more_than", "schedule", "num_layers", "last"),
    *("all", "2-31", "2:5", "010", "0x1f", "1e9", ".inf", ".nan", "~", "true", "-1", "2001-01-01", "!!binary x", "&a"),
    *("*a", "<<", "? [1]", "\u202e", "\u2028", "\x07", "é", "{", "}", "[", "]", ":", "- ", "\n", "  ", "#", "'", '"'),
]
SCALARS = st.one_of(
    st.sampled_from(WORDS), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=8), st.dates()
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(WORDS) | st.integers(), inner, max_size=6)
    ),
    max_leaves=25,
)
pytestmark = pytest.mark.timeout(8 * 3600)  # as long as so many examples take
SLOW: list[tuple[float, str]] = []
FUZZED = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 300,
    suppress_health_check=[*HealthCheck],
)  # fmt: skip


def read(path: Path, text: str) -> None:
    """Every way in which the command line reads a file."""
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    for way in (validate_file, Policy.load):
        begun = time.process_time()
        try:
            way(path)
        except SkipsearchError as error:
            assert str(error)
        spent = time.process_time() - begun
        if spent > SECONDS:
            SLOW.append((spent, text))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file.yaml"


@FUZZED
@given(st.sampled_from(TEXTS), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 30), st.sampled_from(WORDS))))
def test_texts_with_parts_replaced(path, text, changes):
    for place, length, word in changes:
        start = place % (len(text) + 1)
        text = text[:start] + word + text[start + length :]
    read(path, text)


@FUZZED
@given(st.sampled_from(TEXTS), st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=5), DATA), max_size=4))
def test_values_replaced_by_others(path, text, changes):
    data = yaml.safe_load(text)
    for way, value in changes:
        put(data, way, value)
    read(path, yaml.safe_dump(data))


@FUZZED
@given(DATA, st.sampled_from(["skipsearch/space/v1", "skipsearch/policy/v1"]))
def test_data_of_any_shape(path, data, schema):
    whole = {"schema": schema, **data} if isinstance(data, dict) else {"schema": schema, "layers": data}
    read(path, yaml.safe_dump(whole, allow_unicode=True))


@FUZZED
@given(st.text(max_size=400))
def test_any_text(path, text):
    read(path, text)


def test_none_took_long():
    assert SLOW == []


def put(data: object, way: list[int], value: object) -> None:
    """Replace something inside: numbers lead to it, through mappings and lists."""
    for depth, number in enumerate(way):
        keys = list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
        if not keys:
            return
        key = keys[number % len(keys)]
        if depth == len(way) - 1:
            data[key] = value
        data = data[key]


@pytest.mark.soak
def test_many_more(path):
    """With FUZZ_EXAMPLES as `make soak` sets it, all of the above once more."""
    for check in (
        test_texts_with_parts_replaced, test_values_replaced_by_others, test_data_of_any_shape, test_any_text
    ):  # fmt: skip
        check(path)
    assert SLOW == []
