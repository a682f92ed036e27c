"""Bits per layer under a budget of bit operations."""

from .choices import Policy
from .samq import SAMQ
from .searching import search

__all__ = ["Policy", "SAMQ", "search"]
