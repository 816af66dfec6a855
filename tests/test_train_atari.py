"""Scripts from their command lines: what ``train_atari.py`` understands, and how it ends."""

import importlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

import train_atari
from coordrl.agents import EvaluationResult, load_agent
from coordrl.config import AtariSettings, TrainingSettings, dump_settings, parse_override
from coordrl.sb3_envs import make_sb3_env
from coordrl.training import TrainingResult, load_training_settings

ROOT = Path(__file__).parents[1]
SCRIPT = train_atari.__file__

# A network as small as it goes, and a game that is short for those who cannot play it.
SMALL = (
    *("--track", "none", "--set", "env.screen_size=[36, 36]", "run.evaluation_episodes=1"),
    *("run.num_envs=2", "extractor.specs=[[4, 8, 8]]", "extractor.features_dim=8"),
)
SHORT_ROLLOUTS = ("algorithm.n_steps=8", "algorithm.batch_size=8", "run.checkpoint_interval=64")


def start(*arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def test_flags_are_settings() -> None:
    line = (
        *("--env", "ms_pacman", "--algo", "dqn", "--coords", "first", "--with-r", "--steps", "0"),
        *("--seed", "0", "--device", "cpu", "--protocol", "machado", "--target-return", "0.0"),
        *("--track", "none", "--set", "run.num_envs=3", "algorithm.train_freq=2"),
        *("--set", "run.num_envs=5", "run.seed=7"),
    )
    given = tyro.cli(train_atari.Arguments, args=line).overrides()

    flags = {setting.key: setting.source for setting in given if setting.source != "--set"}
    assert list(flags.values()) == [word for word in line if word.startswith("--")][:-2]
    assert {setting.key: setting.value for setting in given} == {
        "run.game": "ms_pacman",
        "run.algo": "dqn",
        "extractor.coords": "first",
        "extractor.with_r": True,
        "run.total_steps": 0,
        "run.seed": 7,  # later ones win
        "run.device": "cpu",
        "run.protocol": "machado",
        "run.target_return": 0.0,
        "run.track": "none",
        "run.num_envs": 5,
        "algorithm.train_freq": 2,
    }
    assert train_atari.Arguments().overrides() == []


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (("--algo", "dqn"), "dqn.toml"),
        (("--set", "run.algo=a2c"), "a2c.toml"),
        (("--device", "cpu"), "ppo_cpu.toml"),
        (("--device", "cpu", "--config", str(ROOT / "configs" / "ppo.toml")), "ppo.toml"),
        (("--device", "cuda", "--algo", "a2c"), "a2c_cuda.toml"),
        (("--device", "cuda"), "ppo_cuda.toml"),
    ],
)
def test_configuration_fits_algorithm_and_device(arguments: tuple[str, ...], config: str) -> None:
    parsed = tyro.cli(train_atari.Arguments, args=arguments)
    settings, folder, origin = train_atari.choose(parsed)
    assert origin.name == config
    assert settings.run.algo == config[:3]
    assert folder == Path(f"runs/Pong-{config[:3]}-all-s0")


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_the_configuration_is_that_of_a_gpu_where_there_is_one(
    algo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    *_, origin = train_atari.choose(train_atari.Arguments(algo=algo))  # type: ignore[arg-type]
    assert origin.name == f"{algo}_cuda.toml"


@pytest.mark.parametrize("folder", [(), ("--run-dir", "elsewhere/run")], ids=["own", "other"])
def test_a_resumed_run_has_its_own_settings_unless_a_file_is_named(
    folder: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("--algo", "dqn", "--device", "cpu", *folder)

    def chosen(*arguments: str) -> tuple[TrainingSettings, Path, Path]:
        return train_atari.choose(tyro.cli(train_atari.Arguments, args=(*command, *arguments)))

    _, path, _ = chosen()
    path.mkdir(parents=True)
    kept = load_training_settings(None, [parse_override("run.algo=dqn")])
    (path / "settings.toml").write_text(dump_settings(kept))
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nalgo = 'dqn'\n")

    settings, again, origin = chosen("--resume", "--steps", "300")
    assert (again, origin) == (path, path / "settings.toml")
    assert settings == replace(kept, run=replace(kept.run, total_steps=300, device="cpu"))
    assert chosen("--resume", "--config", str(file))[1:] == (path, file)
    assert chosen()[1:] == (path, ROOT / "configs" / "dqn.toml")


def test_a_run_is_resumed_by_its_folder_alone(tmp_path: Path) -> None:
    kept = load_training_settings(None, [parse_override("run.algo=dqn")])
    (tmp_path / "settings.toml").write_text(dump_settings(kept))
    added = (("algorithm.buffer_size=9",),)  # which only DQN has

    settings, folder, origin = train_atari.choose(
        train_atari.Arguments(run_dir=tmp_path, resume=True, set=added)
    )

    assert (folder, origin) == (tmp_path, tmp_path / "settings.toml")
    assert settings == replace(kept, algorithm={**kept.algorithm, "buffer_size": 9})


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Let every run end at once; return what the last one was asked for."""
    asked: dict[str, Any] = {}

    def let_end(**result: Any) -> dict[str, Any]:
        blank = TrainingResult("finished", tmp_path / "last", None, 12345, None, None, None)

        def train(settings: TrainingSettings, folder: Path, **options: Any) -> TrainingResult:
            asked.update(options, settings=settings, folder=folder)
            return replace(blank, **result)

        monkeypatch.setattr(train_atari, "train", train)
        return asked

    return let_end


def test_a_run_is_asked_for_what_the_command_says(
    ended: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    asked = ended()
    command = ["--device", "cpu", "--run-dir", str(tmp_path / "run")]

    assert train_atari.main(command) == 0
    options = {name: asked[name] for name in ("folder", "resume", "profile", "threads")}
    assert options == {
        **{"folder": tmp_path / "run", "resume": False, "profile": False, "threads": None}
    }

    assert train_atari.main([*command, "--resume", "--profile", "--threads", "3"]) == 0
    assert (asked["resume"], asked["profile"], asked["threads"]) == (True, True, 3)
    assert asked["settings"] == load_training_settings(
        ROOT / "configs" / "ppo_cpu.toml", [parse_override("run.device=cpu")]
    )


def test_what_is_printed_tells_where_all_is(
    ended: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ROOT / "configs" / "ppo_cpu.toml"
    command = ["--device", "cpu", "--run-dir", str(tmp_path / "run")]
    begun = f"Pong-ppo-all-s0 with the settings of {config}, in {tmp_path / 'run'}\n"
    last = f"agent: {tmp_path / 'last'}\n"

    ended()
    assert train_atari.main(command) == 0
    assert capsys.readouterr().out == f"{begun}finished after 12,345 steps\n{last}"

    games = EvaluationResult(
        *("Pong", "classic", False, 0, 1, AtariSettings()), (3.0,), (8,), (32,), truncated=0
    )
    ended(
        ending="stopped",
        best_agent=tmp_path / "best",
        evaluation=games,
        signal_number=signal.SIGTERM,
        profile="a table",
    )
    assert train_atari.main(command) == 128 + signal.SIGTERM
    assert capsys.readouterr().out == (
        f"{begun}\na table\n\nstopped after 12,345 steps\nlast evaluation: {games}\n{last}"
        f"agent of the best evaluation: {tmp_path / 'best'}\ngo on with --resume\n"
    )


def test_a_run_that_is_aborted_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def aborted(*_: Any, **__: Any) -> TrainingResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_atari, "train", aborted)
    assert train_atari.main(["--device", "cpu", "--run-dir", str(tmp_path / "run")]) == 130
    said = "aborted; --resume goes on from the last checkpoint\n"
    assert capsys.readouterr().err == said


def test_a_folder_of_any_name_is_printed(
    ended: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended()
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert train_atari.main(["--device", "cpu", "--run-dir", str(tmp_path / "caf\xe9")]) == 0
    assert rb"caf\xe9" in written.getvalue()


@pytest.mark.skipif(os.name != "posix", reason="pipes elsewhere are others")
@pytest.mark.parametrize("before", [True, False], ids=["before", "while it trains"])
def test_who_reads_may_leave(before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = TrainingResult("finished", tmp_path, None, 8, None, None, None)
    reader, writer = os.pipe()

    def train(*_: Any, **__: Any) -> TrainingResult:
        if not before:
            os.close(reader)
        return result

    monkeypatch.setattr(train_atari, "train", train)
    if before:
        os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert train_atari.main(["--device", "cpu", "--run-dir", str(tmp_path / "run")]) == 0


def test_threads_are_those_of_network_and_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    def make_env(*arguments: Any, num_threads: int, **options: Any) -> Any:
        taken.append(num_threads)
        return make_sb3_env(*arguments, num_threads=num_threads, **options)

    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr("coordrl.training.run.make_sb3_env", make_env)
    command = [*SMALL, *SHORT_ROLLOUTS, "--device", "cpu", "--steps", "16"]

    assert train_atari.main([*command, "--threads", "2", "--run-dir", str(tmp_path / "two")]) == 0
    assert train_atari.main([*command, "--run-dir", str(tmp_path / "all")]) == 0
    command += ["--set", "run.on_device=true"]
    assert train_atari.main([*command, "--threads", "3", "--run-dir", str(tmp_path / "on")]) == 0

    assert taken == [2, 2, 0, 3, 3]


def test_a_flag_that_names_the_default_changes_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = [
        *SMALL,
        *SHORT_ROLLOUTS,
        "--device",
        "cpu",
        "--steps",
        "16",
        "--run-dir",
        str(folder),
    ]
    assert train_atari.main(command) == 0
    assert 'coords = "all"' in (folder / "settings.toml").read_text()
    old = (folder / "settings.toml").read_text().replace('coords = "all"\nwith_r = false\n', "")
    (folder / "settings.toml").write_text(old)  # as runs were kept before

    assert train_atari.main([*command, "--resume", "--coords", "all"]) == 0
    assert train_atari.main([*command, "--resume", "--coords", "none"]) == 2
    assert "extractor.coords is 'all' there and 'none' here" in capsys.readouterr().err


def test_a_rom_of_ones_own_has_to_be_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", "")  # as it is afterwards
    (tmp_path / "pong.bin").write_bytes(bytes(2048))
    command = ["--device", "cpu", "--run-dir", str(tmp_path / "run")]

    assert train_atari.main([*command, "--rom-path", str(tmp_path)]) == 2

    assert "pong.bin is not the ROM image of pong that the rules" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--env", "Pnog"), "there is no Atari game 'Pnog'; did you mean Pong"),
        (("--set", "algorithm.n_step=4"), "unknown key 'algorithm.n_step'; the nearest is 'algo"),
        (("--set", "algorithm.n_steps=many"), "algorithm.n_steps must be a whole number, got 'ma"),
        (("--set", "algorithm.n_steps"), "--set expects key=value"),
        (("--set", "run.algo=ddpg"), "run.algo must be one of a2c, ppo, dqn, got 'ddpg'"),
        (("--steps", "-5"), "--steps: total_steps must be at least 1, got -5"),
        (("--threads", "0"), "threads must be at least 1, got 0"),
        (("--seed", "-1"), "--seed: seed must be at least 0, got -1"),
        (("--config", "none.toml"), "none.toml: cannot be read as a settings file"),
        (
            ("--config", str(ROOT / "configs" / "ppo.toml"), "--algo", "dqn"),
            "ppo.toml has the settings of ppo, which are not those of dqn; choose another file or",
        ),
        (("--set", "extractor.features_dim=-3"), "extractor.features_dim must be at least 1, got"),
        (("--resume",), "holds no run to resume"),
        (("--with-r", "--coords", "none"), 'with_r=True needs coordinates: coords="first" or'),
    ],
)
def test_mistakes_end_with_one_sentence_and_code_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = train_atari.main(["--device", "cpu", "--run-dir", str(tmp_path / "run"), *arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("train_atari.py: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without GPU says")
@pytest.mark.parametrize("algo", ["a2c", "ppo", "dqn"])
def test_without_a_gpu_one_sentence_says_so(
    algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cuda", "--algo", algo, "--run-dir", str(tmp_path / "run")]
    assert train_atari.main(arguments) == 2
    said = "train_atari.py: device = 'cuda', but torch finds no GPU; choose 'cpu'\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algo", ["a2c", "ppo", "dqn"])
def test_the_configuration_for_a_gpu_runs_on_the_cpu(
    algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {
        "ppo": ("algorithm.n_steps=8", "algorithm.batch_size=16"),
        "a2c": (),
        "dqn": ("algorithm.buffer_size=64", "algorithm.learning_starts=16"),
    }[algo]
    arguments = (
        *("--device", "cpu", "--env", "Breakout", "--config"),
        *(str(ROOT / "configs" / f"{algo}_cuda.toml"), "--steps", "64", *SMALL, *keys),
        *("algorithm.learning_rate=0.001", "--run-dir", str(tmp_path / "run")),
    )
    assert train_atari.main(list(arguments)) == 0
    out, err = capsys.readouterr()
    apart = ", begun up to 256 steps apart" if algo == "ppo" else ""
    assert f"on the device: 2 games{apart}; " in err
    assert "learning rate 0.001; features in bfloat16" in err
    assert "finished after" in out
    assert load_agent(tmp_path / "run" / "last").card is not None


@pytest.mark.parametrize(("rank", "status"), [("0", 130), ("1", 0)])
def test_who_stops_beside_the_first_process_has_not_failed(
    rank: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Where one has failed torchrun ends the others, and the first may still be saving the agent.
    stopped = TrainingResult("stopped", tmp_path, None, 8, None, signal.SIGINT, None)
    monkeypatch.setattr(train_atari, "train", lambda *_, **__: stopped)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("RANK", rank)

    assert train_atari.main(["--run-dir", str(tmp_path / "run")]) == status
    assert (capsys.readouterr().out != "") is (rank == "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algo", "ddpg"), "Invalid choice"),
        (("--stesp", "5"), "Perhaps you meant"),
        (("--steps", "many"), "many"),
        (("--steps", "None"), "None"),
    ],
)
def test_unknown_flags_and_values_end_with_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        train_atari.main(list(arguments))
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = (
        *("--env", "Breakout", "--steps", "1000000", "--run-dir", str(folder)),
        *(*SMALL, *SHORT_ROLLOUTS, "run.evaluation_interval=0"),
    )
    with start(*arguments) as process:
        wait_for_checkpoints(folder, 2, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    saved = max(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))

    with start("--resume", "--run-dir", str(folder)) as process:
        wait_for_checkpoints(folder, 2, process, later_than=saved)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)

    assert process.returncode == 128 + signal.SIGTERM, err
    assert f"going on from the checkpoint of step {saved:,}" in err
    assert "stopped after" in out
    assert "go on with --resume" in out
    card = load_agent(folder / "last").card
    assert card is not None
    assert card.agent_steps > saved
    assert load_training_settings(folder / "settings.toml").run.total_steps == 1_000_000


def wait_for_checkpoints(
    folder: Path, count: int, process: "subprocess.Popen[str]", later_than: int = -1
) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        steps = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
        if sum(step > later_than for step in steps) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"no checkpoints after four minutes, only {steps}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "game", "more"),
    [
        ("a2c", "SpaceInvaders", ()),
        ("ppo", "Freeway", ()),
        ("dqn", "Breakout", ("--set", "algorithm.learning_starts=500")),
    ],
)
def test_every_algorithm_trains_from_its_own_configuration(
    algo: str, game: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ("--env", game, "--algo", algo, "--steps", "1500", "--run-dir", str(folder))
    with start(*arguments, "--profile", "--set", "run.evaluation_episodes=1", *more) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "finished after" in out
    assert "environment" in out
    assert load_agent(folder / "last").card is not None
    assert load_agent(folder / "best").card is not None


@pytest.mark.parametrize(
    "name", ["train_coordinates", "train_detector", "train_digits", "train_gan", "train_atari"]
)
def test_settings_of_several_flags_are_all_kept(name: str) -> None:
    script = importlib.import_module(name)
    given = ["--set", "a=1", "b=2", "--set", "c=3"]
    arguments = tyro.cli(script.Arguments, args=given)
    assert arguments.set == (("a=1", "b=2"), ("c=3",))
