"""Reading and writing settings: precedence, types, and errors that name what to mend."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from coordrl.config import (
    AccelerationSettings,
    AtariSettings,
    OptimizerSettings,
    RunSettings,
    Schedule,
    SettingsError,
    TrainingSettings,
    accepted_keywords,
    dump_settings,
    load_settings,
    parse_override,
    refuse_overruled,
    settings_for,
)


@dataclass(frozen=True)
class Layer:
    channels: int
    stride: int = 1


@dataclass(frozen=True)
class Paint:
    color: Literal["red", "none"] = "red"
    width: int = 1
    opacity: float | None = None
    size: tuple[int, int] = (84, 84)
    folder: Path | None = None
    layers: Sequence[Layer] = ()
    shiny: bool = False


@dataclass(frozen=True)
class Picture:
    title: str = "untitled"
    paint: Paint = field(default_factory=Paint)
    free: Mapping[str, Any] = field(default_factory=dict)


def brush(
    canvas: object, rate: float | Callable[[float], float], hairs: int = 3, tip: str | None = None
) -> None:
    """A function whose keywords a table may give."""


KEYWORDS = {"free": accepted_keywords(brush, without={"canvas"})}


def test_numbers_of_numpy_become_those_of_python() -> None:
    numbers: dict[str, Any] = {"num_envs": np.int64(3), "target_return": np.float32(19.5)}
    settings = RunSettings(**numbers)
    assert (type(settings.num_envs), settings.num_envs) == (int, 3)
    assert (type(settings.target_return), settings.target_return) == (float, 19.5)


def canonical(game: str) -> str:
    """Return the name of a game without underscores, of the three that are known."""
    folded = game.replace("_", "").casefold()
    if folded not in ("mspacman", "pong", "breakout"):
        raise ValueError(f"there is no game {game!r}")
    return folded


def read(tmp_path: Path, text: str, *overrides: str, game: str | None = None) -> Picture:
    path = tmp_path / "picture.toml"
    path.write_text(text)
    return load_settings(
        Picture,
        path,
        [parse_override(o) for o in overrides],
        keywords=KEYWORDS,
        game=game,
        canonical_game=canonical,
    )


def test_every_layer_wins_over_the_one_before(tmp_path: Path) -> None:
    text = """
        title = "general"
        [paint]
        width = 2
        size = [10, 20]
        [games.MsPacman]
        title = "of the game"
        [games.MsPacman.paint]
        width = 3
        [games.Pong.paint]
        shiny = true
        """

    general = read(tmp_path, text, game="Breakout")
    of_the_game = read(tmp_path, text, game="ms_pacman")
    overridden = read(tmp_path, text, "paint.width=4", "paint.width=5", game="ms_pacman")

    assert general == Picture(title="general", paint=Paint(width=2, size=(10, 20)))
    assert of_the_game == Picture(title="of the game", paint=Paint(width=3, size=(10, 20)))
    assert overridden == Picture(title="of the game", paint=Paint(width=5, size=(10, 20)))


def test_a_part_of_a_value_may_be_overridden_and_the_other_parts_stay(tmp_path: Path) -> None:
    text = "[free]\nrate = {start = 0.5, end = 0.25, end_fraction = 0.5}"
    chosen = read(tmp_path, text, "free.rate.end=0", "free.rate.start=1")
    assert chosen.free["rate"] == Schedule(start=1.0, end=0.0, end_fraction=0.5)
    whole = read(tmp_path, text, "free.rate={start = 1, end = 0}")
    assert whole.free["rate"] == Schedule(start=1.0, end=0.0)  # and nothing of the file's
    with pytest.raises(SettingsError, match=r"^--set: free.rate has an unknown key 'edn'"):
        read(tmp_path, text, "free.rate.edn=0")
    with pytest.raises(SettingsError, match=r"^--set: free.rate lacks 'start'; it takes"):
        read(tmp_path, "[free]\nrate = 0.5", "free.rate.end=0")  # of a number


def test_base_stands_where_nothing_is_given() -> None:
    base = Picture(title="base", paint=Paint(width=7))
    assert load_settings(Picture, base=base) == base
    changed = load_settings(Picture, overrides=[parse_override("paint.shiny=true")], base=base)
    assert changed == Picture(title="base", paint=Paint(width=7, shiny=True))


def test_values_take_the_type_of_their_field(tmp_path: Path) -> None:
    picture = read(
        tmp_path,
        """
        [paint]
        color = "none"
        width = 1e3
        opacity = 1
        folder = "a/b"
        layers = [{channels = 16, stride = 4}, {channels = 32}]
        [free]
        rate = {start = 0.5, end = 0}
        tip = "none"
        """,
    )

    assert picture.paint == Paint(
        color="none", width=1000, opacity=1.0, folder=Path("a/b"), layers=(Layer(16, 4), Layer(32))
    )
    assert isinstance(picture.paint.width, int)
    assert isinstance(picture.paint.opacity, float)
    assert picture.free == {"rate": Schedule(0.5, 0.0), "tip": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[paint]\nwitdh = 2", r"picture.toml: unknown key 'paint.witdh'; .* 'paint.width'"),
        ("[piant]\nwidth = 2", r"picture.toml: unknown key 'piant'; the nearest is 'paint'"),
        ("pai = 2", r"picture.toml: unknown key 'pai'; the nearest is 'paint'"),
        ("xyzzy = 2", r"unknown key 'xyzzy'; there are free, .*paint, "),
        ("[paint]\nxyzzy = 2", r"unknown key 'paint.xyzzy'; \[paint\] has color, "),
        ("widht = 2", r"unknown key 'widht'; the nearest is 'paint\.width'"),
        ("[free]\nhair = 2", r"picture.toml: unknown key 'free.hair'; the nearest is 'free.hairs'"),
        ("[free]\ncanvas = 2", r"unknown key 'free.canvas'"),
        ("[games.Pong]\nx = 2", r"unknown key 'games'"),
        ("paint = 2", r"picture.toml: paint must be a table, got 2"),
        ("[paint]\nwidth = 'wide'", r"paint.width must be a whole number, got 'wide'"),
        ("[paint]\nwidth = 1.5", r"paint.width must be a whole number, got 1.5"),
        ("[paint]\nwidth = true", r"paint.width must be a whole number, got True"),
        ("[paint]\nwidth = inf", r"paint.width must be a whole number, got inf"),
        ("[paint]\nwidth = 9223372036854775808", r"must be a whole number below 2\^63, got 92233"),
        ("[paint]\nwidth = 1" + 400 * "0", r"paint.width must be a whole number, got 10000"),
        ("[paint]\nopacity = 1" + 400 * "0", r"paint.opacity must be a number or .* got 10000"),
        ("[paint]\nshiny = 1", r"paint.shiny must be true or false, got 1"),
        ("[paint]\nopacity = 'x'", r"paint.opacity must be a number or \"none\", got 'x'"),
        ("[paint]\nopacity = nan", r"paint.opacity must be a number or \"none\", got nan"),
        ("[paint]\ncolor = 'blue'", r"paint.color must be one of \"red\", \"none\", got 'blue'"),
        ("[paint]\nsize = [1]", r"paint.size must be a list of a whole number and a whole number"),
        ("[paint]\nlayers = [{}]", r"paint.layers lacks 'channels'; it takes channels, stride"),
        ("[free]\nrate = 'fast'", r"free.rate must be a number or a table {start = ..., end = "),
        ("[free]\nrate = {begin = 1}", r"free.rate has an unknown key 'begin'; it takes start"),
        ("[free]\nrate = {start = 1}", r"free.rate lacks 'end'"),
        ("title = ", r"picture.toml: is not valid TOML: "),
    ],
)
def test_error_names_file_key_and_what_fits(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, text)


def test_a_mistake_in_the_table_of_another_game_is_found_as_well(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[games.Pong\]: unknown key 'titel'.* 'title'"):
        read(tmp_path, "[games.Pong]\ntitel = 'x'", game="Breakout")


def test_a_table_of_an_unknown_game_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\[games.Pnog\]: there is no game 'Pnog'"):
        read(tmp_path, "[games.Pnog]\ntitle = 'x'", game="Pong")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("games = 3", r"picture.toml: games must be a table, got 3"),
        ("games.Pong = 3", r"picture.toml, \[games.Pong\]: must be a table, got 3"),
    ],
)
def test_settings_of_games_are_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, text, game="Pong")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    unread = "cannot be read as a settings file: "
    with pytest.raises(SettingsError, match=f"none.toml: {unread}No such file or directory$"):
        load_settings(Picture, tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("title = 'Fußball'".encode("latin-1"))
    with pytest.raises(SettingsError, match=f"latin.toml: {unread}'utf-8' codec can't decode"):
        load_settings(Picture, tmp_path / "latin.toml")


@pytest.mark.parametrize("text", ["paint.width", "=3", ""])
def test_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--set expects key=value, as in run"):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=3", 3),
        ("k = 2.5e-4", 2.5e-4),
        ("k=[1, 2]", [1, 2]),
        ("k=Pong", "Pong"),
        ("k='Pong'", "Pong"),
        ("k=a=b", "a=b"),
        ("k=3\nother=4", "3\nother=4"),
    ],
)
def test_override_is_read_as_toml_or_else_as_text(text: str, value: object) -> None:
    assert parse_override(text).value == value


paints = st.builds(
    Paint,
    color=st.sampled_from(["red", "none"]),
    width=st.integers(-(2**63), 2**63 - 1),
    opacity=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    size=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    folder=st.none() | st.just(Path("runs/ü")),
    layers=st.lists(st.builds(Layer, st.integers(0, 9), st.integers(0, 9))).map(tuple),
    shiny=st.booleans(),
)
pictures = st.builds(
    Picture,
    title=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")),
    paint=paints,
    free=st.fixed_dictionaries(
        {"rate": st.floats(0, 1) | st.builds(Schedule, st.floats(0, 1), st.floats(0, 1))}
    ),
)


@hypothesis.settings(max_examples=50)
@hypothesis.given(picture=pictures)
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, picture: Picture
) -> None:
    path = tmp_path_factory.getbasetemp() / "picture.toml"
    path.write_text(dump_settings(picture), encoding="utf-8")
    assert load_settings(Picture, path, keywords=KEYWORDS) == picture


@pytest.mark.parametrize(
    ("cls", "key", "value", "message"),
    [
        (RunSettings, "total_steps", -1, "total_steps must be at least 1, got -1"),
        (RunSettings, "num_envs", 0, "num_envs must be at least 1, got 0"),
        (RunSettings, "num_envs", 2.5, r"num_envs must be a whole number, got 2\.5"),
        (RunSettings, "algo", "sac", 'algo must be one of "a2c", "ppo", "dqn", got'),
        (AccelerationSettings, "compile", 1, "compile must be true or false, got 1"),
        (OptimizerSettings, "eps", math.nan, "eps must be a number, got nan"),
        (RunSettings, "seed", -1, "seed must be at least 0, got -1"),
        (RunSettings, "stagger", -1, "stagger must be at least 0, got -1"),
        (
            TrainingSettings,
            "run",
            RunSettings(algo="dqn", stagger=1),
            "run.stagger is for ppo and a2c, .*: leave it at 0, got 1",
        ),
        (AtariSettings, "frame_skip", 0, "frame_skip must be at least 1, got 0"),
        (AtariSettings, "stack_size", 0, "stack_size must be at least 1, got 0"),
        (AtariSettings, "max_frames_per_episode", 0, "max_frames_per_episode must be at least 1"),
        (AtariSettings, "repeat_action_probability", -0.1, r"must be in \[0, 1\], got -0.1"),
        (RunSettings, "evaluation_episodes", 0, "evaluation_episodes must be at least 1, got 0"),
        (RunSettings, "evaluation_interval", -1, "evaluation_interval must be at least 0, got -1"),
        (RunSettings, "checkpoint_interval", 0, "checkpoint_interval must be at least 1, got 0"),
        (RunSettings, "log_interval", 0, "log_interval must be at least 1, got 0"),
        *(
            (TrainingSettings, "algorithm", {key: least - 1}, f"{key} must be at least {least}")
            for key, least in (
                *(("n_epochs", 1), ("buffer_size", 1), ("train_freq", 1)),
                *(("target_update_interval", 1), ("gradient_steps", -1)),
            )
        ),
        *(
            (TrainingSettings, "algorithm", {key: Schedule(0.5, 1.5)}, f"{key} must be at most 1")
            for key in (
                *("gamma", "gae_lambda", "tau", "exploration_fraction"),
                *("exploration_initial_eps", "exploration_final_eps"),
            )
        ),
        (AtariSettings, "mode", -1, "mode must be at least 0, got -1"),
        (AtariSettings, "difficulty", -1, "difficulty must be at least 0, got -1"),
        (AtariSettings, "noop_max", -1, "noop_max must be at least 0, got -1"),
        (OptimizerSettings, "eps", 0.0, r"eps must be positive, got 0\.0"),
        (AtariSettings, "screen_size", (0, 84), r"screen_size must be at least 1 x 1, got \(0, 84"),
        (AtariSettings, "repeat_action_probability", 1.5, r"must be in \[0, 1\], got 1.5"),
        (TrainingSettings, "algorithm", {"n_steps": 0}, "algorithm.n_steps must be at least 1"),
        (TrainingSettings, "extractor", {"features_dim": 0}, "features_dim must be at least 1"),
        (TrainingSettings, "algorithm", {"ent_coef": -0.1}, "algorithm.ent_coef must be at least"),
        (TrainingSettings, "algorithm", {"gamma": 1.5}, "algorithm.gamma must be at most 1"),
        (TrainingSettings, "algorithm", {"gae_lambda": 1.1}, "algorithm.gae_lambda must be at mos"),
        (TrainingSettings, "algorithm", {"batch_size": 0}, "algorithm.batch_size must be at least"),
        (
            TrainingSettings,
            "algorithm",
            {"learning_rate": Schedule(1e-3, -1e-3)},
            "algorithm.learning_rate must be at least 0, got -0.001",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(cls: Any, key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**{key: value})


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_a_schedule_ends_within_the_run(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"end_fraction must be in \(0, 1\], got {fraction}"):
        Schedule(1.0, 0.0, fraction)
    assert Schedule(1.0, 0.0, 1.0).end_fraction == 1


@pytest.mark.parametrize("run", [{"num_envs": 2}, {"num_envs": 1, "on_device": True}])
def test_episodes_are_counted_in_one_game_alone(run: dict[str, Any]) -> None:
    every_other = {"train_freq": (2, "episode")}
    TrainingSettings(RunSettings(algo="dqn", num_envs=1), algorithm=every_other)
    with pytest.raises(
        ValueError, match=r"counts episodes with .*; count steps, as in \[2, \"step"
    ):
        TrainingSettings(RunSettings(algo="dqn", **run), algorithm=every_other)


def test_gradient_steps_may_be_minus_one_as_in_sb3() -> None:
    TrainingSettings(algorithm={"gradient_steps": -1})


def test_range_error_names_the_layer_that_brought_the_number(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[run]\nnum_envs = 4\n")
    override = parse_override("run.total_steps=-5", source="--steps")
    with pytest.raises(SettingsError, match=r"^--steps: total_steps must be at least 1, got -5$"):
        load_settings(TrainingSettings, path, [override])


def test_settings_that_fit_together_may_be_given_in_any_order() -> None:
    texts = ["run.algo=dqn", "run.stagger=0"]
    base = TrainingSettings(run=RunSettings(stagger=4))
    for order in (texts, texts[::-1]):
        chosen = load_settings(
            TrainingSettings, None, [parse_override(t) for t in order], base=base
        )
        assert (chosen.run.algo, chosen.run.stagger) == ("dqn", 0)
    with pytest.raises(SettingsError, match=r"^--set: .*stagger"):
        load_settings(TrainingSettings, None, [parse_override(texts[0])], base=base)


def test_the_ends_of_a_range_are_in_it() -> None:
    assert AtariSettings(repeat_action_probability=1).repeat_action_probability == 1
    assert TrainingSettings(algorithm={"gamma": 1, "ent_coef": 0}).algorithm["gamma"] == 1


def test_a_setting_within_a_table_is_overruled_as_well() -> None:
    owners = {"run.seed": "use --seeds", "run.optimizer.eps": "it is fixed"}
    for text, message in (
        ("run={steps = 1, seed = 3}", "--set run.seed would be overruled; use --seeds"),
        ("run={optimizer = {eps = 1}}", "--set run.optimizer.eps would be overruled; it is fixed"),
    ):
        with pytest.raises(SettingsError, match=message):
            refuse_overruled([parse_override(text)], owners)
    refuse_overruled([parse_override("run={steps = 1, optimizer = {name = 'Adam'}}")], owners)


@pytest.mark.parametrize("pair", [(1,), (1, "step", 2), (0, "step")])
def test_a_frequency_is_a_number_with_a_unit(pair: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be a number from 1 on, or such .*, got \["):
        TrainingSettings(RunSettings(algo="dqn"), algorithm={"train_freq": pair})


@pytest.mark.parametrize("training", [False, True])
def test_games_of_machado_end_after_five_minutes(training: bool) -> None:
    assert settings_for("machado", training=training).max_frames_per_episode == 5 * 60 * 60
    assert settings_for("classic", training=training).max_frames_per_episode == 30 * 60 * 60


def test_a_part_of_a_part_that_is_not_there_is_refused() -> None:
    sets = [parse_override(text) for text in ("free.rate={start=1, end=0}", "free.rate.no.end=2")]
    with pytest.raises(SettingsError, match=r"free\.rate has an unknown key 'no\.end'"):
        load_settings(Picture, overrides=sets, keywords=KEYWORDS)


def test_a_part_is_of_the_value_that_waits_for_what_it_fits_with(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "[run]\nalgo = 'dqn'\nstagger = 5\n[algorithm]\nlearning_rate = {start = 0.5, end = 0.1}\n"
    )
    rate = {"algorithm": {"learning_rate": float | Callable[[float], float]}}
    sets = [parse_override(text) for text in ("algorithm.learning_rate.end=0", "run.stagger=0")]
    chosen = load_settings(TrainingSettings, path, sets, keywords=rate)
    assert chosen.algorithm["learning_rate"] == Schedule(0.5, 0.0)


def test_a_mistake_is_told_of_where_it_was_made() -> None:
    sets = [parse_override("num_envs=0", "--envs"), parse_override("seed=3", "--seed")]
    with pytest.raises(SettingsError, match=r"^--envs: num_envs must be at least 1, got 0$"):
        load_settings(RunSettings, overrides=sets)


def test_a_keyword_that_is_set_leaves_the_others() -> None:
    sets = [parse_override(text) for text in ("free.rate=0.5", "free.hairs=7")]
    chosen = load_settings(Picture, overrides=sets, keywords=KEYWORDS)
    assert chosen.free == {"rate": 0.5, "hairs": 7}
