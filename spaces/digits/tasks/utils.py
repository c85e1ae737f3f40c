"""What the lm-eval tasks need beside their YAML.

lm-eval imports this file by its path, so it imports nothing of ours.
"""

from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset


def load(**_: object) -> dict[str, Dataset]:
    """Load both splits from beside this file, wherever the repository lies; lm-eval's metadata is not needed."""
    here = Path(__file__).parent
    return {split: Dataset(pq.read_table(here / f"{split}.parquet")) for split in ("search", "report")}


def doc_to_image(doc: dict) -> list:
    """Return the pictures of a question; lm-eval wants a list."""
    return [doc["image"]]
