"""CoordConv in existing models: put in, taken out, examined, loaded from other code."""

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
