"""Conversion of settings to their annotated types, with errors that say what they must be."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


def take_types(settings: Any) -> None:
    """Convert each value of a frozen dataclass to the type of its field.

    Raises:
        ValueError: If that is not possible, or a number is not finite; the message names the field.

    Example:
        >>> @dataclass(frozen=True)
        ... class Picture:
        ...     size: tuple[int, int]
        ...     def __post_init__(self) -> None:
        ...         take_types(self)
        >>> Picture([84, 84.0])
        Picture(size=(84, 84))
    """
    for name, annotation in typing.get_type_hints(type(settings)).items():
        try:
            value = parse_value(getattr(settings, name), annotation)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        object.__setattr__(settings, name, value)


def require_at_least(minimum: float, settings: object, *names: str) -> None:
    """Raise a ValueError that names the first of these fields that is below a minimum.

    Example:
        >>> require_at_least(1, Schedule(start=0.5, end=2.0), "end", "start")
        Traceback (most recent call last):
        ValueError: start must be at least 1, got 0.5
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


@dataclass(frozen=True)
class Schedule:
    """A number that changes linearly during training.

    The fields are the arguments of Stable-Baselines3's ``LinearSchedule``: from ``start`` at the
    first step to ``end`` when ``end_fraction`` of the run is over, and ``end`` from there on.

    Raises:
        ValueError: If a value is not a finite number, or ``end_fraction`` is not in (0, 1].

    Example:
        >>> from stable_baselines3.common.utils import LinearSchedule
        >>> early = Schedule(start=1.0, end=0.0, end_fraction=0.5)
        >>> number_at = LinearSchedule(early.start, early.end, early.end_fraction)
        >>> [number_at(remaining) for remaining in (1.0, 0.75, 0.5, 0.0)]
        [1.0, 0.5, 0.0, 0.0]
    """

    start: float
    end: float
    end_fraction: float = 1.0

    def __post_init__(self) -> None:
        take_types(self)
        if not 0 < self.end_fraction <= 1:
            raise ValueError(f"end_fraction must be in (0, 1], got {self.end_fraction}")


def parse_value(value: Any, annotation: Any) -> Any:
    """Convert a value of TOML or JSON to the annotated type.

    Supports numbers, strings, paths, ``Literal``, ``None``, unions and sequences of these, and
    frozen dataclasses of them. A dataclass is given as a table, with all fields that have no
    default and no unknown ones.

    Raises:
        ValueError: If that is not possible; the message says what the value must be.

    Example:
        >>> parse_value([84, 84], tuple[int, int])
        (84, 84)
        >>> parse_value({"start": 0.1, "end": "low"}, Schedule)
        Traceback (most recent call last):
        ValueError: end must be a number, got 'low'
    """
    members = _members(annotation)
    # "none" means None wherever None is allowed, even where it could be a string or a path.
    for member in sorted(members, key=lambda member: member is not types.NoneType):
        try:
            return _parse_member(value, member)
        except _MismatchError:
            continue
    expected = " or ".join(dict.fromkeys(_name(member) for member in members))
    if int in members and _is_finite(value) and not _is_counted(value):
        expected += " below 2^63"
    raise ValueError(f"must be {expected}, got {value!r}")


class _MismatchError(Exception):
    """A value does not match the member of a union that was tried."""


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _parse_member(value: Any, annotation: Any) -> Any:  # noqa: C901 - one branch to a type
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    is_number = _is_finite(value)
    if annotation is object or annotation is Any:
        return value
    if annotation is types.NoneType and value in ("none", None):
        return None
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is int and is_number and value == int(value) and _is_counted(value):
        return int(value)
    if annotation is float and is_number:
        return float(value)
    if annotation is str and isinstance(value, str):
        return value
    if annotation is Path and isinstance(value, str | Path):
        return Path(value)
    if origin is Literal and value in arguments and not isinstance(value, bool):
        return value
    if origin is Callable and isinstance(value, dict | Schedule):
        return _parse_dataclass(value, Schedule)
    if dataclasses.is_dataclass(annotation) and isinstance(value, dict | annotation):
        return _parse_dataclass(value, annotation)
    if origin is Mapping and isinstance(value, dict):
        return value
    if origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        if origin is not tuple or arguments[1:] == (...,):
            return tuple(parse_value(item, arguments[0]) for item in value)
        if len(value) == len(arguments):
            return tuple(
                parse_value(item, inner) for item, inner in zip(value, arguments, strict=True)
            )
    raise _MismatchError


def _is_counted(value: float) -> bool:
    """Return whether a number fits NumPy's and torch's integers."""
    return -(2**63) <= value < 2**63


def _is_finite(value: object) -> bool:
    """Return whether a value is a finite number within the range of a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _parse_dataclass(value: Any, cls: Any) -> Any:
    """Build a settings dataclass that is a value, from its inline table."""
    if isinstance(value, cls):
        return value
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in value:
        if key not in fields:
            raise ValueError(f"has an unknown key {key!r}; it takes {', '.join(fields)}")
    for key, f in fields.items():
        required = f.default is f.default_factory is dataclasses.MISSING
        if required and key not in value:
            raise ValueError(f"lacks {key!r}; it takes {', '.join(fields)}")
    arguments = {}
    for key, item in value.items():
        try:
            arguments[key] = parse_value(item, hints[key])
        except ValueError as error:
            raise ValueError(f"{key} {error}") from error
    return cls(**arguments)


def _name(annotation: Any) -> str:
    """Name a type in the terms of TOML."""
    names: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Path: "a path",
        types.NoneType: '"none"',
    }
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in arguments)
    if origin is Callable:
        annotation = Schedule
    if dataclasses.is_dataclass(annotation):
        keys = ", ".join(f"{f.name} = ..." for f in dataclasses.fields(annotation))
        return f"a table {{{keys}}}"
    if origin in (tuple, list, Sequence):
        if origin is tuple and arguments[1:] != (...,):
            return "a list of " + " and ".join(_name(inner) for inner in arguments)
        return f"a list with {_name(arguments[0])} in each place"
    return names.get(annotation, "a value that only code can give")
