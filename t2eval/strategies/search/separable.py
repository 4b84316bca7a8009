"""Separable: CMA-ES with a diagonal covariance, for many coefficients; it learns faster than the full one, and not which go together.

Not in the paper.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from cmaes import SepCMA

from t2eval.strategies.search.base import Array
from t2eval.strategies.search.covariance import CovarianceAdaptation


class SeparableCovariance(CovarianceAdaptation):
    """Separable CMA-ES (package `cmaes`) in the box [0, 1]^D; arguments as `CovarianceAdaptation`."""

    NAME: ClassVar[str] = "sepcmaes"
    FORM: ClassVar[Any] = SepCMA

    @property
    def mean(self) -> Array:
        return np.clip(np.asarray(self._inner._mean, dtype=np.float64), 0.0, 1.0)  # this form has no public one

    @property
    def variances(self) -> Array:
        return np.asarray(self._inner._C)  # its covariance is the diagonal
