"""``scripts/verify_emulator.py``: what it compares, its record, how it ends."""

import json
import multiprocessing
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import verify_emulator
from coordrl.config import AtariSettings
from coordrl.emulator import GAMES, Console, lockstep, verification
from coordrl.emulator.lockstep import POLICIES, Tally
from coordrl.emulator.source_checksum import source_checksum
from coordrl.emulator.verification import Comparison, Record, Result, compare_games
from coordrl.files import RunError


def options(
    games: str, json: Path | None = None, *, resume: bool = False, **chosen: Any
) -> verify_emulator.Options:
    comparison = Comparison(**chosen)
    return verify_emulator.Options(games=games, comparison=comparison, json=json, resume=resume)


def compare(chosen: verify_emulator.Options) -> int:
    return verify_emulator.compare(chosen, "python scripts/verify_emulator.py")


def test_without_a_difference_the_status_is_0_and_the_record_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "GRID", verification.GRID[:2])
    path = tmp_path / "record.json"
    frames = options(games="pong,MsPacman", frames=96, seeds=(5,), workers=1, json=path)
    steps = options(games="pong", vector=True, steps=8, workers=1, json=path)

    assert compare(frames) == 0
    assert compare(steps) == 0

    content = json.loads(path.read_text())
    assert sorted(content) == ["frames", "steps"]
    assert content["frames"]["compared"]["frames"] == 2 * 3 * 96
    assert content["frames"]["compared"]["resets"] >= 2 * len(POLICIES)
    assert [result["game"] for result in content["frames"]["results"]] == ["ms_pacman", "pong"]
    assert content["frames"]["games that differ"] == {}
    assert content["frames"]["games that came to none"]["games_over"] == 2


def test_a_record_is_gone_on_with_if_it_was_made_in_the_same_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "record.json"
    shared: dict[str, Any] = {"frames": 40, "seeds": (0,), "workers": 1, "json": path}
    assert compare(options(games="pong", **shared)) == 0
    first = json.loads(path.read_text())["frames"]["results"][0]
    compare_game, played = verification.compare_game, []

    def counted(job: tuple[str, Any]) -> Any:
        played.append(job[0])
        return compare_game(job)

    monkeypatch.setattr(verification, "compare_game", counted)

    assert compare(options(games="boxing,pong", **shared, resume=True)) == 0

    assert played == ["boxing"]
    assert json.loads(path.read_text())["frames"]["results"][1] == first
    other: dict[str, Any] = {**shared, "frames": 41}
    assert compare(options(games="boxing,pong", **other, resume=True)) == 2
    assert "compared under other conditions; leave out --resume" in capsys.readouterr().err
    assert json.loads(path.read_text())["frames"]["conditions"]["frames"] == 40


def test_games_compared_in_the_same_way_stay_in_the_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    shared: dict[str, Any] = {"frames": 40, "seeds": (0,), "workers": 1, "json": path}
    for games in ("pong", "boxing", "pong"):
        command = f"python scripts/verify_emulator.py --games {games}"
        assert verify_emulator.compare(options(games=games, **shared), command) == 0

    content = json.loads(path.read_text())["frames"]

    assert [result["game"] for result in content["results"]] == ["boxing", "pong"]
    assert content["games"] == 2
    assert content["compared"]["frames"] == 2 * 3 * 40
    command = "python scripts/verify_emulator.py --games"
    assert content["commands"] == [f"{command} boxing", f"{command} pong"]


def test_two_that_compare_at_the_same_time_share_a_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    comparison = Comparison(frames=40, seeds=(0,))
    one, other = (
        Record.open(path, comparison, [game], f"verify_emulator.py --games {game}")
        for game in ("pong", "boxing")
    )
    pong, boxing, enduro = (Result(game, Tally(), "", 1.0) for game in ("pong", "boxing", "enduro"))

    one.add(pong)
    other.add(boxing)
    one.add(enduro)

    content = json.loads(path.read_text())["frames"]
    assert [result["game"] for result in content["results"]] == ["boxing", "enduro", "pong"]
    assert content["commands"] == [f"verify_emulator.py --games {n}" for n in ("boxing", "pong")]


def test_a_few_games_do_not_replace_the_record_of_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    shared: dict[str, Any] = {"seeds": (0,), "workers": 1, "json": path}
    assert compare(options(games="boxing,pong", frames=40, **shared)) == 0
    before = path.read_bytes()

    assert compare(options(games="pong", frames=41, **shared)) == 2

    assert path.read_bytes() == before
    message = "frames of 2 games that were compared under other conditions; compare all of them"
    assert message in capsys.readouterr().err
    assert compare(options(games="boxing,pong", frames=41, **shared)) == 0
    assert json.loads(path.read_text())["frames"]["conditions"]["frames"] == 41


def test_results_of_another_comparison_are_other_conditions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comparison = Comparison(vector=True)
    before = comparison.conditions()
    assert comparison.conditions() == before
    monkeypatch.setattr(verification, "GRID", verification.GRID[1:])
    assert comparison.conditions() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing/record.json", None, "record.json: No such file or directory"),
        ("", None, "it is a folder; name a file in it"),
        ("record.json", "[1, 2]", "record.json is no record of comparisons"),
        ("record.json", '{"rows": []}', "record.json is no record of comparisons"),
        ("record.json", "{", "record.json is no record of comparisons"),
    ],
)
def test_a_file_that_cannot_take_the_record_is_refused_before_a_game_is_played(
    name: str,
    content: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(verification, "compare_game", None)  # not to be called

    assert compare(options(games="pong", workers=1, json=path)) == 2

    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert content is None or path.read_text() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": True, "vector": True}, "--modes and --vector are different comparisons"),
        ({"vector": True, "device": "cuda"}, "--vector and --device cuda are different"),
        ({"resume": True}, "--resume goes on with a record; name it with --json"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(options(games="pong", workers=1, **changes)) == 2
    assert message in capsys.readouterr().err


def test_the_sources_of_a_comparison_on_a_gpu_are_the_gpus_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"gpu": "NVIDIA H200", "driver": "13.0", "nvrtc": "13.0"}
    monkeypatch.setattr(verification, "gpu_versions", lambda: versions)
    folder = Path(verification.__file__).parent

    cpu, gpu = Comparison().conditions(), Comparison(device="cuda").conditions()

    assert versions.items() <= gpu.items()
    assert not versions.keys() & cpu.keys()

    assert cpu["sources"] == source_checksum(folder)
    assert gpu["sources"] == source_checksum(folder, gpu=True) != cpu["sources"]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_missed() -> None:
    long = Comparison(frames=1_000_000, workers=2)
    with ThreadPoolExecutor(1) as other:
        compared = other.submit(list, compare_games(["pong", "freeway"], long))
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.1)
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        with pytest.raises(RunError, match=r"a process that compares was killed, .* --workers"):
            compared.result()
    assert not multiprocessing.active_children()


def test_an_emulator_compiled_from_other_sources_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verification, "compiled_sources", lambda: "0123456789abcdef")

    assert compare(options(games="pong", workers=1)) == 2

    assert "was compiled from other sources (0123456789abcdef)" in capsys.readouterr().err


def test_a_difference_is_printed_and_recorded_and_makes_the_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Liar(Console):
        @property
        def ram(self) -> NDArray[np.uint8]:
            ram = super().ram
            ram[7] ^= 0x40 * (self.frame_number > 100)
            return ram

    monkeypatch.setattr(lockstep, "Console", Liar)
    path = tmp_path / "record.json"

    status = compare(options(games="pong", frames=400, workers=1, json=path))

    assert status == 1
    difference = json.loads(path.read_text())["frames"]["games that differ"]["pong"]
    assert re.match(r"pong, frame \d+ .*RAM at \(7,\)", difference)
    printed = capsys.readouterr().out
    assert difference in printed
    assert "1 games, 1 that differ" in printed


def test_a_gpu_without_room_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60.00 MiB.")

    monkeypatch.setattr(verification, "compare_frames", fail)
    assert compare(options(games="pong", workers=1)) == 2
    said = "verify_emulator.py: CUDA out of memory. Tried to allocate 60.00 MiB.\n"
    assert capsys.readouterr().err.endswith(said)


def test_an_unknown_game_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(options(games="pong,brekout")) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("game", ["pong", "adventure", "video_cube"])
def test_modes_are_all_played_and_so_is_every_policy_with_every_seed(
    game: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[dict[str, Any]] = []
    monkeypatch.setattr(
        verification, "compare_frames", lambda name, **chosen: played.append(chosen)
    )
    comparison = Comparison(modes=True, frames=20_000, seeds=(0, 3))

    assert verification.compare_game((game, comparison)).difference == ""

    variations = {(play["mode"], play["difficulty"]) for play in played}
    facts = GAMES[game]
    assert variations == {(m, d) for m in facts.modes for d in facts.difficulties}
    assert len({(play["policy"], play["seed"]) for play in played}) == 8
    assert len({play["repeat_action_probability"] for play in played}) == 2
    assert sum(play["frames"] for play in played) >= 20_000
    assert all(play["frames"] >= 200 for play in played)


def test_whole_games_are_played_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[dict[str, Any]] = []
    monkeypatch.setattr(
        verification, "compare_frames", lambda name, **chosen: played.append(chosen)
    )

    verification.compare_game(("pong", Comparison(frames=9_000)))

    whole = [play for play in played if play["longest_game"] > 10**9]
    assert [
        (play["policy"], play["frames"], play["repeat_action_probability"]) for play in whole
    ] == [
        ("held", 9_000, 0.0),
        ("fire", 9_000, 0.25),
    ]
    assert sum(play["frames"] for play in played) == 27_000


def test_another_plan_is_another_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    before = verification.comparison_checksum()
    assert verification.comparison_checksum() == before
    for name, value in (("LONG", 3), ("LEAST_FRAMES", 100), ("frame_runs", verification.step_runs)):
        with monkeypatch.context() as patch:
            patch.setattr(verification, name, value)
            assert verification.comparison_checksum() != before, name


def test_steps_are_played_with_every_setting_policy_seed_and_both_autoreset_modes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played: list[dict[str, Any]] = []

    def compare_steps(name: str, settings: AtariSettings, **chosen: Any) -> None:
        played.append({"settings": settings, **chosen})

    monkeypatch.setattr(verification, "compare_steps", compare_steps)

    verification.compare_game(("pooyan", Comparison(vector=True, steps=2000)))

    settings = {play["settings"] for play in played}
    assert len(settings) == len(verification.GRID)
    assert (220, 160) in {chosen.screen_size for chosen in settings}
    assert len({(play["settings"], play["autoreset"]) for play in played}) == 2 * len(settings)
    assert {play["seed"] for play in played} == {0, 1, 2}
    assert {play["policy"] for play in played} == set(POLICIES)
    long = [play for play in played if play["steps"] > 100]
    assert {play["settings"].life_loss for play in long} == {"ignore", "reset", "terminate"}
    assert {play["settings"].clip_reward for play in long} == {True, False}
    assert {play["steps"] for play in long} == {189}
    assert {play["steps"] for play in played} == {189, 19}
    assert sum(play["steps"] for play in played) >= 2000


def test_a_gpu_is_compared_with_all_that_the_cpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[dict[str, Any]] = []

    def compare_devices(name: str, settings: AtariSettings, **chosen: Any) -> None:
        played.append({"settings": settings, **chosen})

    monkeypatch.setattr(verification, "compare_devices", compare_devices)

    verification.compare_game(("pooyan", Comparison(device="cuda", steps=2000)))

    long = [(p["settings"], p["autoreset"]) for p in played if p["steps"] == 2000]
    short = {(p["settings"], p["autoreset"]) for p in played if p["steps"] == 100}
    assert long == [(AtariSettings(), "same_step"), (AtariSettings(), "next_step")]
    assert len(short) == 3 * (len(verification.GRID) + 1)
    assert {settings.life_loss for settings, _ in short} == {"ignore", "terminate", "reset"}
    assert {settings.observation for settings, _ in short} == {"gray", "rgb", "ram"}
    assert {autoreset for _, autoreset in short} == {"same_step", "next_step", "disabled"}

    played.clear()
    verification.compare_game(("pooyan", Comparison(device="cuda", steps=2000, grid=False)))
    assert [(p["settings"], p["autoreset"]) for p in played] == long


def test_processes_do_not_crowd_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "process_cpu_count", lambda: 100)
    threads: list[int] = []
    monkeypatch.setattr(
        verification, "compare_devices", lambda *_, num_threads, **__: threads.append(num_threads)
    )

    verification.compare_game(("pong", Comparison(device="cuda")))

    assert set(threads) == {12}
    assert Comparison(device="cuda").processes == 8
    assert Comparison().processes == 100
    assert Comparison(device="cuda", workers=3).processes == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"vector": True, "steps": -5}, "steps must be at least 1, got -5"),
        ({"seeds": ()}, "there must be a seed or more, got none"),
        ({"seeds": (0, -1)}, "seeds must be from 0 to 2147483392, got (0, -1)"),
        ({"seeds": (2**31 - 255,)}, "seeds must be from 0 to 2147483392, got (2147483393,)"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_a_comparison_of_nothing_is_refused(
    changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(options(**{"games": "pong", "workers": 1, **changes})) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 7}, "--steps would be ignored: this comparison counts frames"),
        ({"grid": False}, "--no-grid would be ignored: it is for --device cuda"),
        ({"num_envs": 3}, "--num-envs would be ignored: it is for --device cuda"),
        ({"modes": True, "steps": 7}, "--steps would be ignored: this comparison counts frames"),
        ({"vector": True, "frames": 7}, "--frames would be ignored: this comparison counts steps"),
        ({"device": "cuda", "frames": 7}, "--frames would be ignored: this comparison counts st"),
    ],
)
def test_what_a_comparison_does_not_count_is_refused(
    changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(options(**{"games": "pong", "workers": 1, **changes})) == 2
    assert message in capsys.readouterr().err
