"""What `skipsearch init` says about the default configuration of each model type that transformers knows.

`python tests/search/init/model_types.py docs/reference/models.md` writes the page. It takes about a second of processor
time for each type that generates text. `--rows FILE` keeps what came of each type, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from skipsearch.evaluators.subject import ModelSpec
from skipsearch.policies.errors import ModelError, SkipsearchError
from skipsearch.search.init.allowed import OFFERED, OPTIONAL, PAIR, Allowed, allowed
from skipsearch.search.init.init import new_space
from skipsearch.search.init.proposal import Wishes
from skipsearch.search.init.small_model import silence, small_model

KEYS = (*(key for key in OFFERED if key != "skip_layer"), *OPTIONAL)
MISSING = "needs a package that is missing"
NO_DECODER = ("is no language model", "is an encoder with a decoder")


@dataclass
class Row:
    """What came of a model type.

    Attributes:
        type: The model type.
        outcome: `space`, `refused`, `no configuration` (none can be made without arguments), or `failed`.
        layers: The number of its layers.
        keys: By key, the share of its layers that offer it.
        images: True where token ratios are offered.
        reason: Why it was refused, or how it failed.
        needs: A package that is missing here.
    """

    type: str
    outcome: str
    layers: int = 0
    keys: dict[str, float] = field(default_factory=dict)
    images: bool = False
    reason: str = ""
    needs: str = ""


def outcome_of(kind: str, folder: Path) -> Row:
    """Save the default configuration of a model type to a folder, and propose a space for it."""
    with warnings.catch_warnings(), silence():
        warnings.simplefilter("ignore")
        try:
            config = CONFIG_MAPPING[kind]()
            config.save_pretrained(folder / kind)
        except Exception as cause:
            reason = f"it has no default configuration: {type(cause).__name__}: {cause}".splitlines()[0]
            return Row(kind, "no configuration", reason=reason)
        try:
            new = new_space(ModelSpec(id=str(folder / kind)), Wishes(), folder / f"{kind}.yaml")
        except SkipsearchError as cause:
            reason = "; ".join([cause.what, *cause.details[:1]]).replace(f"{folder / kind}", kind)
            row = Row(kind, "refused", reason=reason)
            if isinstance(cause, ModelError) and MISSING in cause.what:
                row.needs = cause.what.partition(": ")[2] or cause.details[0]
                return with_keys(row, config)
            return row
        except BaseException as cause:
            return Row(kind, "failed", reason=f"{type(cause).__name__}: {cause}")
    return found_in(Row(kind, "space"), new.found)


def with_keys(row: Row, config: transformers.PreTrainedConfig) -> Row:
    """The row of a type that needs a package for its processor: its layers can be tried without."""
    try:
        return found_in(row, allowed(small_model(config, row.type), row.type))
    except SkipsearchError:
        return row


def found_in(row: Row, found: Allowed) -> Row:
    """The row with what its layers allow."""
    row.layers = found.num_layers
    tried = {**found.offered, **found.optional}
    # The last layer begins no pair.
    layers = {key: len(one.layers) + (key == PAIR and bool(one.layers)) for key, one in tried.items()}
    row.keys = {key: layers[key] / found.num_layers for key in KEYS if key in tried}
    row.images = bool(found.selections)
    return row


def all_rows(kept: Path | None) -> list[Row]:
    """A row for each model type; those of a file are not made again."""
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    rows = {row["type"]: Row(**row) for row in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in sorted(set(CONFIG_MAPPING_NAMES) - {*rows}):
            rows[kind] = outcome_of(kind, Path(folder))
            if kept:
                with kept.open("a") as out:
                    out.write(json.dumps(asdict(rows[kind])) + "\n")
    return [rows[kind] for kind in sorted(rows)]


def tick(share: float | None) -> str:
    """A cell of the table."""
    return "–" if share is None else {0.0: "no", 1.0: "✓"}.get(share, f"{share:.0%} of layers")


def page(rows: list[Row]) -> str:
    """The page of documentation."""
    spaces = [row for row in rows if row.outcome == "space"]
    packages = [row for row in rows if row.needs]
    others = [row for row in rows if row.outcome != "space" and not row.needs]
    text = [HEAD.format(total=len(rows), version=transformers.__version__, spaces=len(spaces), packages=len(packages),
                        refused=len(others))]  # fmt: skip
    text += ["## Spaces", "", table(spaces), ""]
    text += ["## A package is missing", "", PACKAGES, "", table(packages, needs=True), ""]
    text += ["## Refused", "", "| model type | reason |", "| --- | --- |"]
    plain = [row for row in others if not any(words in row.reason for words in NO_DECODER)]
    text += [f"| `{row.type}` | {row.reason.replace('|', '/')} |" for row in plain]
    text += ["", "Not language models that decode, by the reason:", ""]
    grouped: dict[str, list[str]] = defaultdict(list)
    for row in others:
        for words in NO_DECODER:
            if words in row.reason:
                grouped[words].append(f"`{row.type}`")
    text += [f"- {words} ({len(kinds)}): {', '.join(kinds)}" for words, kinds in grouped.items()]
    return "\n".join(text) + "\n"


def table(rows: list[Row], needs: bool = False) -> str:
    """The rows of types whose layers were tried."""
    more = " needs |" if needs else ""
    head = f"| model type | layers | {' | '.join(KEYS)} |{more}"
    lines = [head, f"| --- | --: |{' :-: |' * len(KEYS)}" + (" --- |" if needs else "")]
    for row in rows:
        keys = [tick(row.keys.get(key)) if key != "token_ratio" or row.images else "–" for key in KEYS]
        cells = [f"`{row.type}`", str(row.layers or "–"), *keys, *([row.needs] if needs else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


HEAD = """# Model types

What `skipsearch init` says about the default configuration of each of the {total} model types of transformers
{version}: it writes a space that validates for {spaces}, names a missing package for {packages}, and refuses {refused}
with a reason.

A tick means that every layer allows the key: a small model of random weights was built from the configuration, and with
the choice in all its layers it ran, with a cache and without, to the same logits. A dash stands where a model has no
image tokens. `no` means that a choice changes nothing there, or does not run; the space has the reason as a comment.
`head_ratio`, `window` and `wiring: pair` stand in comments in the space. A checkpoint may differ from the default
configuration of its type: `skipsearch init MODEL` reads its own.

The page is written by

```bash
python tests/search/init/model_types.py docs/reference/models.md
```
"""
PACKAGES = (
    "These were refused on a machine without the package. Their layers were tried all the same, except where nothing\n"
    "of the model can be built without it."
)


def main() -> None:
    """Write the page, and print how many types came to which end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    rows = all_rows(options.rows)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(rows))
    print(json.dumps(Counter(row.outcome for row in rows)))


if __name__ == "__main__":
    main()
