"""The space that a policy is measured on: the one that the command line names, or that of the policy's study."""

import argparse

from ..policies.errors import UsageError
from .options import parse_overrides
from .places import DATABASE, holds_study
from .space.load import load_space
from .space.space import Space
from .study.storage import space_of

TRUSTED = {"model.trust_remote_code=true", "model.weights=any"}  # overrides that need no `--space`


def evaluation_space(options: argparse.Namespace) -> Space:
    """The space to measure on: the given one, or that of the study whose folder holds the policy file.

    Raises:
        UsageError: there is none.
    """
    if options.space:
        return load_space(options.space, parse_overrides(options.overrides)).space
    if {*options.overrides} - TRUSTED:
        raise UsageError("--set changes a space, and none is given", hint="name the space with --space")
    folder = options.policy.resolve().parent.parent
    if not holds_study(folder):
        hint = f"name a space, as in `skipsearch {options.command} {options.policy} --space digits`"
        raise UsageError("no space to measure on is given", [f"{options.policy} is in no study's folder"], hint)
    return space_of(folder / DATABASE)
