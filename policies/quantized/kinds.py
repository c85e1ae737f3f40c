"""The names of what a decoder's weights can be quantised to."""

from typing import Final, Literal, get_args

# `int8`: each row of a matrix as 8-bit integers and one scale, without activations (torchao's Int8WeightOnlyConfig).
Quantization = Literal["none", "int8"]
NONE: Final = "none"
INT8: Final = "int8"
QUANTIZED: Final = frozenset(get_args(Quantization)) - {NONE}
