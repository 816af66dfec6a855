"""Layers in graphs of torch.fx."""

from typing import Any

from torch import fx, nn


class NotedDown(nn.Module):
    """A layer whose calls torch.fx notes down as a whole, as it does with those of ``torch.nn``.

    Into others it looks, where ours ask for sizes, which it does not know.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer, or note that down, once with its hooks and a subclass's ``forward``."""
        x = args[0] if args else None
        for value in kwargs.values():  # one of which the input may be, not always the first
            x = value if isinstance(value, fx.Proxy) else x
        if not isinstance(x, fx.Proxy):
            return super().__call__(*args, **kwargs)
        tracer = x.tracer
        assert isinstance(tracer, fx.Tracer)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)

    def _refuse_traced(self, x: object) -> None:
        """Raise a ValueError if torch.fx traces the layer alone, of which it calls ``forward``."""
        if isinstance(x, fx.Proxy):
            raise ValueError(
                f"torch.fx notes down whole layers and expects {type(self).__name__} to be part of"
                " a model, got the layer alone; trace nn.Sequential(layer)"
            )
