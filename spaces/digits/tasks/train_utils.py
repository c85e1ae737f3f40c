"""The training questions of `digits_train.yaml`; needs scikit-learn, for its handwritten digits."""

from datasets import Dataset

from skipsearch.spaces.digits.questions import build
from skipsearch.spaces.digits.tasks.utils import load as load_fixed

STRENGTH = 2.0  # digits are turned and thickened more than in test scenes, as in `spaces/digits/train.py`


def load(scenes: int = 800, **_: object) -> dict[str, Dataset]:
    """Draw the training questions, five for each scene, beside the fixed splits."""
    return {**load_fixed(), "train": build("train", scenes, STRENGTH)}
