"""The emulator on a GPU: environments, observations and all results are torch tensors there.

:class:`DeviceEmulator` is :class:`~coordrl.emulator.Emulator` for thousands of environments: the
same settings, the same bytes, but it neither copies to the host nor waits. It runs ``kernels.cu``,
which :mod:`coordrl.emulator.nvrtc` compiles for each game when it is first needed.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordrl.config import AtariSettings
from coordrl.emulator import compiled, nvrtc, states
from coordrl.emulator.arguments import checked_mask, in_range, process_cpu_count, reset_seeds
from coordrl.emulator.batch import Emulator
from coordrl.emulator.games import ACTIONS, GAMES, Game, load_rom
from coordrl.emulator.settings import (
    MAX_COUNT,
    Autoreset,
    native_settings,
    observation_shape,
    state_key,
)

_NOTE_BYTES = 120  # of kernels.cu's Note
_PICTURES = 5  # of each environment
_MAX_PLAYING_THREADS = 64  # of a block that plays: two warps, as many as kernels.cu has memory for
_SHOWING_THREADS = 256  # of a block that makes one observation
_NO_ALBUM = -1


class Kernels(Protocol):
    """Launches the two kernels of ``kernels.cu`` for one game."""

    def launch(
        self, name: str, blocks: int, threads: int, *arguments: bytes, spare_bytes: int = 0
    ) -> None:
        """Launch a kernel on the current stream.

        ``arguments`` are the kernel's parameters as bytes; each block reserves ``spare_bytes`` of
        shared memory beyond what it uses.
        """


MakeKernels = Callable[[Sequence[str], torch.device], Sequence[Kernels]]
"""Makes the kernels of each game for a GPU."""


@dataclass(frozen=True)
class Occupancy:
    """How environments are spread over a GPU. Results do not depend on it."""

    threads: int = _MAX_PLAYING_THREADS
    """Environments per block, 1 to 64. The threads of a warp wait for diverging ones, so each
    should run faster in a warp of fewer than 32 environments."""
    spare_bytes: int = 0
    """Bytes of shared memory that a block reserves but does not use, so that a multiprocessor runs
    fewer blocks at a time. Since cache and shared memory are one, a block gets more cache only if
    one or two blocks are left."""

    def __post_init__(self) -> None:
        in_range("threads", self.threads, 1, _MAX_PLAYING_THREADS)
        in_range("spare_bytes", self.spare_bytes, 0, None)

    @classmethod
    def filling(cls, num_envs: int, multiprocessors: int) -> "Occupancy":
        """Return blocks just small enough for every multiprocessor to get one; at most 64 threads.

        Example:
            >>> [Occupancy.filling(n, multiprocessors=132).threads for n in (100, 4096, 65536)]
            [1, 32, 64]
        """
        return cls(threads=min(-(-num_envs // multiprocessors), _MAX_PLAYING_THREADS))


@dataclass(frozen=True)
class DeviceStep:
    """Result of a step or a reset: the fields of :class:`~coordrl.emulator.Step`, as tensors.

    The tensors belong to the emulator, are the same in every step, and are overwritten by the next
    step; clone to keep them. ``final_obs`` is written wherever an episode was terminated or
    truncated, also where the game goes on after a lost life.
    """

    obs: Tensor
    final_obs: Tensor
    rewards: Tensor
    unclipped_rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    ended: Tensor
    life_lost: Tensor
    lives: Tensor
    frame_number: Tensor
    episode_frame_number: Tensor
    episode_return: Tensor
    episode_length: Tensor


class DeviceEmulator:
    """``num_envs`` games that are stepped together on a GPU.

    Several games share one batch in equal parts, in their order; the environments of a game are
    contiguous, because the threads of a warp should run the same program. A step is two launches
    per game, on torch's current stream or, with several games, on streams that fork from it and
    join it again. Addresses are the same every time, so that a CUDA graph can capture a step.

    Args:
        games: Name of the game, or names; all with the same number of actions.
        num_envs: Number of environments, a multiple of the number of games.
        settings: How the games are played and seen; ``AtariSettings()`` if None.
        autoreset: When the next episode begins, as in ``Emulator``.
        device: A CUDA device.
        rom_path: Folder with ROM images; by default those in ale-py.
        occupancy: How the environments are spread over the GPU; if None, ``Occupancy.filling`` for
            those of all games, which are played at the same time.
        make_kernels: Makes the kernels of each game; tests pass one for the CPU.

    Raises:
        nvrtc.CudaError: If there is no GPU, no compiler for it, or the kernels do not compile.
        ValueError, RuntimeError: As for ``Emulator``.
    """

    def __init__(
        self,
        games: str | Sequence[str],
        num_envs: int,
        settings: AtariSettings | None = None,
        *,
        autoreset: Autoreset = "same_step",
        device: torch.device | str = "cuda",
        rom_path: str | os.PathLike[str] | None = None,
        occupancy: Occupancy | None = None,
        make_kernels: MakeKernels = nvrtc.kernels_for,
    ) -> None:
        names = (games,) if isinstance(games, str) else tuple(games)
        self.games = tuple(GAMES[name] for name in names)
        self.autoreset = autoreset
        self._rom_path = rom_path
        self._on_host: dict[str, Emulator] = {}  # one environment per game, to draw screens
        self.settings = AtariSettings() if settings is None else settings
        self.num_envs = in_range("num_envs", num_envs, 1, MAX_COUNT)
        if not names or num_envs % len(names) != 0:
            raise ValueError(
                f"num_envs must be a multiple of the {len(names)} games, got {num_envs}"
            )
        choices = {game.actions(full=self.settings.full_action_space) for game in self.games}
        if len({len(actions) for actions in choices}) > 1:
            raise ValueError(
                "games of one batch need the same number of actions, got "
                f"{sorted(len(actions) for actions in choices)}; full_action_space=True gives most "
                "of them 18"
            )
        self.actions = self.games[0].actions(full=self.settings.full_action_space)
        self.obs_shape, *_ = (observation_shape(game, self.settings) for game in self.games)
        natives = [native_settings(game, self.settings, autoreset) for game in self.games]
        roms = [load_rom(name, rom_path) for name in names]
        self.device = nvrtc.indexed(torch.device(device))
        if self.device.type == "cuda":
            nvrtc.require_gpu()
        self._latest = _allocate(num_envs, self.obs_shape, self.device)
        each = num_envs // len(names)
        if occupancy is None:
            occupancy = _filling(num_envs, self.device)
        self._groups: list[_Group] = []
        made = make_kernels(names, self.device)
        for i, (game, native, rom, kernels) in enumerate(
            zip(self.games, natives, roms, made, strict=True)
        ):
            group = _Group(
                game, self.settings, native, rom,
                _rows(self._latest, slice(i * each, (i + 1) * each)), kernels, occupancy,
                self._groups[0].system_random if self._groups else None,
            )  # fmt: skip
            self._groups.append(group)
        self._branches = _Branches(len(names), self.device)
        self._was_reset = False

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """Names of the actions, in the first game."""
        return tuple(ACTIONS[action] for action in self.actions)

    def reset(
        self,
        *,
        seed: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> DeviceStep:
        """Begin new episodes, in all environments or in some: ``Emulator.reset``."""
        chosen = checked_mask(mask, self.num_envs, was_reset=self._was_reset)
        seeds = reset_seeds(seed, chosen, was_reset=self._was_reset)
        self._was_reset = True
        on_device = torch.from_numpy(seeds).to(self.device)
        masked = torch.from_numpy(chosen).to(self.device)
        self._launch(seeds=on_device, mask=masked)
        return self._latest

    def step(self, actions: Tensor) -> DeviceStep:
        """Play one action in every environment.

        Args:
            actions: int64 of shape ``(num_envs,)`` on the device, indices of ``self.actions``.
                Their range is not checked, which would have to wait for them: an action that does
                not exist is clamped to the nearest.

        Raises:
            ValueError: If the shape or the device is wrong, or there was no reset.
            TypeError: If the actions are not int64.
        """
        if not self._was_reset:
            raise ValueError("call reset before the first step")
        if actions.shape != (self.num_envs,) or actions.device != self._latest.obs.device:
            raise ValueError(
                f"actions must have shape ({self.num_envs},) on {self._latest.obs.device}, "
                f"got {tuple(actions.shape)} on {actions.device}"
            )
        if actions.dtype != torch.int64:
            raise TypeError(f"actions must be int64, got {actions.dtype}")
        self._launch(actions=actions.contiguous())
        return self._latest

    def save(self) -> list[bytes]:
        """Return every environment as bytes, which an ``Emulator`` on the CPU can restore, too.

        Raises:
            ValueError: If there was no reset.
        """
        if not self._was_reset:
            raise ValueError("call reset before saving")
        return [state for group in self._groups for state in group.save()]

    def restore(self, saved: Sequence[bytes]) -> DeviceStep:
        """Restore the environments from what ``save`` returned, here or on a CPU.

        Raises:
            ValueError: If a state is damaged or belongs to something else, or if their number is
                wrong. The environments are then unchanged.
        """
        if len(saved) != self.num_envs:
            raise ValueError(
                f"restore of {self.num_envs} environments needs as many states, got {len(saved)}"
            )
        unpacked = [group.unpack(saved[rows]) for group, rows in self._parts()]
        for (group, _), contents in zip(self._parts(), unpacked, strict=True):
            group.restore(contents)
        unseeded = torch.full((self.num_envs,), -1, device=self.device)
        self._launch(seeds=unseeded, mask=torch.zeros_like(unseeded, dtype=torch.bool))
        self._was_reset = True
        return self._latest

    @property
    def ram(self) -> Tensor:
        """The 128 bytes of RAM of every console, ``(num_envs, 128)``, copied."""
        return torch.cat([group.ram for group in self._groups])

    def screen(self, index: int) -> NDArray[np.uint8]:
        """Return the last frame of an environment as it was on screen, ``(height, 160, 3)``.

        It is drawn on demand, on the CPU, from a copy of the environment.
        """
        if not self._was_reset:
            raise ValueError("call reset before looking at the screen")
        group, row = divmod(
            in_range("index", index, 0, self.num_envs - 1), self.num_envs // len(self._groups)
        )
        name = self.games[group].name
        if name not in self._on_host:
            self._on_host[name] = Emulator(
                name, 1, self.settings, autoreset=self.autoreset, rom_path=self._rom_path
            )
        self._on_host[name].restore(self._groups[group].save(slice(row, row + 1)))
        return self._on_host[name].screen(0)

    def _launch(self, **arguments: Tensor) -> None:
        """Play all games concurrently: a single one would leave most of a GPU idle."""
        with self._branches.leave_and_join():
            for i, (group, rows) in enumerate(self._parts()):
                with self._branches[i]:
                    group.play(**{name: tensor[rows] for name, tensor in arguments.items()})
            # A GPU has fewer queues than games, so launches that wait for their game to be played
            # must not be queued ahead of another game.
            for i, (group, _) in enumerate(self._parts()):
                with self._branches[i]:
                    group.show()

    def _parts(self) -> list[tuple["_Group", slice]]:
        each = self.num_envs // len(self._groups)
        return [(g, slice(i * each, (i + 1) * each)) for i, g in enumerate(self._groups)]


class _Branches:
    """A stream for each of several games, which forks from torch's current one and joins it."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._device = device
        needed = count if count > 1 and device.type == "cuda" else 0
        self._streams = [
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for _ in range(needed)
        ]

    @contextlib.contextmanager
    def leave_and_join(self) -> Iterator[None]:
        """Make the streams wait for the current one's work so far, and it for theirs at the end."""
        if not self._streams:
            yield
            return
        current = torch.cuda.current_stream(self._device)
        for stream in self._streams:
            stream.wait_stream(current)
        yield
        for stream in self._streams:
            current.wait_stream(stream)

    def __getitem__(self, i: int) -> AbstractContextManager[Any]:
        """Return a context in which a game's stream is the current one, if there are streams."""
        return torch.cuda.stream(self._streams[i]) if self._streams else contextlib.nullcontext()


class _Group:
    """The environments of one game."""

    def __init__(
        self,
        game: Game,
        settings: AtariSettings,
        native: Any,
        rom: bytes,
        rows: DeviceStep,
        kernels: Kernels,
        occupancy: Occupancy,
        system_random: Tensor | None,
    ) -> None:
        self._kernels = kernels
        self._occupancy = occupancy
        self._rows = rows
        self._num_envs = len(rows.obs)
        tables = self._tables = compiled.native().DeviceTables(native, rom, process_cpu_count())
        obs_shape = tuple(rows.obs.shape[1:])
        self._key = state_key(game, settings, native, obs_shape, tables.environment_bytes)
        device = rows.obs.device

        def tensor(content: bytes) -> Tensor:
            host = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
            return host.to(device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.uint8, device=device)

        if system_random is None:
            system_random = tensor(tables.system_random())
        self.system_random = system_random
        self._environments = zeros(self._num_envs, tables.environment_bytes)
        self._album = slice(tables.album_offset, tables.album_offset + 4)
        self._environments[:, self._album] = 255  # none
        self._notes = zeros(self._num_envs, _NOTE_BYTES)
        self._pictures = zeros(self._num_envs, _PICTURES, tables.picture_bytes)
        self._rom = tensor(rom + b"\0" * 8)
        fresh_pictures = tensor(tables.fresh_pictures())
        actions = game.actions(full=settings.full_action_space)
        shared = [
            tensor(tables.setups(self._rom.data_ptr(), system_random.data_ptr())),
            tensor(tables.pasts()),
            tensor(tables.fresh_games(fresh_pictures.data_ptr())),
            tensor(tables.beginnings()),
            tensor(tables.planes()),
            tensor(bytes(actions)),
        ]
        self._shared = [self._rom, fresh_pictures, *shared]  # keeps their addresses valid
        setups, pasts, fresh, beginnings, planes, codes = (t.data_ptr() for t in shared)
        results = [getattr(rows, field.name).data_ptr() for field in fields(DeviceStep)]
        self._batch = struct.pack(
            "<25q",
            setups,
            *(t.data_ptr() for t in (self._environments, self._notes, self._pictures)),
            pasts,
            fresh,
            beginnings,
            planes,
            tables.idle_counts,
            codes,
            len(actions),
            self._num_envs,
            *results,
        )

    def play(
        self, *, actions: Tensor | None = None, seeds: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Play one action in every environment, or begin episodes where ``mask`` is true."""
        threads = self._occupancy.threads
        blocks = -(-self._num_envs // threads)
        self._kernels.launch(
            "play_environments", blocks, threads,
            self._batch, _address(actions), _address(seeds), _address(mask),
            spare_bytes=self._occupancy.spare_bytes,
        )  # fmt: skip

    def show(self) -> None:
        """Make the observations after ``play``."""
        self._kernels.launch("show_observations", self._num_envs, _SHOWING_THREADS, self._batch)

    @property
    def ram(self) -> Tensor:
        at = self._tables.ram_offset
        return self._environments[:, at : at + 128].clone()

    def save(self, rows: slice = slice(None)) -> list[bytes]:
        environments = self._environments[rows].cpu().numpy()
        obs = self._rows.obs[rows].cpu().numpy()
        pictures = self._pictures[rows, :4]
        saved = []
        for i, environment in enumerate(environments):
            parts = [environment.tobytes()]
            if int.from_bytes(environment[self._album].tobytes(), "little", signed=True) >= 0:
                parts.append(pictures[i].cpu().numpy().tobytes())
            saved.append(states.pack(self._key, *parts, obs[i].tobytes()))
        return saved

    def unpack(self, saved: Sequence[bytes]) -> list[bytes]:
        obs_bytes = self._rows.obs[0].numel()
        largest = self._tables.environment_bytes + 4 * self._tables.picture_bytes + obs_bytes
        unpacked = [states.unpack(self._key, s, largest=largest) for s in saved]
        for content in unpacked:
            if not self._tables.fits(content[:-obs_bytes]):
                raise ValueError(
                    "the saved environment is damaged: no console can be in that state"
                )
        return unpacked

    def restore(self, contents: Sequence[bytes]) -> None:
        size, obs_bytes = self._tables.environment_bytes, self._rows.obs[0].numel()
        device = self._rows.obs.device
        bytes_of = [np.frombuffer(content, np.uint8) for content in contents]
        environments = np.stack([content[:size] for content in bytes_of])
        album = environments[:, self._album].copy().view(np.int32)
        album[album != _NO_ALBUM] = 0
        environments[:, self._album] = album.view(np.uint8)
        self._environments.copy_(torch.from_numpy(environments).to(device))
        obs = np.stack([content[-obs_bytes:] for content in bytes_of])
        self._rows.obs.copy_(torch.from_numpy(obs).to(device).view_as(self._rows.obs))
        for i in np.flatnonzero(album[:, 0] != _NO_ALBUM).tolist():
            pictures = torch.from_numpy(bytes_of[i][size:-obs_bytes].copy())
            self._pictures[i, :4].copy_(pictures.to(device).view_as(self._pictures[i, :4]))
        self._notes.zero_()


def _filling(num_envs: int, device: torch.device) -> Occupancy:
    if device.type != "cuda":
        return Occupancy()
    properties = torch.cuda.get_device_properties(device)
    return Occupancy.filling(num_envs, properties.multi_processor_count)


def _address(tensor: Tensor | None) -> bytes:
    return struct.pack("<q", 0 if tensor is None else tensor.data_ptr())


def _allocate(num_envs: int, obs_shape: tuple[int, ...], device: torch.device) -> DeviceStep:
    def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros((num_envs, *shape), dtype=dtype, device=device)

    flags = ("terminated", "truncated", "ended", "life_lost")
    return DeviceStep(
        **{
            field.name: zeros(torch.uint8, *obs_shape)
            if field.name in ("obs", "final_obs")
            else zeros(torch.bool if field.name in flags else torch.int32)
            for field in fields(DeviceStep)
        }
    )


def _rows(step: DeviceStep, rows: slice) -> DeviceStep:
    return DeviceStep(**{f.name: getattr(step, f.name)[rows] for f in fields(DeviceStep)})
