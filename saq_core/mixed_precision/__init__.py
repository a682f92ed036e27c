"""Bits per layer under a budget of bit operations."""

from .aligning import ASGA
from .choices import Policy
from .samq import SAMQ
from .searching import search

__all__ = ["ASGA", "Policy", "SAMQ", "search"]
