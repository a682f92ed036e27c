"""Data sets on the device or in image files, and their batches."""

from .batches import evaluation_batches, mix, steps_per_epoch, training_batches
from .datasets import Batch, Data, DataName, Split, check_split, data_of, load_data
from .image_files import ImageFiles
from .splits import balanced_order
from .streams import is_dataset, is_pair, samples_in
