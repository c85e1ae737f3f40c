"""Write the fixed questions that a search and its report use: `python -m skipsearch.spaces.digits.questions`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from . import data

TASKS = Path(__file__).parent / "tasks"
SCENES = {"search": 100, "report": 200}
SEEDS = {"search": 101, "report": 202, "train": 303}
FEATURES = Features(
    {
        "image": Image(),
        "question": Value("string"),
        "answer": Value("string"),
        "kind": Value("string"),
        "scene": Value("string"),
    }
)


def build(split: str, scenes: int | None = None, strength: float = 1.0) -> Dataset:
    """Draw the scenes of a split and ask one question of each kind about every scene.

    Args:
        split: The pool of digits: `search`, `report` or `train`.
        scenes: How many scenes; those of the fixed questions when not given.
        strength: See `data.render`.

    Any five rows in a row hold all five kinds, and a scene comes back only after all others were asked about, so that
    every prefix of the rows is balanced and as varied as it can be.
    """
    rng = np.random.default_rng(SEEDS[split])
    labels = data.draw_labels(rng, scenes or SCENES[split])
    images = [_png(scene.numpy()) for scene in data.render(data.digit_pools()[split], labels, rng, strength)]
    kinds = list(data.KINDS)
    rows = []
    for turn in range(len(kinds)):
        for index, scene in enumerate(labels):
            coin = (index // len(kinds) + turn) % 2 == 0
            question = data.ask(kinds[(index + turn) % len(kinds)], scene, rng, coin)
            rows.append(
                {
                    "image": {"bytes": images[index], "path": None},
                    "question": question.text,
                    "answer": question.answer,
                    "kind": question.kind,
                    "scene": f"{split}-{index:03d}",
                }
            )
    return Dataset.from_list(rows, features=FEATURES)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def write(folder: Path) -> None:
    """Write `search.parquet` and `report.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SCENES:
        # One dictionary page for all rows: the picture of a scene is then stored once, not once a question.
        table = build(split).with_format("arrow")[:]
        pq.write_table(table, folder / f"{split}.parquet", dictionary_pagesize_limit=2**26, compression="zstd")


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TASKS, help="folder of the parquet files")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
