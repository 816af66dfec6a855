"""Records of measurements: their provenance, and how they are written and read."""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from coordrl.files import RunError, atomic_file, reason

if TYPE_CHECKING:  # only experiments need it at run time
    from matplotlib.figure import Figure

_Result = TypeVar("_Result")


def processor() -> dict[str, str]:
    """Return Linux's description of the first processor, such as ``"model name"``; else empty."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def machine() -> str:
    """Return the processor and the number of its cores, for records of times measured on it."""
    return f"{processor().get('model name', platform.machine())}, {os.cpu_count()} cores"


def made_on() -> str:
    """Return the machine and the PyTorch version, to be kept with a result.

    Example:
        >>> ", with torch " in made_on()
        True
    """
    return f"{machine()}, with torch {torch.__version__}"


def provenance(command: str) -> dict[str, str]:
    """Return the provenance of a record: command, machine and PyTorch version.

    Example:
        >>> list(provenance("python scripts/train_gan.py"))
        ['command', 'machine', 'torch']
    """
    return {"command": command, "machine": machine(), "torch": str(torch.__version__)}


def write_text(text: str, path: Path) -> None:
    """Write a text whole or not at all.

    Characters that UTF-8 cannot encode, as in some file names, are escaped as in JSON and Python.

    Raises:
        RunError: If the file cannot be written; ``path`` is as it was.
    """
    with atomic_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(
    record: object, path: Path, *, default: Callable[[Any], object] | None = None
) -> None:
    """Write a record whole or not at all.

    Args:
        record: Values of JSON types; numbers that are not finite become null.
        path: File to write.
        default: Converts values of other types to JSON types.

    Raises:
        RunError: If the file cannot be written; ``path`` is as it was.
    """

    def plain(value: Any) -> object:
        assert default is not None
        return _finite(default(value))

    own = None if default is None else plain
    text = json.dumps(_finite(record), indent=1, allow_nan=False, default=own)
    write_text(text + "\n", path)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def null_as_nan(value: Any) -> Any:
    """Return a part of a record with NaN in place of null, at any depth.

    For parts of numbers alone, where :func:`write_json` has put null for one that is not finite.

    Example:
        >>> null_as_nan({"loss": [0.5, None]})
        {'loss': [0.5, nan]}
    """
    if isinstance(value, dict):
        return {key: null_as_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [null_as_nan(part) for part in value]
    return math.nan if value is None else value


def write_figure(figure: "Figure", path: Path, *, dpi: int = 100) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: The figure.
        path: File to write.
        dpi: Pixels per inch of the figure.

    Raises:
        RunError: If the file cannot be written; ``path`` is as it was.
    """
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=dpi)


def read_json(path: Path, build: Callable[[Any], _Result]) -> _Result:
    """Read a record that :func:`write_json` wrote, and return what ``build`` makes of it.

    Raises:
        RunError: If the file cannot be read, or holds something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> write_json({"steps": 3}, path)
        >>> read_json(path, lambda record: record["steps"] + 1)
        4
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read ({reason(error)}); delete it, and the same command makes it"
            " again"
        ) from error
