"""Run settings: what can be chosen, its default, and one sentence on what it does.

Settings travel whole, as frozen dataclasses. A key in a TOML file is the name of a field, spelled
the same; nothing is renamed on the way. :func:`load_settings` reads any such dataclass from a file
and from the command line, and :func:`dump_settings` writes it back.
"""

import dataclasses
import difflib
import inspect
import json
import math
import numbers
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

Protocol = Literal["classic", "machado"]
Settings = TypeVar("Settings")


class SettingsError(ValueError):
    """A setting that its writer can mend; the message is one sentence that says how."""


def take_types(settings: Any) -> None:
    """Turn each value of a frozen dataclass into the type of its field.

    Raises:
        ValueError: If that is not possible, naming the field. No number is infinite, or NaN.
    """
    for name, annotation in typing.get_type_hints(type(settings)).items():
        try:
            value = parse_value(getattr(settings, name), annotation)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        object.__setattr__(settings, name, value)


def require_at_least(minimum: float, settings: object, *names: str) -> None:
    """Raise a ValueError that names the first of these fields which is below a minimum."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


@dataclass(frozen=True)
class AtariSettings:
    """How a game is played and seen. The defaults are the classic protocol of training.

    One *agent step* is ``frame_skip`` *frames* of the emulator; 60 frames are one second.

    Raises:
        ValueError: If a value is of another type than its field, or a number outside its range.
    """

    frame_skip: int = 4
    """Frames that one action is held for, at least 1."""
    stack_size: int = 4
    """Observations stacked along the channel axis, newest last; zeros before the first."""
    screen_size: tuple[int, int] = (84, 84)
    """Height and width of an observation, in pixels."""
    observation: Literal["gray", "rgb", "ram"] = "gray"
    """What is observed: the gray or colored screen, or the console's 128 bytes of RAM."""
    max_pool: bool = True
    """Observe the maximum of a step's last two frames, so that flickering objects stay visible."""
    noop_max: int = 30
    """Upper limit of the random number of idle frames at a reset; 0 and 1 mean none."""
    fire_reset: bool = True
    """Press FIRE for one frame at a reset, in games that have the action."""
    fire_after_life_loss: bool = True
    """Press FIRE for the step after a lost life as well, since some games wait for it."""
    repeat_action_probability: float = 0.0
    """Probability that a frame repeats the action of the frame before (sticky actions)."""
    full_action_space: bool = False
    """Offer all legal actions instead of the game's minimal set."""
    clip_reward: bool = True
    """Clip each step's reward to -1, 0 or 1; episode statistics keep the game's own points."""
    life_loss: Literal["ignore", "terminate", "reset"] = "terminate"
    """At a lost life: go on; report ``terminated`` and go on (SB3); or reset the game (ale-py)."""
    max_frames_per_episode: int = 108_000
    """Frames after which an episode is truncated: 30 minutes of play."""
    mode: int | None = None
    """Game mode, or the game's default."""
    difficulty: int | None = None
    """Difficulty switches: bit 0 is the left, bit 1 the right; or the game's default."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "frame_skip", "stack_size", "max_frames_per_episode")
        require_at_least(0, self, "noop_max", "mode", "difficulty")
        if min(self.screen_size) < 1:
            raise ValueError(f"screen_size must be at least 1 x 1, got {self.screen_size}")
        if not 0 <= self.repeat_action_probability <= 1:
            raise ValueError(
                f"repeat_action_probability must be in [0, 1], got {self.repeat_action_probability}"
            )


def settings_for(protocol: Protocol, *, training: bool) -> AtariSettings:
    """Return the settings under which a protocol trains or evaluates.

    ========================= ========================= =========================
    rule                      classic                   machado
    ========================= ========================= =========================
    randomness                0 to 29 idle frames       sticky actions, p = 0.25
    actions                   the game's minimal set    all legal ones, mostly 18
    lost life in training     terminates                goes on
    lost life in evaluation   goes on                   goes on
    FIRE for the agent        at reset, after a life    never
    frames per episode        108,000                   18,000
    rewards in training       clipped                   clipped
    rewards in evaluation     the game's points         the game's points
    ========================= ========================= =========================

    *Classic* is the protocol of Mnih et al., Nature 518 (2015), as Stable-Baselines3 and CleanRL
    run it. *Machado* is that of Machado et al., "Revisiting the Arcade Learning Environment", JAIR
    61 (2018). Dopamine keeps sticky actions alone of the latter: it plays the minimal action set
    and episodes of up to 108,000 frames.

    Args:
        protocol: ``"classic"`` or ``"machado"``.
        training: True for the games an agent learns from, False for those that judge it.

    Raises:
        ValueError: If there is no such protocol.

    Example:
        >>> settings_for("machado", training=False).repeat_action_probability
        0.25
    """
    if protocol not in typing.get_args(Protocol):
        known = ", ".join(typing.get_args(Protocol))
        raise ValueError(f"protocol must be one of {known}, got {protocol!r}")
    settings = AtariSettings()
    if protocol == "machado":
        settings = AtariSettings(
            noop_max=0,
            fire_reset=False,
            fire_after_life_loss=False,
            repeat_action_probability=0.25,
            full_action_space=True,
            life_loss="ignore",
            max_frames_per_episode=18_000,
        )
    if training:
        return settings
    return dataclasses.replace(settings, life_loss="ignore", clip_reward=False)


@dataclass(frozen=True)
class Schedule:
    """A number that moves in a straight line while training goes on.

    The fields are the arguments of Stable-Baselines3's ``LinearSchedule``: from ``start`` at the
    first step to ``end`` when ``end_fraction`` of the run is over, and ``end`` from there on.
    """

    start: float
    end: float
    end_fraction: float = 1.0

    def __post_init__(self) -> None:
        take_types(self)
        if not 0 < self.end_fraction <= 1:
            raise ValueError(f"end_fraction must be in (0, 1], got {self.end_fraction}")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of the policy; its learning rate belongs to the algorithm."""

    name: Literal["Adam", "RMSprop", "RMSpropTFLike"] = "Adam"
    """Class: PyTorch's (Adam runs fused), or SB3's copy of TensorFlow's RMSprop."""
    eps: float = 1e-5
    """Term that keeps the division by the gradient's scale finite."""

    def __post_init__(self) -> None:
        take_types(self)
        if self.eps <= 0:
            raise ValueError(f"eps must be positive, got {self.eps}")


@dataclass(frozen=True)
class AccelerationSettings:
    """How algorithms compute whose rollouts stay on the device (``run.on_device``)."""

    bfloat16: bool = False
    """Compute features in bfloat16 (autocast); weights, heads, losses and optimizer in float32."""
    channels_last: bool = True
    """Keep weights and observations in the layout that convolutions read fastest."""
    compile: bool = False
    """Compile the network with torch.compile, which takes a minute at the start."""
    cuda_graphs: bool = False
    """Record acting, and the updates of PPO and DQN, as CUDA graphs, launched at once."""

    def __post_init__(self) -> None:
        take_types(self)


@dataclass(frozen=True)
class RunSettings:
    """One training run: what is trained, for how long, and what is looked at on the way.

    Raises:
        ValueError: If a number is outside its range.
    """

    game: str = "Pong"
    """Atari game, as people write it: "Pong", "MsPacman", "ms_pacman", "ALE/Pong-v5"."""
    algo: Literal["a2c", "ppo", "dqn"] = "ppo"
    """Algorithm of Stable-Baselines3."""
    protocol: Protocol = "classic"
    """Rules of training and evaluation: SB3's and the zoo's, or those of Machado et al. (2018)."""
    total_steps: int = 10_000_000
    """Length of the run in agent steps, counted over all environments."""
    num_envs: int = 8
    """Games played at the same time, by all processes together."""
    stagger: int = 0
    """Over how many agent steps their beginnings are spread, for PPO and A2C. The random actions
    until then are not counted."""
    seed: int = 0
    """Seed of the run, split into environment, policy, data and evaluation streams."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network lives; auto takes the GPU if there is one."""
    on_device: bool = False
    """Keep games, rollouts and replay there as well, instead of in arrays of the host."""
    target_return: float | None = None
    """End the run as soon as an evaluation reaches this mean episode return."""
    evaluation_interval: int = 250_000
    """Agent steps between two evaluations; 0 evaluates at the end only."""
    evaluation_episodes: int = 10
    """Episodes of an evaluation."""
    checkpoint_interval: int = 100_000
    """Agent steps between two checkpoints; a stopped run is saved in any case."""
    log_interval: int = 10_000
    """Agent steps between two points of the learning curve and of the tracker."""
    track: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where the learning curves are shown."""

    def __post_init__(self) -> None:
        take_types(self)
        positive = ("total_steps", "num_envs", "evaluation_episodes", "checkpoint_interval")
        require_at_least(1, self, *positive, "log_interval")
        require_at_least(0, self, "seed", "stagger", "evaluation_interval")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run; two runs with equal settings are the same run."""

    run: RunSettings = field(default_factory=RunSettings)
    env: AtariSettings = field(default_factory=AtariSettings)
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the algorithm's class in Stable-Baselines3."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    acceleration: AccelerationSettings = field(default_factory=AccelerationSettings)
    extractor: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of :func:`coordrl.extractors.policy_kwargs`."""

    def __post_init__(self) -> None:
        if self.run.algo == "dqn" and self.run.stagger > 0:
            raise ValueError(
                "run.stagger is for ppo and a2c, which learn from the games at hand; dqn's replay "
                f"mixes them by itself: leave it at 0, got {self.run.stagger}"
            )
        plain, chosen = AccelerationSettings(), self.acceleration
        for item in dataclasses.fields(plain):
            default = getattr(plain, item.name)
            if not self.run.on_device and getattr(chosen, item.name) != default:
                raise ValueError(
                    f"acceleration.{item.name} is for runs that stay on the device: set "
                    f"run.on_device = true, or acceleration.{item.name} = {str(default).lower()}"
                )
        self._require_steps()
        features = self.extractor.get("features_dim", 1)
        if isinstance(features, int) and features < 1:
            raise ValueError(f"extractor.features_dim must be at least 1, got {features}")
        for key, value in self.algorithm.items():
            numbers = (value.start, value.end) if isinstance(value, Schedule) else (value,)
            if not isinstance(numbers[0], int | float):
                continue
            minimum = _SMALLEST_KEYWORDS.get(key, 0)
            if min(numbers) < minimum:
                raise ValueError(f"algorithm.{key} must be at least {minimum}, got {min(numbers)}")
            if key in _FRACTION_KEYWORDS and max(numbers) > 1:
                raise ValueError(f"algorithm.{key} must be at most 1, got {max(numbers)}")

    def _require_steps(self) -> None:
        """Check dqn's ``train_freq`` where it is a pair of a number and a unit."""
        pair = self.algorithm.get("train_freq")
        if not isinstance(pair, tuple | list):
            return
        if len(pair) != 2 or pair[0] < 1 or pair[1] not in ("step", "episode"):
            raise ValueError(
                'algorithm.train_freq must be a number from 1 on, or such a number with "step" or '
                f'"episode", got {list(pair)}'
            )
        if pair[1] == "episode" and (self.run.num_envs > 1 or self.run.on_device):
            raise ValueError(
                "algorithm.train_freq counts episodes with run.num_envs = 1 and run.on_device = "
                f'false only; count steps, as in [{pair[0]}, "step"]'
            )


_SMALLEST_KEYWORDS = {
    "n_steps": 1,
    "batch_size": 1,
    "n_epochs": 1,
    "buffer_size": 1,
    "train_freq": 1,
    "target_update_interval": 1,
    "gradient_steps": -1,
}
_FRACTION_KEYWORDS = frozenset(
    {
        *("gamma", "gae_lambda", "tau"),
        *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
    }
)


@dataclass(frozen=True)
class Override:
    """A setting given outside of a file, with the words that name its origin in an error.

    Attributes:
        key: Full name of the setting, such as ``"env.frame_skip"``.
        value: Its value, as TOML would give it.
        source: Where it comes from, such as ``"--steps"``.
    """

    key: str
    value: object
    source: str


def parse_override(text: str, source: str = "--set") -> Override:
    """Read ``key=value``, where the value is written as in TOML; quotes around a text may go.

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


def refuse_overruled(overrides: Iterable[Override], owners: Mapping[str, str]) -> None:
    """Refuse settings that a command sets itself, so that none is ignored without a word.

    Args:
        overrides: What the user has set.
        owners: What to do instead, for the full name of each setting that the command decides.

    Raises:
        SettingsError: If one of them is among the overrides.

    Example:
        >>> refuse_overruled([parse_override("seed=3")], {"seed": "use --seeds"})
        Traceback (most recent call last):
            ...
        coordrl.config.SettingsError: --set seed would be overruled; use --seeds
    """
    for item in overrides:
        for name in _full_names(item.key, item.value):
            if name in owners:
                raise SettingsError(f"{item.source} {name} would be overruled; {owners[name]}")


def _full_names(key: str, value: object) -> Iterator[str]:
    """Yield what an override sets: one setting, or those of a table."""
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
    # Only of the parameters asked for: those left out may refer to names that are not imported.
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
    free keywords, whose names and types ``keywords`` gives. A field that may be ``None`` takes the
    text ``"none"``, since TOML has no such value; one that may be a function of the progress takes
    the table of a :class:`Schedule`.

    Args:
        cls: Frozen dataclass of settings.
        path: TOML file; only defaults and ``overrides`` if None.
        overrides: Settings that win over the file, the last over the first.
        base: Settings that stand where nothing is given; ``cls()`` if None.
        keywords: For each table of free keywords, what :func:`accepted_keywords` returns.
        game: Also read the file's table ``[games.<game>]``. The tables of other games are checked
            and left.
        canonical_game: Gives the name by which games are compared, or raises a ValueError for one
            that is unknown.

    Raises:
        SettingsError: If the file cannot be read, or a key or value does not fit; the message
            names the file, the key and the nearest valid key.

    Example:
        >>> load_settings(RunSettings, overrides=[parse_override("num_envs=16")]).num_envs
        16
        >>> load_settings(RunSettings, overrides=[parse_override("num_env=16")])
        Traceback (most recent call last):
        coordrl.config.SettingsError: --set: unknown key 'num_env'; the nearest is 'num_envs'
    """
    schema = _schema(cls, keywords or {})
    settings = cls() if base is None else base
    # What fits no more with what stood before may fit with what is still to come.
    pending: dict[str, Any] = {}
    problem: SettingsError | None = None
    for table, source in _layers(path, overrides, schema, game, canonical_game):
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
    """Return what a file of settings holds.

    Raises:
        SettingsError: If it cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as a settings file: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from error


def dump_settings(settings: Any) -> str:
    """Write settings as TOML that :func:`load_settings` reads back.

    Example:
        >>> print(dump_settings(Schedule(start=0.1, end=0.0)), end="")
        start = 0.1
        end = 0.0
        end_fraction = 1.0
    """
    lines = _toml_lines(settings, prefix="")
    return "\n".join(lines).lstrip("\n") + "\n"


def _layers(
    path: Path | None,
    overrides: Sequence[Override],
    schema: Mapping[str, Any],
    game: str | None,
    canonical_game: Callable[[str], str],
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield tables of settings with the name of their source, the weakest first."""
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
    for override in overrides:
        table = {}
        *parents, leaf = override.key.split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = override.value
        yield table, override.source


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
    """Flatten a table into full names and values of the schema's types."""
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
            nearest = difflib.get_close_matches(key, schema, n=1, cutoff=0.0)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            raise SettingsError(f"{source}: unknown key {key!r}{hint}")
    return values


def parse_value(value: Any, annotation: Any) -> Any:
    """Return a value of TOML or JSON as the annotated type.

    Knows numbers, texts, paths, ``Literal``, ``None``, unions and sequences of these, and frozen
    dataclasses of them, which come as tables: all fields without a default have to be there, and
    no others.

    Raises:
        ValueError: If it is no such value; the message says what it must be.

    Example:
        >>> parse_value([84, 84], tuple[int, int])
        (84, 84)
        >>> parse_value({"start": 0.1, "end": "low"}, Schedule)
        Traceback (most recent call last):
        ValueError: end must be a number, got 'low'
    """
    members = _members(annotation)
    # "none" is None wherever that is possible, even where it could be a text or a path.
    for member in sorted(members, key=lambda member: member is not types.NoneType):
        try:
            return _parse_member(value, member)
        except _MismatchError:
            continue
    expected = " or ".join(dict.fromkeys(_name(member) for member in members))
    raise ValueError(f"must be {expected}, got {value!r}")


class _MismatchError(Exception):
    """A value is not of the member of a union that was tried."""


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
    if annotation is int and is_number and value == int(value):
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


def _is_finite(value: object) -> bool:
    """Return whether a value is a number that a float can come near to."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _parse_dataclass(value: Any, cls: Any) -> Any:
    """Build a settings dataclass that stands as a value, from its inline table."""
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
    """Name a type as the writer of a TOML file knows it."""
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
