"""Data sets on the device or in image files, and their batches."""

from .batches import evaluation_batches, mix, steps_per_epoch, training_batches
from .datasets import Batch, Data, Split, balanced_order, load_data
from .image_files import ImageFiles

__all__ = [
    "Batch",
    "Data",
    "ImageFiles",
    "Split",
    "balanced_order",
    "evaluation_batches",
    "load_data",
    "mix",
    "steps_per_epoch",
    "training_batches",
]
