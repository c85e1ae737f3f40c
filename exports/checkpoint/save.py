"""Writing the files of a checkpoint."""

import copy
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from ..target import Source


def save_checkpoint(source: Source, state: dict[str, Tensor], config: PreTrainedConfig, folder: Path) -> None:
    """Write tensors under the names that transformers' own checkpoints use, a configuration and the tokenizer.

    The model itself stays as it is.
    """
    model = source.model
    # `save_pretrained` writes the dtype and the architecture into the model's own configuration.
    model.save_pretrained(folder, state_dict=dict(state))
    written = copy.deepcopy(config)
    written.dtype, written.architectures = model.config.dtype, model.config.architectures
    written.save_pretrained(folder)
    if source.processor is not None:
        source.processor.save_pretrained(folder)
