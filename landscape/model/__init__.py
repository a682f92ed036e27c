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
