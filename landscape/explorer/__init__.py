"""The notebook application: choose, turn, slide, and take the figure away."""

from .app import Explorer, explore
from .offline import page
