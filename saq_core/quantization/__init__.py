"""Quantizers, the layers that use them, and the functions that put them into a network."""

from .base import Quantizer, Stored, Unquantized, check_latent
from .calibration import calibrate
from .convert import SWAPS, Bits, copy_model, dequantize, find_layers, parse_bits, quantize
from .layers import QConv2d, QLinear
from .packing import KIND, SizeReport, export, unpack_
from .quantizers import LIQ, LSQ, PACT, QUANTIZERS, AsymmetricLSQ, DoReFa, LSQPlus, MinMax

__all__ = [
    "KIND",
    "LIQ",
    "LSQ",
    "PACT",
    "QUANTIZERS",
    "SWAPS",
    "AsymmetricLSQ",
    "Bits",
    "DoReFa",
    "LSQPlus",
    "MinMax",
    "QConv2d",
    "QLinear",
    "Quantizer",
    "SizeReport",
    "Stored",
    "Unquantized",
    "calibrate",
    "check_latent",
    "copy_model",
    "dequantize",
    "export",
    "find_layers",
    "parse_bits",
    "quantize",
    "unpack_",
]
