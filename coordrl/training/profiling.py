"""Where a training run spends its time."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from coordrl.device_algorithms.base import OnDevice
from coordrl.device_algorithms.networks import Recorded

OTHER = "all else (advantages, logs, bookkeeping)"


class Profile:
    """A stopwatch for each phase; only the innermost phase's runs.

    On a GPU, each change of phase waits for the work launched so far, which slows the run down but
    assigns time to the right phase.

    Attributes:
        seconds: Wall-clock time of each phase.

    Example:
        >>> profile = Profile()
        >>> with profile.phase("environment"):
        ...     pass
        >>> list(profile.seconds)
        ['environment']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block for a phase, except for the time of phases within it."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def watch(self, owner: Any, method: str, name: str | Callable[[], str]) -> None:
        """Count the time in a method of one object for a phase; its name may depend on the call."""
        called: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(called)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name()):
                return called(*args, **kwargs)

        setattr(owner, method, watched)

    def watch_model(self, model: Any) -> None:
        """Count the phases of a model's ``learn``, from the environment to the optimizer."""
        act, learn, copies = "forward, to act", "forward, to learn", "copies"
        on_device = isinstance(model, OnDevice)
        self.watch(model.env, "step_torch" if on_device else "step", "environment")
        # Nothing within a CUDA graph can be timed: a recorded update counts as backward.
        if not (on_device and isinstance(model._update, Recorded)):
            self.watch(model.policy.optimizer, "step", "optimizer")
        # The rest of train(): losses, backward pass, clipping of the gradient.
        self.watch(model, "train", "backward")
        if on_device:
            buffer = getattr(model, "rollout_buffer", None) or model.replay_buffer
            for method in ("observe", "add", "_samples"):
                self.watch(buffer, method, copies)
            if model.acceleration.cuda_graphs:
                self.watch(model, "_act", act)
            else:
                self.watch(model, "_network", lambda: learn if model.policy.training else act)
        elif hasattr(model, "rollout_buffer"):
            self.watch(model.policy, "forward", act)
            self.watch(model.policy, "predict_values", act)
            self.watch(model.policy, "evaluate_actions", learn)
            self.watch(model.rollout_buffer, "add", copies)
            self.watch(model.rollout_buffer, "_samples", copies)
        else:
            self.watch(model.q_net, "forward", lambda: learn if torch.is_grad_enabled() else act)
            self.watch(model.q_net_target, "forward", learn)
            self.watch(model.replay_buffer, "add", copies)
            self.watch(model.replay_buffer, "sample", copies)

    def table(self, steps: int) -> str:
        """Return the phases as a table, the longest first.

        Args:
            steps: Agent steps taken in that time.
        """
        total = sum(self.seconds.values())
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        width = max(map(len, self.seconds))
        lines = [f"{'phase':{width}}  share  microseconds a step"]
        lines += [
            f"{name:{width}}  {seconds / total:5.1%}  {seconds / max(steps, 1) * 1e6:19,.0f}"
            for name, seconds in rows
        ]
        return "\n".join(lines)
