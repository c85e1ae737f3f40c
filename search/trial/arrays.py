"""Array types of policies, losses and costs."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int16]  # per variable, the index of its choice; 0 is the dense model's choice
