"""Writing the files of a checkpoint."""

import copy
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from ..target import Source


def save_checkpoint(
    source: Source, state: dict[str, Tensor], config: PreTrainedConfig, folder: Path, *, modelling: str | None = None
) -> None:
    """Write tensors, a configuration and the tokenizer. The model itself stays as it is.

    Args:
        source: The model.
        state: Its tensors by name in `state_dict`. They are written under the names of transformers' own checkpoints,
            or under these names where a modelling file reads them: transformers translates for its own classes alone.
        config: The configuration.
        folder: Where to write.
        modelling: The class in a modelling file that reads the tensors; None where transformers' own class does.
    """
    model = source.model
    # `save_pretrained` writes the dtype and the architecture into the model's own configuration.
    model.save_pretrained(folder, state_dict=dict(state), save_original_format=modelling is None)
    written = copy.deepcopy(config)
    written.dtype = model.config.dtype
    written.architectures = model.config.architectures if modelling is None else [modelling]
    written.save_pretrained(folder)
    if source.processor is not None:
        source.processor.save_pretrained(folder)
