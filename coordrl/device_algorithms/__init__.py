"""Stable-Baselines3's PPO, A2C and DQN whose rollouts and replay never leave the device.

SB3 copies every observation to host arrays and back, and waits for the device several times in
every step and every minibatch. Here a step takes and returns tensors (``step_torch``), and logged
values are read at the end of each rollout. Losses, logs, callbacks and saved files are SB3's;
everything runs on ``device="cpu"`` as well.
"""

from coordrl.device_algorithms.buffers import (
    DeviceReplayBuffer,
    DeviceRolloutBuffer,
    generalized_advantages,
)
from coordrl.device_algorithms.building import make_device_model
from coordrl.device_algorithms.dqn import DQN
from coordrl.device_algorithms.on_policy import A2C, PPO

__all__ = [
    "A2C",
    "DQN",
    "PPO",
    "DeviceReplayBuffer",
    "DeviceRolloutBuffer",
    "generalized_advantages",
    "make_device_model",
]
