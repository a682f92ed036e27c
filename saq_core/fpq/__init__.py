"""Feature-perturbed quantization: noise on features, their distillation, and what the noise penalises."""

from .distillation import Features, Student, Teacher, distillation_loss, distilled_layers, teacher_of
from .feature_curvature import FeatureNoisePenalty, feature_noise_penalty
from .noise import FPQ, feature_noise
