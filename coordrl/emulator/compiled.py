"""The compiled part of the emulator: whether it is available, and which sources it was made of."""

import importlib
from types import ModuleType
from typing import Any

_native: ModuleType | None
_import_error: ImportError | None
try:
    _native = importlib.import_module("coordrl.emulator._native")
    _import_error = None
except ImportError as error:
    _native = None
    _import_error = error


def available() -> bool:
    """Return whether the emulator was compiled when the package was installed."""
    return _native is not None


def unavailable_reason() -> str:
    """Return one line on why there is no emulator and how to get it; empty if there is one."""
    if _native is not None:
        return ""
    if isinstance(_import_error, ModuleNotFoundError):
        reason = "coordrl was installed without its emulator, which did not compile"
    else:
        reason = f"coordrl's compiled emulator cannot be loaded ({_import_error})"
    return (
        f"{reason}; ale-py plays the games instead. To compile it, install a C++ compiler, or mend "
        "what it does not take, and run, in a clone of the project, `make setup`, or "
        "`pip install --force-reinstall --no-deps --no-cache-dir .` for another environment"
    )


def compiled_sources() -> str:
    """Return the checksum of the sources that the compiled part was made of.

    It equals that of ``coordrl.emulator.source_checksum`` unless the sources have changed since.

    Raises:
        RuntimeError: If the emulator is not ``available()``.
    """
    return str(native().SOURCES)


def native() -> Any:
    """Return the compiled part.

    Raises:
        RuntimeError: If the emulator is not ``available()``.
    """
    if _native is None:
        raise RuntimeError(unavailable_reason())
    return _native
