"""A network, its data and its loss as one function of a displacement of its weights."""

from .batches import FOLDS, probe_of, rows_of
from .checks import BatchObjective
from .coordinates import Coordinates, Point, Space, coordinates, filter_norms, gaussian, quantized_layers
from .directions import (
    NORMALIZATIONS,
    checked_direction,
    combined,
    direction_to,
    eigenvector,
    fingerprint,
    principal_directions,
    random_direction,
    stacked,
)
from .network import BatchNorm, Precision
from .objective import Evaluation, Loss, Objective, Output, objective_of, stderr_of_mean

__all__ = [
    "BatchNorm",
    "BatchObjective",
    "Coordinates",
    "Evaluation",
    "FOLDS",
    "Loss",
    "NORMALIZATIONS",
    "Objective",
    "Output",
    "Point",
    "Precision",
    "Space",
    "checked_direction",
    "combined",
    "coordinates",
    "direction_to",
    "eigenvector",
    "filter_norms",
    "fingerprint",
    "gaussian",
    "objective_of",
    "probe_of",
    "principal_directions",
    "quantized_layers",
    "random_direction",
    "rows_of",
    "stacked",
    "stderr_of_mean",
]
