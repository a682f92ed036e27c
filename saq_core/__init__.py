"""Compact trainers for full-precision, quantized and sharpness-aware networks."""

from .calibration import calibrate
from .checkpoints import load, save
from .costs import Description, cost, describe
from .data import Data, load_data
from .experiments import reproduce
from .history import History
from .integers import SizeReport, export
from .layers import dequantize, quantize
from .mixed_precision import ASGA, SAMQ, Policy, search
from .models import build_model
from .perturbation import FPQ, distillation_loss, feature_noise
from .quantizers import LIQ, LSQ, PACT, AsymmetricLSQ, DoReFa, LSQPlus, MinMax
from .recipes import EXPERIMENTS, Experiment, Recipe
from .rises import FeatureRise, feature_rise
from .sam import SAM, SAQ
from .training import evaluate, train

__all__ = [
    # data and networks
    "Data",
    "load_data",
    "build_model",
    "describe",
    "Description",
    # quantization
    "LSQ",
    "LSQPlus",
    "AsymmetricLSQ",
    "PACT",
    "DoReFa",
    "LIQ",
    "MinMax",
    "quantize",
    "calibrate",
    "dequantize",
    # bits per layer
    "cost",
    "search",
    "Policy",
    "SAMQ",
    "ASGA",
    # training
    "SAM",
    "SAQ",
    "FPQ",
    "feature_noise",
    "distillation_loss",
    "feature_rise",
    "FeatureRise",
    "Recipe",
    "History",
    "train",
    "evaluate",
    "Experiment",
    "EXPERIMENTS",
    "reproduce",
    # files
    "save",
    "load",
    "export",
    "SizeReport",
]
