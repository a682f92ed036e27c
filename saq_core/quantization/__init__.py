"""Quantizers, the layers that use them, and the functions that put them into a network."""

from .base import Method, Quantizer, Stored, Unquantized, check_latent
from .calibration import calibrate
from .compensation import gptq
from .convert import Bits, copy_model, dequantize, find_ends, find_layers, parse_bits, quantize, quantized_form
from .layers import QConv2d, QLinear
from .packing import KIND, SizeReport, export, unpack_
from .quantizers import LIQ, LSQ, PACT, QUANTIZERS, AsymmetricLSQ, DoReFa, LSQPlus, MinMax, QuantizerName
