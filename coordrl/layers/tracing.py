"""Layers in graphs of torch.fx."""

from typing import Any, TypeGuard, cast

from torch import Tensor, fx, nn


def is_traced(x: object) -> TypeGuard[fx.Proxy]:
    """Tell whether ``x`` stands for a tensor in a graph that is being noted down."""
    return isinstance(x, fx.Proxy)


def traced_call(layer: nn.Module, x: fx.Proxy, **arguments: Any) -> Tensor:
    """Return a call of the whole layer with ``x`` and those arguments that are not None.

    That is how torch.fx notes down the layers of ``torch.nn``. Into others it looks, where ours
    ask for sizes, which it does not know.

    Raises:
        ValueError: If the layer is not part of what is traced, but all of it.
    """
    tracer = x.tracer
    assert isinstance(tracer, fx.Tracer)
    path = tracer.path_of_module(layer)
    if not path:
        raise ValueError(
            f"torch.fx notes down whole layers and expects {type(layer).__name__} to be part of a"
            " model, got the layer alone; trace nn.Sequential(layer)"
        )
    given = {name: value for name, value in arguments.items() if value is not None}
    noted = tracer.create_proxy("call_module", path, (x,), given)
    return cast(Tensor, noted)  # for which it stands
