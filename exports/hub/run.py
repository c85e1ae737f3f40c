"""Loads a policy's folder with its base model, runs it on prompts and saves the outputs; started in a fresh process."""

import argparse

import torch

from skipsearch.exports.checkpoint.run import outputs_of
from skipsearch.policies.pretrained import from_pretrained


def main() -> None:
    """Load a folder, run the prompts of a file and save the outputs to another."""
    parser = argparse.ArgumentParser()
    for name in ("folder", "prompts", "outputs", "base", "dtype", "attention"):
        parser.add_argument(name)
    given = parser.parse_args()
    model = from_pretrained(
        given.folder,
        base=given.base,
        dtype=getattr(torch, given.dtype),
        attn_implementation=given.attention or None,
    )
    torch.save(outputs_of(model, torch.load(given.prompts)), given.outputs)


if __name__ == "__main__":
    main()
