"""Training, evaluation, experiments by name, and the files that they leave."""

from .checkpoints import load, save
from .evaluation import Evaluation, batch_loss, brought_to, evaluate, evaluated
from .experiments import EXPERIMENTS, Experiment, reproduce
from .history import History
from .loop import train
from .optimizers import base_optimizer, parameter_groups
from .recipes import Recipe
from .steps import StopTraining, TrainingState
from .weights import WinQ
