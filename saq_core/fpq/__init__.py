"""Feature-perturbed quantization: noise on features, their distillation, and what the noise penalises."""

from .distillation import Features, Student, Teacher, distillation_loss, taught_layers, teacher_of
from .feature_curvature import FeatureRise, feature_rise
from .noise import FPQ, feature_noise
