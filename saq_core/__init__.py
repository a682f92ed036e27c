"""Compact trainers for full-precision, quantized and sharpness-aware networks."""

from .calibration import calibrate
from .checkpoints import load, save
from .data import Data, load_data
from .layers import dequantize, quantize
from .models import build_model
from .quantizers import LIQ, LSQ
from .sam import SAM, SAQ
from .training import History, Recipe, evaluate, train

__all__ = [
    # data and networks
    "Data",
    "load_data",
    "build_model",
    # quantization
    "LIQ",
    "LSQ",
    "quantize",
    "calibrate",
    "dequantize",
    # training
    "SAM",
    "SAQ",
    "Recipe",
    "History",
    "train",
    "evaluate",
    # files
    "save",
    "load",
]
