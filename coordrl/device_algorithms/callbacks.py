"""The ``locals`` of SB3's callbacks, copied to the host only when read."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray
from torch import Tensor

from coordrl.sb3_envs import TorchStep


class Moment:
    """The lifetime of the tensors that a step returned: the next step may overwrite them.

    Attributes:
        is_over: Whether the next step has begun.
    """

    is_over = False

    def require(self) -> None:
        """Raise a RuntimeError if the lifetime is over."""
        if self.is_over:
            raise RuntimeError(
                "what a callback finds in locals is overwritten by the next step of the games: to "
                "keep it, copy it within _on_step, such as np.array(self.locals['new_obs'])"
            )


class HostView(NDArrayOperatorsMixin):
    """A tensor that looks like an array to callbacks; each read copies it from the device.

    It is read-only; ``np.asarray(view)`` returns a writable copy, but changes to it have no effect.

    Args:
        tensor: The tensor to read.
        moment: Lifetime of the tensor; unlimited if None.

    Raises:
        RuntimeError: If the tensor is read after its lifetime.

    Example:
        >>> dones = HostView(torch.tensor([True, False, True]))
        >>> int(np.sum(dones)), dones.shape, bool(dones[1])
        (2, (3,), False)
        >>> ~dones
        array([False,  True, False])
    """

    def __init__(self, tensor: Tensor, moment: Moment | None = None) -> None:
        self._tensor = tensor
        self._moment = moment or Moment()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("what a callback finds in locals is copied to be looked at")
        self._moment.require()
        return np.array(self._tensor.cpu().numpy(), dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        if any(isinstance(out, HostView) for out in keywords.get("out", ())):
            raise TypeError("what a callback finds in locals is a copy, which cannot be written to")
        arrays = [np.asarray(item) if isinstance(item, HostView) else item for item in inputs]
        return getattr(ufunc, method)(*arrays, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy would use the memory of a temporary array
            raise AttributeError(name)
        return getattr(self.__array__(), name)

    def __bool__(self) -> bool:
        return bool(self.__array__())

    def __float__(self) -> float:
        return float(self.__array__())

    def __int__(self) -> int:
        return int(self.__array__())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__array__())

    def __len__(self) -> int:
        return len(self._tensor)

    def __getitem__(self, index: Any) -> Any:
        return self.__array__()[index]


class Infos(Sequence[dict[str, Any]]):
    """The ``infos`` of a step, made when a callback first reads them.

    They hold the entries that :class:`~coordrl.sb3_envs.VectorEnvAdapter` adds where an episode
    ended, but not the environment's own, such as frame numbers.

    Args:
        step: The step.
        seconds: The ``"t"`` of games that ended.
        moment: Lifetime of the step's tensors; infos that were made within it are kept.
    """

    def __init__(self, step: TorchStep, seconds: float, moment: Moment) -> None:
        self._step = step
        self._seconds = seconds
        self._moment = moment
        self._infos: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self._step.rewards)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if self._infos is None:
            self._infos = self._made()
        return self._infos[index]

    def _made(self) -> list[dict[str, Any]]:
        self._moment.require()
        step = self._step
        infos: list[dict[str, Any]] = [{} for _ in range(len(self))]
        for i in (step.terminated | step.truncated).nonzero().flatten().tolist():
            infos[i]["terminal_observation"] = step.next_obs[i].cpu().numpy()
            infos[i]["TimeLimit.truncated"] = bool(step.truncated[i] & ~step.terminated[i])
            if step.game_ended[i]:
                points, length = float(step.episode_return[i]), int(step.episode_length[i])
                infos[i]["episode"] = {"r": points, "l": length, "t": round(self._seconds, 6)}
        return infos


class EpisodeLog:
    """The games that end in a rollout, recorded on the device and read when it ends.

    Args:
        steps: Most steps of a rollout.
        num_envs: Environments.
        device: Device of the records.
    """

    def __init__(self, steps: int, num_envs: int, device: torch.device) -> None:
        self._ended = torch.zeros((steps, num_envs), dtype=torch.bool, device=device)
        self._returns = torch.zeros((steps, num_envs), dtype=torch.float64, device=device)
        self._lengths = torch.zeros_like(self._returns)
        self._steps = 0

    def clear(self) -> None:
        """Forget unread games, as after a rollout that was interrupted."""
        self._steps = 0

    def add(self, step: TorchStep) -> None:
        """Record the games that ended in a step."""
        self._ended[self._steps] = step.game_ended
        self._returns[self._steps] = step.episode_return
        self._lengths[self._steps] = step.episode_length
        self._steps += 1

    def read(self, seconds: float) -> list[dict[str, Any]]:
        """Return the games since the last call, in order, as dictionaries like ``Monitor``'s.

        Args:
            seconds: Their ``"t"``.
        """
        taken = slice(0, self._steps)
        self._steps = 0
        both = torch.stack([self._returns[taken], self._lengths[taken]], dim=2)
        games = both[self._ended[taken]].tolist()
        time = round(seconds, 6)
        return [{"r": points, "l": int(length), "t": time} for points, length in games]
