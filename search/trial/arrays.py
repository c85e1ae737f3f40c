"""Types of the arrays that candidates and their figures are held in."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int16]  # by variable, the number of its choice; 0 is what dense does
