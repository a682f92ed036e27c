"""Compact trainers for full-precision, quantized and sharpness-aware networks."""

from .costs import Description, cost, describe
from .data import Data, load_data
from .fpq import FPQ, FeatureRise, distillation_loss, feature_noise, feature_rise
from .mixed_precision import ASGA, SAMQ, Policy, search
from .models import build_model
from .quantization import (
    LIQ,
    LSQ,
    PACT,
    AsymmetricLSQ,
    DoReFa,
    LSQPlus,
    MinMax,
    SizeReport,
    calibrate,
    dequantize,
    export,
    quantize,
)
from .sharpness import SAM, SAQ
from .training import EXPERIMENTS, Experiment, History, Recipe, evaluate, load, reproduce, save, train

# fmt: off
__all__ = [
    "Data", "load_data", "build_model", "describe", "Description",
    "LSQ", "LSQPlus", "AsymmetricLSQ", "PACT", "DoReFa", "LIQ", "MinMax", "quantize", "calibrate", "dequantize",
    "cost", "search", "Policy", "SAMQ", "ASGA",
    "SAM", "SAQ", "FPQ", "feature_noise", "distillation_loss", "feature_rise", "FeatureRise",
    "Recipe", "History", "train", "evaluate", "Experiment", "EXPERIMENTS", "reproduce",
    "save", "load", "export", "SizeReport",
]
# fmt: on
