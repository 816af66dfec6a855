"""The model of a training run whose rollouts stay on the device."""

import inspect
from collections.abc import Mapping

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device

from coordrl.algorithms import ALGORITHMS, model_keywords
from coordrl.config import TrainingSettings
from coordrl.device_algorithms.base import OnDevice
from coordrl.device_algorithms.dqn import DQN
from coordrl.device_algorithms.on_policy import A2C, PPO
from coordrl.ranks import Ranks
from coordrl.sb3_envs import VectorEnvAdapter

DEVICE_ALGORITHMS: Mapping[str, type[OnDevice]] = {"a2c": A2C, "ppo": PPO, "dqn": DQN}

# Settings that are divided among the ranks, so that together they do what one process would do.
_SHARED = ("batch_size", "buffer_size", "target_update_interval")


def make_device_model(
    settings: TrainingSettings,
    env: VectorEnvAdapter,
    *,
    seed: int,
    device: str = "cpu",
    ranks: Ranks | None = None,
) -> BaseAlgorithm:
    """Build the model of a training run, as :func:`~coordrl.algorithms.make_model` does.

    Args:
        settings: Settings of the run; numbers of environments and sizes are for all ranks together.
        env: Environments that this process learns from.
        seed: Seed of the weights and of all random draws.
        device: Device of the network and the buffers.
        ranks: Processes that train together.

    Raises:
        ValueError, AssertionError: If a value does not fit the others; Stable-Baselines3 raises
            the latter.

    Example:
        >>> from coordrl.config import RunSettings
        >>> from coordrl.sb3_envs import make_sb3_env
        >>> run = RunSettings(num_envs=4, on_device=True)
        >>> settings = TrainingSettings(run=run, algorithm={"n_steps": 16, "batch_size": 64})
        >>> env = make_sb3_env("Pong", num_envs=2)
        >>> make_device_model(settings, env, seed=0, ranks=Ranks(index=1, count=2)).batch_size
        32
        >>> env.close()
    """
    ranks = ranks or Ranks()
    cls, algo = DEVICE_ALGORITHMS[settings.run.algo], settings.run.algo
    keywords = model_keywords(settings, env.num_envs * ranks.count)
    defaults = inspect.signature(ALGORITHMS[algo]).parameters
    for key in _SHARED:
        if key in defaults:
            value = keywords.get(key, defaults[key].default)
            keywords[key] = ranks.share(value, f"algorithm.{key}")
    is_gpu = (get_device() if device == "auto" else torch.device(device)).type == "cuda"
    if settings.acceleration.cuda_graphs and is_gpu:
        if settings.optimizer.name == "Adam":
            keywords["policy_kwargs"]["optimizer_kwargs"]["capturable"] = True
        elif algo != "a2c":  # A2C makes too few updates to record them
            raise ValueError(
                f"acceleration.cuda_graphs records the optimizer's steps, which "
                f"{settings.optimizer.name} does not allow: choose optimizer.name = 'Adam' or "
                "acceleration.cuda_graphs = false"
            )
    return cls(
        "CnnPolicy",
        env,
        seed=seed,
        device=device,
        acceleration=settings.acceleration,
        ranks=ranks,
        **keywords,
    )
