"""Training, evaluation, experiments by name, and the files that they leave."""

from .checkpoints import load, save
from .experiments import EXPERIMENTS, Experiment, reproduce
from .groups import parameter_groups
from .history import History
from .loop import Evaluation, base_optimizer, evaluate, train
from .recipes import Recipe
