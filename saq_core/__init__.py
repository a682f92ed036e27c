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
