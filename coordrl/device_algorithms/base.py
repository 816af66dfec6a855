"""What all algorithms on a device share: arguments, ended games, optimizer steps."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from coordrl.config import AccelerationSettings
from coordrl.device_algorithms.callbacks import EpisodeLog, HostView, Infos, Moment
from coordrl.device_algorithms.networks import Recorded
from coordrl.envs import AtariVectorEnv
from coordrl.modes import evaluating
from coordrl.ranks import Ranks
from coordrl.sb3_envs import TorchStep, VectorEnvAdapter

# Attributes that plain SB3 could not load, or that belong to a run and its device.
_NOT_SAVED = (
    *("acceleration", "ranks", "episodes", "rollout_buffer_class", "rollout_buffer_kwargs"),
    *("replay_buffer_class", "replay_buffer_kwargs", "_last_obs", "_last_episode_starts"),
    *("_last_original_obs", "_network", "_act", "_update", "_learning_rate", "_totals", "_scalars"),
    "_moment",
)


class OnDevice(BaseAlgorithm):
    """An algorithm of SB3 whose environments are stepped in tensors.

    Args:
        *args: Those of SB3's class.
        acceleration: Compilation, CUDA graphs, precision and memory layout.
        ranks: Processes that train together. Sizes among the arguments, such as ``batch_size``,
            are per process; steps are counted over all.
        **kwargs: Those of SB3's class.

    Raises:
        ValueError: If the environments are not a :class:`~coordrl.sb3_envs.VectorEnvAdapter` of
            Atari games seen in gray: the buffers keep each frame once, so they must know how one
            stack of frames follows from the last. Also if the policy computes something other
            than SB3's own.
    """

    max_grad_norm: float
    episodes: EpisodeLog
    _network: Any
    """The policy as a function of weights and observations, compiled if the settings ask for it."""
    _act: Any
    """Chooses actions; recorded as a CUDA graph if the settings ask for it."""
    _update: Any = None
    """Makes one update; recorded like ``_act``."""
    _shortest_timeout: int = 1
    """Fewest steps of a truncated episode that the buffer has room for."""

    def __init__(
        self,
        *args: Any,
        acceleration: AccelerationSettings | None = None,
        ranks: Ranks | None = None,
        **kwargs: Any,
    ) -> None:
        self.acceleration = acceleration or AccelerationSettings()
        self.ranks = ranks or Ranks()
        self._moment = Moment()  # lifetime of the last step's tensors
        super().__init__(*args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_NOT_SAVED]

    def _setup_model(self) -> None:
        if self.env is not None:
            self._require_games(self.env)
        self._shortest_timeout = self._soonest_timeout()
        super()._setup_model()  # type: ignore[safe-super]  # SB3's
        if self.acceleration.channels_last:
            self.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._require_own_policy()
        self._learning_rate = torch.zeros((), device=self.device)

    def _soonest_timeout(self) -> int:
        """Return the fewest steps of a truncated episode; without games, the saved value."""
        soonest: int = getattr(self.env, "shortest_timeout", self._shortest_timeout)
        return soonest

    def _require_games(self, env: GymEnv) -> None:
        """Raise a ValueError unless the environments are those that the class describes."""
        if not isinstance(env, VectorEnvAdapter):
            raise ValueError(
                f"{type(self).__name__} on a device needs environments as they come from "
                f"make_sb3_env, got {env}"
            )
        if not _shows_gray_frames(env):
            raise ValueError(
                f"{type(self).__name__} on a device needs Atari games seen as stacks of gray "
                f"frames, got {env.envs} with {env.observation_space}"
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Continue in other environments, as in SB3.

        Raises:
            ValueError: As for the class and SB3's method, and if episodes may be truncated sooner
                than the buffer has room for.
        """
        self._require_games(env)
        soonest = getattr(env, "shortest_timeout", 1)
        if soonest < self._shortest_timeout:
            raise ValueError(
                f"episodes of these environments may be cut off after {soonest} steps, and the "
                f"buffer was made for {self._shortest_timeout}: make a new model"
            )
        super().set_env(env, force_reset)

    def _require_own_policy(self) -> None:
        """Raise a ValueError if the policy's outputs differ from those computed here."""
        shape = self.observation_space.shape
        assert shape is not None  # it is a Box
        random = torch.Generator().manual_seed(0)
        obs = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=random).to(self.device)
        with evaluating(self.policy), torch.no_grad():
            pairs = list(self._both(obs))
        if not all(torch.allclose(ours, its, rtol=1e-4, atol=1e-5) for ours, its in pairs):
            raise ValueError(
                f"{type(self).__name__} on a device computes the policies of Stable-Baselines3 "
                f"itself, and {type(self.policy).__name__} computes something else; train it by "
                "the class of Stable-Baselines3"
            )

    def _both(self, obs: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Return pairs of outputs: computed here, and by the policy itself."""
        raise NotImplementedError

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of tensors, recorded on a GPU if the settings ask for it."""
        is_recorded = self.acceleration.cuda_graphs and self.device.type == "cuda"
        return Recorded(function) if is_recorded else function

    def _recorded_update(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return an update, recorded if it can be and the settings ask for it.

        Raises:
            ValueError: If the optimizer counts its steps on the host, outside the graph.
        """
        if self.ranks.count > 1:  # the exchange of gradients is not recorded
            return function
        update, groups = self._recorded(function), self.policy.optimizer.param_groups
        if self.device.type == "cuda" and isinstance(update, Recorded):
            if not all(group.get("capturable", False) for group in groups):
                raise ValueError(
                    "a recorded update needs an optimizer that counts its steps on the GPU: give "
                    "policy_kwargs optimizer_kwargs=dict(capturable=True), or set "
                    "acceleration.cuda_graphs = false"
                )
        return update

    def _step(self, env: VectorEnvAdapter, actions: Tensor) -> TorchStep:
        self._moment.is_over = self.device.type == "cuda"
        step = TorchStep(*(part.to(self.device) for part in env.step_torch(actions)))
        self._moment = Moment()
        self.num_timesteps += env.num_envs * self.ranks.count
        return step

    def _locals(self, step: TorchStep, actions: Tensor, **others: Any) -> dict[str, Any]:
        """Return the ``locals`` that SB3's callbacks expect."""
        return {
            **{"self": self, "env": self.env, "actions": self._view(actions)},
            **{"new_obs": self._view(step.obs), "rewards": self._view(step.rewards)},
            "dones": self._view(step.terminated | step.truncated),
            "infos": Infos(step, self._seconds(), self._moment),
            **others,
        }

    def _view(self, tensor: Tensor) -> HostView:
        return HostView(tensor, self._moment)

    def _seconds(self) -> float:
        """Return the seconds since the training began."""
        return (time.time_ns() - self.start_time) / 1e9

    def _note_games(self) -> None:
        """Log the games that ended on all ranks since the last call."""
        assert self.ep_info_buffer is not None
        for games in self.ranks.gather(self.episodes.read(self._seconds())):
            self.ep_info_buffer.extend(games)

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        if isinstance(self._update, Recorded):
            # A recorded step reads the learning rate from the device.
            for group in self.policy.optimizer.param_groups:
                group["lr"] = self._learning_rate.fill_(float(group["lr"]))

    def _descend(self, loss: Tensor) -> None:
        """Make one step of the optimizer."""
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(self.policy.parameters())
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()

    def _read(self, numbers: Iterable[Tensor]) -> list[float]:
        """Return means over the ranks, in one copy to the host."""
        together = torch.stack([number.detach() for number in numbers])
        read: list[float] = (self.ranks.sum(together) / self.ranks.count).tolist()
        return read


def _shows_gray_frames(env: VectorEnvAdapter) -> bool:
    envs: Any = env.envs.unwrapped
    return isinstance(envs, AtariVectorEnv) and envs.settings.observation == "gray"
