"""Layers in graphs of torch.fx."""

from typing import Any

from torch import fx, nn


class FxLeaf(nn.Module):
    """A leaf module for every tracer of torch.fx, as the layers of ``torch.nn`` are.

    fx would otherwise trace into ``forward``, which reads input sizes that a Proxy does not have.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer; on a Proxy, trace one ``call_module`` instead, hooks included."""
        x = args[0] if args else None
        for value in kwargs.values():  # the input may be any of them, not only the first
            x = value if isinstance(value, fx.Proxy) else x
        if not isinstance(x, fx.Proxy):
            return super().__call__(*args, **kwargs)
        tracer = x.tracer
        assert isinstance(tracer, fx.Tracer)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)

    def _refuse_traced(self, x: object) -> None:
        """Raise a ValueError if the layer is the root of a trace: fx then calls ``forward``."""
        if isinstance(x, fx.Proxy):
            raise ValueError(
                f"torch.fx traces whole layers and expects {type(self).__name__} to be part of"
                " a model, got the layer alone; trace nn.Sequential(layer)"
            )
