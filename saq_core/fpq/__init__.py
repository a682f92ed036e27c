"""Feature-perturbed quantization: noise on features, their distillation, and what the noise penalises."""

from .distillation import Features, Student, Teacher, distillation_loss, taught_layers, teacher_of
from .feature_curvature import FeatureRise, feature_rise
from .noise import FPQ, feature_noise

__all__ = [
    "FPQ",
    "FeatureRise",
    "Features",
    "Student",
    "Teacher",
    "distillation_loss",
    "feature_noise",
    "feature_rise",
    "taught_layers",
    "teacher_of",
]
