"""The file of a ranking, as far as it is bytes: its SHA-256 and its content. It loads nothing heavy."""

import hashlib
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ..errors import PolicyError

# What is ranked by energy: the channels of FFNs, or the groups of heads of attentions.
Noun: TypeAlias = Literal["channels", "heads"]
ALPHA: Final = 0.9  # the weight of a channel's highest energy; see `energy.ChannelEnergy`
EXAMPLES: Final = 128  # as many texts as CAMERA ranks channels on
HINT: Final = "copy the file that lies beside the policy, or make one for this model with `skipsearch rank`"


def digest(content: bytes) -> str:
    """The SHA-256 of a file, by which policies name it."""
    return hashlib.sha256(content).hexdigest()


def checked_content(file: Path, sha256: str) -> bytes:
    """The content of a file that a policy names.

    Raises:
        PolicyError: it is missing, cannot be read, or has another SHA-256.
    """
    try:
        content = file.read_bytes()
    except OSError as cause:
        found = f"{cause.strerror}, expected a file with SHA-256 {sha256}"
        raise PolicyError(f"the ranking {file} cannot be read", [found], HINT) from None
    if digest(content) != sha256:
        found = f"found SHA-256 {digest(content)}, expected {sha256}"
        raise PolicyError(f"{file} is another ranking than its policy's", [found], HINT)
    return content
