"""Pictures with plotly and with matplotlib: this wing knows arrays and attributes, and imports no result class."""

from .layers import draw_layers, plot_layers
from .together import draw_together, paper_style, plot_together, save_figure
