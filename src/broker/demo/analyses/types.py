"""The types of an analysis, its picture and its result."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = NDArray[np.int32]
ReportProgress: TypeAlias = Callable[[float, str], None]
"""Called with the progress, 0 to 1, and a message."""
Result: TypeAlias = dict[str, Any]
Analysis: TypeAlias = Callable[[Image, ReportProgress], Result]
