"""CoordConv in existing models: swap it in and out, examine it, load weights of other code."""

from coordrl.convert.ports import PORTS, Port, load_port
from coordrl.convert.report import CoordinateReport, LayerReport, coordinate_report
from coordrl.convert.swap import from_coordconv, to_coordconv

__all__ = [
    "PORTS",
    "CoordinateReport",
    "LayerReport",
    "Port",
    "coordinate_report",
    "from_coordconv",
    "load_port",
    "to_coordconv",
]
