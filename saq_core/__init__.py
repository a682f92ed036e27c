"""Compact trainers for full-precision, quantized and sharpness-aware networks.

    data = saq_core.load_data("digits")
    model = saq_core.build_model("resnet8", data)
    saq_core.train(model, data, saq_core.Recipe(epochs=15, lr=0.1))
    quantized = saq_core.calibrate(saq_core.quantize(model, "W4A4"), data)
    saq_core.train(quantized, data, saq_core.Recipe(epochs=5, lr=0.02, sam=saq_core.SAQ()))

Where to look: `quantization` (quantizers, layers, `quantize`), `sharpness` (`SAM`), `training` (the loop, recipes,
experiments, files), `data`, `fpq` (feature noise and distillation), `mixed_precision` (`search`), `costs`, `models`.

To quantize in a way of your own, pass ``quantize(model, quantizer=MyQuantizer)`` a subclass of `Quantizer`, or two, one
for weights and one for activations, with

    _add_state      the parameters or buffers of its range (a step, a clip), of the shape `self.shape`
    _set_range_     set them from the ends (low, high) of the values, which calibration finds
    _quantize       x -> levels in the units of x, of `round_ste`, `clip` and `scale_gradient`: no custom autograd
                    function, so that second derivatives and torch.compile work (quantization/functional.py has them)
    step_size       the distance between neighbouring levels, without gradient, broadcastable to x

and class attributes where they differ from the base class: `smallest_signed_bits`, `two_ended` (the range has a lower
end of its own), `dynamic` (the range of weights is recomputed in every forward pass), `method` (of calibration). It is
made with (bits, signed=, shape=, activation=); weights come with their filters along dimension 0. Layers, calibration,
SAM, costs and files then know it; a file keeps its name alone, so that `load` needs a network quantized alike. To give
it a name for all, add it to quantization/quantizers.py, `QuantizerName` and `QUANTIZERS`: tests/test_quantizers.py and
tests/test_family.py then try it.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

from landscape.checking import check_public
from landscape.parallel import check_agreement

from .costs import Description, cost, describe
from .data import Data, load_data
from .fpq import FPQ, FeatureNoisePenalty, distillation_loss, feature_noise, feature_noise_penalty
from .mixed_precision import ASGA, SAMQ, Policy, search
from .models import build_model
from .quantization import Quantizer, SizeReport, calibrate, dequantize, export, gptq, quantize
from .quantization.quantizers import LIQ, LSQ, PACT, AsymmetricLSQ, DoReFa, LSQPlus, MinMax
from .sharpness import SAM, SAQ
from .training import (
    EXPERIMENTS,
    Experiment,
    History,
    Recipe,
    StopTraining,
    TrainingState,
    WinQ,
    evaluate,
    load,
    parameter_groups,
    reproduce,
    save,
    train,
)

# fmt: off
__all__ = [
    "Data", "load_data", "build_model", "describe", "Description",
    "LSQ", "LSQPlus", "AsymmetricLSQ", "PACT", "DoReFa", "LIQ", "MinMax", "Quantizer",
    "quantize", "calibrate", "gptq", "dequantize",
    "cost", "search", "Policy", "SAMQ", "ASGA",
    "SAM", "SAQ", "parameter_groups",
    "FPQ", "feature_noise", "distillation_loss", "feature_noise_penalty", "FeatureNoisePenalty",
    "Recipe", "WinQ", "History", "train", "TrainingState", "StopTraining", "evaluate",
    "Experiment", "EXPERIMENTS", "reproduce", "save", "load", "export", "SizeReport",
]
# fmt: on
check_public(sys.modules[__name__], check_agreement)
try:
    __version__ = version("saq-landscape")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
