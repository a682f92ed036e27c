"""A network, its data and its loss as one function of a displacement of its weights."""

from .adapters import is_plain, quantized_layers
from .arguments import load_state, objective_of, recentred
from .batches import FOLDS, generators_of, iterated_apart, mapped, moved, probe_of, samples_of
from .checks import call_by_name, call_of
from .coordinates import Coordinates, Point, Space, coordinates, filter_norms, gaussian, generator
from .criterion import BatchObjective, Criterion
from .directions import (
    NAMES,
    NORMALIZATIONS,
    checked_direction,
    describe,
    eigenvector,
    fingerprint,
    plane_of,
    principal_directions,
    random_axis,
    random_direction,
    resolve_directions,
    stacked,
    step_to,
)
from .errors import translated
from .evaluation import Evaluation, merged, stderr_of_mean
from .losses import BatchLoss, Loss, Output, check_default_fits
from .measuring import copied, measurement_mode
from .network import BatchNorm, Precision
from .objective import Objective
from .replay import Replay, columns
from .walking import Along
