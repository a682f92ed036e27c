"""A network, its data and its loss as one function of a displacement of its weights."""

from .batches import FOLDS, rows_of
from .coordinates import Coordinates, Point, coordinates, filter_norms, gaussian, quantized_layers
from .directions import (
    NORMALIZATIONS,
    centre_fingerprint,
    checked_direction,
    combined,
    direction_to,
    eigenvector,
    fingerprint,
    principal_directions,
    random_direction,
    stacked,
)
from .objective import BatchObjective, Evaluation, Loss, Objective, stderr_of_mean

__all__ = [
    "BatchObjective",
    "Coordinates",
    "Evaluation",
    "FOLDS",
    "Loss",
    "NORMALIZATIONS",
    "Objective",
    "Point",
    "centre_fingerprint",
    "checked_direction",
    "combined",
    "coordinates",
    "direction_to",
    "eigenvector",
    "filter_norms",
    "fingerprint",
    "gaussian",
    "principal_directions",
    "quantized_layers",
    "random_direction",
    "rows_of",
    "stacked",
    "stderr_of_mean",
]
