"""lorimer: low-rank adapters for any PyTorch module, from the data to the file that other programs load.

    adapter = lorimer.attach(model, LoRA(rank=8, alpha=16), targets="all-linear")
    ...                                      # any training loop over adapter.parameters()
    lorimer.save(adapter, "out/")            # a PEFT folder
    with lorimer.disabled(model): ...        # exactly the base model
    lorimer.merge(model)                     # plain weights

Names are resolved on first use, so that `import lorimer` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorimer.adapters._state import AdapterState as AdapterState
    from lorimer.adapters.lora import LoRA as LoRA
    from lorimer.attachment.attach import attach as attach
    from lorimer.attachment.attach import detach as detach
    from lorimer.attachment.attached import AttachedAdapter as AttachedAdapter
    from lorimer.attachment.attached import attached as attached
    from lorimer.attachment.attached import disabled as disabled
    from lorimer.attachment.attached import enabled as enabled
    from lorimer.attachment.attached import strength as strength
    from lorimer.ops.files import load as load
    from lorimer.ops.files import read as read
    from lorimer.ops.files import save as save
    from lorimer.ops.merge import merge as merge
    from lorimer.ops.merge import unmerge as unmerge

__version__ = "0.1.0"

_HOMES = {
    "AdapterState": "lorimer.adapters._state",
    "AttachedAdapter": "lorimer.attachment.attached",
    "LoRA": "lorimer.adapters.lora",
    "attach": "lorimer.attachment.attach",
    "attached": "lorimer.attachment.attached",
    "detach": "lorimer.attachment.attach",
    "disabled": "lorimer.attachment.attached",
    "enabled": "lorimer.attachment.attached",
    "load": "lorimer.ops.files",
    "merge": "lorimer.ops.merge",
    "read": "lorimer.ops.files",
    "save": "lorimer.ops.files",
    "strength": "lorimer.attachment.attached",
    "unmerge": "lorimer.ops.merge",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorimer' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
