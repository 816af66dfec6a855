"""Settings from TOML files and from the command line, and back."""

import dataclasses
import difflib
import inspect
import itertools
import json
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coordrl.config.values import parse_value
from coordrl.errors import UserError

Settings = TypeVar("Settings")


class SettingsError(UserError, ValueError):
    """An invalid setting; the message is one sentence that says how to correct it."""


@dataclass(frozen=True)
class Override:
    """A setting given outside of a file, with its origin for error messages.

    Attributes:
        key: Full name of the setting, such as ``"env.frame_skip"``.
        value: Its value, as read from TOML.
        source: Where it comes from, such as ``"--steps"``.

    Example:
        >>> from coordrl.config import RunSettings
        >>> load_settings(RunSettings, overrides=[Override("num_envs", 0, source="--envs")])
        Traceback (most recent call last):
        coordrl.config.files.SettingsError: --envs: num_envs must be at least 1, got 0
    """

    key: str
    value: object
    source: str


def parse_override(text: str, source: str = "--set") -> Override:
    """Read ``key=value``, with the value in TOML syntax; strings need no quotes.

    Raises:
        SettingsError: If there is no ``=`` or no key.

    Example:
        >>> parse_override("algorithm.n_steps=64").value
        64
        >>> parse_override("run.game=Pong").value
        'Pong'
        >>> parse_override("algorithm.clip_range={start=0.1, end=0.0}").value
        {'start': 0.1, 'end': 0.0}
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise SettingsError(f"{source} expects key=value, as in run.num_envs=8, got {text!r}")
    try:
        document = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        document = {}
    if set(document) != {"value"}:
        document = {"value": value}
    return Override(key, document["value"], source)


def parse_overrides(given: Iterable[Iterable[str]]) -> list[Override]:
    """Read the ``key=value`` arguments of all uses of a flag, in order; the last one wins.

    Raises:
        SettingsError: As for :func:`parse_override`.

    Example:
        >>> [item.key for item in parse_overrides([["seed=1", "num_envs=4"], ["seed=2"]])]
        ['seed', 'num_envs', 'seed']
    """
    return [parse_override(text) for texts in given for text in texts]


def refuse_overruled(overrides: Iterable[Override], owners: Mapping[str, str]) -> None:
    """Reject overrides of settings that a command sets itself, so that none is silently ignored.

    Args:
        overrides: The user's settings.
        owners: Full name of each setting that the command decides, and what to do instead.

    Raises:
        SettingsError: If one of them is among the overrides.

    Example:
        >>> refuse_overruled([parse_override("seed=3")], {"seed": "use --seeds"})
        Traceback (most recent call last):
            ...
        coordrl.config.files.SettingsError: --set seed would be overruled; use --seeds
    """
    for item in overrides:
        for name in _full_names(item.key, item.value):
            if name in owners:
                raise SettingsError(f"{item.source} {name} would be overruled; {owners[name]}")


def _full_names(key: str, value: object) -> Iterator[str]:
    """Yield the full names that an override sets: its key, or those of its table."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _full_names(f"{key}.{name}", item)
    else:
        yield key


def accepted_keywords(
    function: Callable[..., Any], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Return the keywords of a function or class and their annotations, for :func:`load_settings`.

    Args:
        function: What the keywords will be passed to.
        without: Parameters that the caller passes itself.

    Example:
        >>> def paint(canvas: object, width: int, color: str = "red") -> None: ...
        >>> accepted_keywords(paint, without={"canvas"})
        {'width': <class 'int'>, 'color': <class 'str'>}
    """
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in without
    ]
    target: Any = function.__init__ if inspect.isclass(function) else function
    # Only for the remaining parameters: others may refer to names that are not imported.
    named = {p.name: object if p.annotation is p.empty else p.annotation for p in parameters}
    return typing.get_type_hints(types.SimpleNamespace(__annotations__=named), target.__globals__)


def load_settings(
    cls: type[Settings],
    path: Path | None = None,
    overrides: Sequence[Override] = (),
    *,
    base: Settings | None = None,
    keywords: Mapping[str, Mapping[str, Any]] | None = None,
    game: str | None = None,
    canonical_game: Callable[[str], str] = str.casefold,
) -> Settings:
    """Read settings: defaults, then the file, then its table for the game, then ``overrides``.

    A field that is a dataclass is a table of the file. A field that is a ``Mapping`` is a table of
    free keywords, whose names and types are given by ``keywords``. A field that may be ``None``
    takes the string ``"none"``, since TOML has no null; one that may be a function of the progress
    takes the table of a :class:`~coordrl.config.Schedule`. An override may set a part of such a
    table, like ``algorithm.learning_rate.end=0``; the other parts stay.

    Args:
        cls: Frozen dataclass of settings.
        path: TOML file; only defaults and ``overrides`` if None.
        overrides: Settings that win over the file; later ones win over earlier ones.
        base: Defaults; ``cls()`` if None.
        keywords: For each table of free keywords, the result of :func:`accepted_keywords`.
        game: Also read the file's table ``[games.<game>]``. Tables of other games are checked but
            not used.
        canonical_game: Returns the name by which games are compared, or raises a ValueError if the
            game is unknown.

    Raises:
        SettingsError: If the file cannot be read, or a key or value does not fit; the message
            names the file, the key and the nearest valid key.

    Example:
        >>> from coordrl.config import RunSettings
        >>> load_settings(RunSettings, overrides=[parse_override("num_envs=16")]).num_envs
        16
        >>> load_settings(RunSettings, overrides=[parse_override("num_env=16")])
        Traceback (most recent call last):
        coordrl.config.files.SettingsError: --set: unknown key 'num_env'; the nearest is 'num_envs'
    """
    schema = _schema(cls, keywords or {})
    settings = cls() if base is None else base
    # A layer that does not fit the layers before it may fit with those after it.
    pending: dict[str, Any] = {}
    problem: SettingsError | None = None
    tables = _tables_of(path, schema, game, canonical_game)
    layers: Iterator[tuple[dict[str, Any], str] | Override] = itertools.chain(tables, overrides)
    for layer in layers:
        if isinstance(layer, Override):
            table, source = _table_of(layer, schema, settings, pending), layer.source
        else:
            table, source = layer
        pending |= _read_table(table, schema, source)
        try:
            settings = _with(settings, pending)
        except ValueError as error:
            problem = problem or SettingsError(f"{source}: {error}")
        else:
            pending, problem = {}, None
    if problem is not None:
        raise problem
    return settings


def read_toml(path: Path) -> dict[str, Any]:
    """Return the contents of a settings file.

    Raises:
        SettingsError: If the file cannot be read, or is not valid TOML.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "pong.toml")
        ...     _ = path.write_text("run.game = 'Pong'")
        ...     read_toml(path)
        {'run': {'game': 'Pong'}}
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{path}: cannot be read as a settings file: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from error


def dump_settings(settings: Any) -> str:
    """Write settings as TOML that :func:`load_settings` reads back.

    Example:
        >>> from coordrl.config import Schedule
        >>> print(dump_settings(Schedule(start=0.1, end=0.0)), end="")
        start = 0.1
        end = 0.0
        end_fraction = 1.0
    """
    lines = _toml_lines(settings, prefix="")
    return "\n".join(lines).lstrip("\n") + "\n"


def _tables_of(
    path: Path | None,
    schema: Mapping[str, Any],
    game: str | None,
    canonical_game: Callable[[str], str],
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield a file's tables of settings, each with a name for errors; later tables win."""
    if path is not None:
        tables = read_toml(path)
        games = tables.pop("games", {}) if game is not None else {}
        if not isinstance(games, dict):
            raise SettingsError(f"{path}: games must be a table, got {games!r}")
        yield tables, str(path)
        for name, table in games.items():
            source = f"{path}, [games.{name}]"
            if not isinstance(table, dict):
                raise SettingsError(f"{source}: must be a table, got {table!r}")
            try:
                is_this_game = game is not None and canonical_game(name) == canonical_game(game)
            except ValueError as error:
                raise SettingsError(f"{source}: {error}") from error
            if is_this_game:
                yield table, source
            else:
                _read_table(table, schema, source)


def _table_of(
    override: Override, schema: Iterable[str], settings: Any, pending: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an override as a table; an override of a part of a value becomes the whole value."""
    key, value = override.key, override.value
    for name in schema:
        old = pending.get(name, _value_of(settings, name)) if key.startswith(f"{name}.") else None
        if dataclasses.is_dataclass(old):
            key, value = name, dict(_fields(old)) | {key.removeprefix(f"{name}."): value}
    for name in reversed(key.split(".")):
        value = {name: value}
    return typing.cast(dict[str, Any], value)


def _value_of(settings: Any, name: str) -> Any:
    """Return the setting with a full name, or None if it is a keyword that was not given."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else getattr(settings, part)
    return settings


def _schema(cls: Any, keywords: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the full name of every setting below ``cls`` and its annotation."""
    schema = {}
    for name, annotation in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(annotation):
            for key, inner in _schema(annotation, {}).items():
                schema[f"{name}.{key}"] = inner
        elif typing.get_origin(annotation) is Mapping:
            for key, inner in keywords.get(name, {}).items():
                schema[f"{name}.{key}"] = inner
        else:
            schema[name] = annotation
    return schema


def _read_table(
    table: Mapping[str, Any], schema: Mapping[str, Any], source: str, prefix: str = ""
) -> dict[str, Any]:
    """Flatten a table into full names, with values converted to the schema's types."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        if key in schema:
            try:
                values[key] = parse_value(value, schema[key])
            except ValueError as error:
                raise SettingsError(f"{source}: {key} {error}") from error
        elif any(known.startswith(f"{key}.") for known in schema):
            if not isinstance(value, dict):
                raise SettingsError(f"{source}: {key} must be a table, got {value!r}")
            values |= _read_table(value, schema, source, f"{key}.")
        else:
            raise SettingsError(f"{source}: unknown key {key!r}; {_advice(key, schema)}")
    return values


def _advice(key: str, schema: Mapping[str, Any]) -> str:
    """Return a hint with the key that was probably meant, or the keys of its table."""
    table = key[: key.rfind(".") + 1]
    inside = {k.removeprefix(table).partition(".")[0] for k in schema if k.startswith(table)}
    in_table = {name: table + name for name in inside}
    anywhere = {known.rpartition(".")[2]: known for known in schema}
    for names in (in_table, anywhere):
        if nearest := difflib.get_close_matches(key.removeprefix(table), names, n=1):
            return f"the nearest is {names[nearest[0]]!r}"
    return f"{f'[{table[:-1]}] has' if table else 'there are'} {', '.join(sorted(inside))}"


def _with(settings: Settings, values: Mapping[str, Any], prefix: str = "") -> Settings:
    """Return ``settings`` with the values whose full names are given."""
    changes: dict[str, Any] = {}
    for name, old in _fields(settings):
        key = prefix + name
        inner = {k: v for k, v in values.items() if k.startswith(f"{key}.")}
        if key in values:
            changes[name] = values[key]
        elif inner and isinstance(old, Mapping):
            changes[name] = {**old, **{k.removeprefix(f"{key}."): v for k, v in inner.items()}}
        elif inner:
            changes[name] = _with(old, inner, f"{key}.")
    return dataclasses.replace(settings, **changes) if changes else settings  # type: ignore[type-var]


def _fields(settings: Any) -> list[tuple[str, Any]]:
    return [(f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings)]


def _toml_lines(table: Any, prefix: str) -> list[str]:
    items = list(table.items()) if isinstance(table, Mapping) else _fields(table)
    lines, subtables = [], []
    for name, value in items:
        # A dataclass inside free keywords is a value (a schedule), elsewhere it is a table.
        if isinstance(value, Mapping) or (
            dataclasses.is_dataclass(value) and not isinstance(table, Mapping)
        ):
            key = f"{prefix}{name}"
            subtables += ["", f"[{key}]", *_toml_lines(value, f"{key}.")]
        else:
            lines.append(f"{name} = {_toml(value)}")
    return lines + subtables


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if dataclasses.is_dataclass(value):
        rows = ", ".join(f"{name} = {_toml(item)}" for name, item in _fields(value))
        return f"{{{rows}}}"
    return json.dumps(str(value), ensure_ascii=False)
