"""State dicts that say which coordinates their weights are for."""

import dataclasses
import warnings
from typing import Any

from torch import nn

from coordrl.layers.grid import PAPER_SYSTEM, CoordinateSystem

_KEY = "coordinates"


class KeepsSystem(nn.Module):
    """A layer that warns if it loads weights of the same shape but for other coordinates.

    The system is in the metadata that PyTorch keeps with a state dict, so names and tensors are
    those of a plain layer. For files without metadata, such as safetensors, there is no warning.
    """

    system: CoordinateSystem

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[_KEY] = _differences_from_paper(self.system)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        own = _differences_from_paper(self.system)
        saved = local_metadata.get(_KEY, own)
        if saved != own:
            warnings.warn(
                f"the weights of {prefix[:-1] or type(self).__name__} were learned with"
                f" {_named(saved)}, and the layer has {_named(own)}; make it with the same system",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def _differences_from_paper(system: CoordinateSystem) -> dict[str, Any]:
    """Return the fields in which a system differs from the paper's, in types for a state dict."""
    values, papers = dataclasses.asdict(system), dataclasses.asdict(PAPER_SYSTEM)
    return {name: value for name, value in values.items() if value != papers[name]}


def _named(values: dict[str, Any]) -> str:
    described = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"CoordinateSystem({described})" if values else "the paper's coordinates"
