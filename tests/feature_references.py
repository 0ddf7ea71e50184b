"""References and samples made of arrays of features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fleetstep.evaluation.metrics import Gaussian
from fleetstep.evaluation.moments import Moments
from fleetstep.evaluation.reference import Reference, kept_ids

Rows = npt.NDArray[np.floating]


def reference_of(features_nD: Rows, name: str = "real") -> Reference:
    """A reference of real images with these features, as a sweep would keep it."""
    moments = Moments.of(features_nD)
    kept_mD = features_nD[kept_ids(len(features_nD))]
    return Reference(name, Gaussian.of(moments), moments.digest(), moments.n, kept_mD)


def on_grid(rows: Rows) -> npt.NDArray[np.float32]:
    """Rounded to multiples of 2^-8: float32 features which the moments hold exactly."""
    return (np.rint(rows * 256) / 256).astype(np.float32)
