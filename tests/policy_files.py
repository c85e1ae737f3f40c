"""Policy files of one test, and what is said of them."""

from pathlib import Path

import pytest

from skipsearch import Policy
from skipsearch.policies.errors import PolicyError

HEAD = "schema: skipsearch/policy/v1\n"


def load(tmp_path: Path, text: str | bytes) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Policy.load(path)


def complaint(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(PolicyError) as failure:
        load(tmp_path, text)
    return str(failure.value).replace(f"{tmp_path}/", "")
