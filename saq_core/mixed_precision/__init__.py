"""Bits per layer under a budget of bit operations."""

from .asga import ASGA
from .samq import SAMQ
from .searching import search
from .space import Policy
