"""The emulator on a GPU: environments, observations and all results are torch tensors there.

:class:`DeviceEmulator` is :class:`~coordrl.emulator.Emulator` for thousands of environments: the
same settings, the same bytes, but nothing is copied to the host and nothing is waited for. What
runs is ``kernels.cu``, compiled by :mod:`coordrl.emulator.nvrtc` for each game when it is first
needed.
"""

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordrl.config import AtariSettings
from coordrl.emulator import (
    ACTIONS,
    GAMES,
    MAX_COUNT,
    Autoreset,
    _compiled,
    _native_settings,
    load_rom,
    nvrtc,
    observation_shape,
    process_cpu_count,
    state_key,
    states,
)
from coordrl.emulator.arguments import checked_mask, in_range, reset_seeds

_NOTE_BYTES = 120  # of kernels.cu's Note
_PICTURES = 5  # of each environment
_MAX_PLAYING_THREADS = 64  # of a block that plays: two warps, as many as kernels.cu has memory for
_SHOWING_THREADS = 256  # of a block that makes one observation
_NO_ALBUM = -1
_NOTHING = bytes(8)  # a pointer to nothing


class Kernels(Protocol):
    """What launches the two kernels of ``kernels.cu`` for one game."""

    def launch(
        self, name: str, blocks: int, threads: int, *arguments: bytes, spare_bytes: int = 0
    ) -> None:
        """Launch a kernel on the current stream.

        ``arguments`` are its parameters as bytes; each block reserves ``spare_bytes`` of shared
        memory beyond what it uses.
        """


MakeKernels = Callable[[str, torch.device], Kernels]
"""What makes them, for a game and a GPU."""


@dataclass(frozen=True)
class Occupancy:
    """How environments are spread over a GPU. What they compute does not depend on it."""

    threads: int = _MAX_PLAYING_THREADS
    """Environments of a block, 1 to 64. The threads of a warp wait for those that are at another
    instruction, so in a warp of fewer than 32 environments each runs faster."""
    spare_bytes: int = 0
    """Shared memory that a block reserves and leaves alone, so that a multiprocessor runs fewer
    blocks at a time. Cache and shared memory are one: only where one or two blocks are left does a
    block have more cache than before."""

    def __post_init__(self) -> None:
        in_range("threads", self.threads, 1, _MAX_PLAYING_THREADS)
        in_range("spare_bytes", self.spare_bytes, 0, None)


@dataclass(frozen=True)
class DeviceStep:
    """What a step or a reset returns: the fields of :class:`~coordrl.emulator.Step`, as tensors.

    The tensors are the emulator's own, the same in every step, and are overwritten by the next
    one: clone what must live longer. ``final_obs`` is written to wherever an episode was terminated
    or truncated, also where the game goes on after a lost life.
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

    Several games share one batch in equal parts, in their order; environments of a game lie side by
    side, because the threads of a warp should run the same program. A step is two launches for each
    game, on torch's current stream, with the same addresses every time, so that it can be captured
    in a CUDA graph.

    Args:
        games: Name of the game, or names; all with the same number of actions.
        num_envs: Number of environments, a multiple of the number of games.
        settings: How the games are played and seen; ``AtariSettings()`` if None.
        autoreset: When the next episode begins, as in ``Emulator``.
        device: Where; a CUDA device.
        rom_path: Folder with ROM images; by default those in ale-py.
        occupancy: How the environments are spread over the GPU.
        make_kernels: What compiles and launches the kernels. The tests have one for the CPU.

    Raises:
        nvrtc.CudaError: If there is no GPU, no compiler for it, or the kernels do not compile.
        ValueError, RuntimeError: As ``Emulator``.
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
        occupancy: Occupancy = Occupancy(),
        make_kernels: MakeKernels = nvrtc.kernels_for,
    ) -> None:
        names = (games,) if isinstance(games, str) else tuple(games)
        self.games = tuple(GAMES[name] for name in names)
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
        self.obs_shape = observation_shape(self.games[0], self.settings)
        self.device = nvrtc.indexed(torch.device(device))
        if self.device.type == "cuda":
            nvrtc.require_gpu()
        self._latest = _allocate(num_envs, self.obs_shape, self.device)
        each = num_envs // len(names)
        self._groups: list[_Group] = []
        for i, name in enumerate(names):
            kernels = make_kernels(name, self.device)
            group = _Group(
                name, self.settings, autoreset, load_rom(name, rom_path),
                _rows(self._latest, slice(i * each, (i + 1) * each)), kernels, occupancy,
                self._groups[0].system_random if self._groups else None,
            )  # fmt: skip
            self._groups.append(group)
        self._was_reset = False

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """What each action does, in the first game."""
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
        for group, rows in self._parts():
            group.reset(on_device[rows], masked[rows])
        return self._latest

    def step(self, actions: Tensor) -> DeviceStep:
        """Play one action in every environment.

        Args:
            actions: int64 of shape ``(num_envs,)`` on the device, indices of ``self.actions``.
                Their range is not checked, which would mean to wait for them: an action that does
                not exist is taken as the nearest.

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
        actions = actions.contiguous()
        for group, rows in self._parts():
            group.step(actions[rows])
        return self._latest

    def save(self) -> list[bytes]:
        """Return every environment as bytes, which an ``Emulator`` on the CPU restores as well.

        Raises:
            ValueError: If there was no reset.
        """
        if not self._was_reset:
            raise ValueError("call reset before saving")
        return [state for group in self._groups for state in group.save()]

    def restore(self, saved: Sequence[bytes]) -> DeviceStep:
        """Put the environments where they were when ``save`` returned ``saved``, here or on a CPU.

        Raises:
            ValueError: If a state is damaged or belongs to something else, or if their number is
                wrong. Nothing has changed then.
        """
        if len(saved) != self.num_envs:
            raise ValueError(
                f"restore of {self.num_envs} environments needs as many states, got {len(saved)}"
            )
        unpacked = [group.unpack(saved[rows]) for group, rows in self._parts()]
        for (group, _), contents in zip(self._parts(), unpacked, strict=True):
            group.restore(contents)
        self._was_reset = True
        return self._latest

    @property
    def ram(self) -> Tensor:
        """The 128 bytes of RAM of every console, ``(num_envs, 128)``, copied."""
        return torch.cat([group.ram for group in self._groups])

    def _parts(self) -> list[tuple["_Group", slice]]:
        each = self.num_envs // len(self._groups)
        return [(g, slice(i * each, (i + 1) * each)) for i, g in enumerate(self._groups)]


class _Group:
    """The environments of one game."""

    def __init__(
        self,
        name: str,
        settings: AtariSettings,
        autoreset: Autoreset,
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
        game = GAMES[name]
        observation_shape(game, settings)  # which checks that its pictures are that large
        native = _native_settings(game, settings, autoreset)
        plan = self._plan = _compiled().Plan(native, rom, process_cpu_count())
        obs_shape = tuple(rows.obs.shape[1:])
        self._key = state_key(game, settings, native, obs_shape, plan.environment_bytes)
        device = rows.obs.device

        def tensor(content: bytes) -> Tensor:
            host = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
            return host.to(device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.uint8, device=device)

        if system_random is None:
            system_random = tensor(plan.system_random())
        self.system_random = system_random
        self._environments = zeros(self._num_envs, plan.environment_bytes)
        self._album = slice(plan.album_offset, plan.album_offset + 4)
        self._environments[:, self._album] = 255  # none
        self._notes = zeros(self._num_envs, _NOTE_BYTES)
        self._pictures = zeros(self._num_envs, _PICTURES, plan.picture_bytes)
        self._rom = tensor(rom + b"\0" * 8)
        fresh_pictures = tensor(plan.fresh_pictures())
        actions = game.actions(full=settings.full_action_space)
        shared = [
            tensor(plan.setups(self._rom.data_ptr(), system_random.data_ptr())),
            tensor(plan.fresh_games(fresh_pictures.data_ptr())),
            tensor(plan.beginnings()),
            tensor(plan.planes()),
            tensor(bytes(actions)),
        ]
        self._shared = [self._rom, fresh_pictures, *shared]  # which the kernels know by address
        setups, fresh, beginnings, planes, codes = (t.data_ptr() for t in shared)
        results = [getattr(rows, field.name).data_ptr() for field in fields(DeviceStep)]
        self._batch = struct.pack(
            "<24q",
            setups,
            *(t.data_ptr() for t in (self._environments, self._notes, self._pictures)),
            fresh,
            beginnings,
            planes,
            plan.idle_counts,
            codes,
            len(actions),
            self._num_envs,
            *results,
        )

    def reset(self, seeds: Tensor, mask: Tensor) -> None:
        self._play(_NOTHING, _address(seeds), _address(mask))

    def step(self, actions: Tensor) -> None:
        self._play(_address(actions), _NOTHING, _NOTHING)

    def _play(self, *arguments: bytes) -> None:
        threads = self._occupancy.threads
        blocks = -(-self._num_envs // threads)
        self._kernels.launch(
            "play_environments", blocks, threads, self._batch, *arguments,
            spare_bytes=self._occupancy.spare_bytes,
        )  # fmt: skip
        self._kernels.launch("show_observations", self._num_envs, _SHOWING_THREADS, self._batch)

    @property
    def ram(self) -> Tensor:
        at = self._plan.ram_offset
        return self._environments[:, at : at + 128].clone()

    def save(self) -> list[bytes]:
        environments = self._environments.cpu().numpy()
        obs = self._rows.obs.cpu().numpy()
        saved = []
        for i, environment in enumerate(environments):
            parts = [environment.tobytes()]
            if int.from_bytes(environment[self._album].tobytes(), "little", signed=True) >= 0:
                parts.append(self._pictures[i, :4].cpu().numpy().tobytes())
            saved.append(states.pack(self._key, *parts, obs[i].tobytes()))
        return saved

    def unpack(self, saved: Sequence[bytes]) -> list[bytes]:
        obs_bytes = self._rows.obs[0].numel()
        largest = self._plan.environment_bytes + 4 * self._plan.picture_bytes + obs_bytes
        unpacked = [states.unpack(self._key, s, largest=largest) for s in saved]
        for content in unpacked:
            if not self._plan.fits(content[:-obs_bytes]):
                raise ValueError(
                    "the saved environment is damaged: no console can be in that state"
                )
        return unpacked

    def restore(self, contents: Sequence[bytes]) -> None:
        size, obs_bytes = self._plan.environment_bytes, self._rows.obs[0].numel()
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
        nothing = torch.zeros(self._num_envs, dtype=torch.bool, device=device)
        self.reset(torch.full((self._num_envs,), -1, device=device), nothing)


def _address(tensor: Tensor) -> bytes:
    return struct.pack("<q", tensor.data_ptr())


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
