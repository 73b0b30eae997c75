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
    from lorimer.attachment.schedule import StrengthSchedule as StrengthSchedule
    from lorimer.attachment.switches import disabled as disabled
    from lorimer.attachment.switches import enabled as enabled
    from lorimer.attachment.switches import rows as rows
    from lorimer.attachment.switches import strength as strength
    from lorimer.layers.int8_base import set_base_precision as set_base_precision
    from lorimer.ops.analyse import analyse as analyse
    from lorimer.ops.budget import budget as budget
    from lorimer.ops.compose import compose as compose
    from lorimer.ops.data_starts import CorDA as CorDA
    from lorimer.ops.data_starts import Eva as Eva
    from lorimer.ops.data_starts import LoftQ as LoftQ
    from lorimer.ops.data_starts import LoraGA as LoraGA
    from lorimer.ops.extract import extract as extract
    from lorimer.ops.files import attach_state as attach_state
    from lorimer.ops.files import load as load
    from lorimer.ops.files import read as read
    from lorimer.ops.files import save as save
    from lorimer.ops.files import write as write
    from lorimer.ops.initialise import initialise as initialise
    from lorimer.ops.intrinsic_dimension import intrinsic_dimension as intrinsic_dimension
    from lorimer.ops.merge import merge as merge
    from lorimer.ops.merge import unmerge as unmerge
    from lorimer.ops.resize import resize as resize
    from lorimer.ops.to_lora import to_lora as to_lora
    from lorimer.registry import method as method

__version__ = "0.1.0"

_HOMES = {
    "AdapterState": "lorimer.adapters._state",
    "AttachedAdapter": "lorimer.attachment.attached",
    "StrengthSchedule": "lorimer.attachment.schedule",
    "CorDA": "lorimer.ops.data_starts",
    "Eva": "lorimer.ops.data_starts",
    "LoftQ": "lorimer.ops.data_starts",
    "LoraGA": "lorimer.ops.data_starts",
    "LoRA": "lorimer.adapters.lora",
    "analyse": "lorimer.ops.analyse",
    "attach": "lorimer.attachment.attach",
    "attach_state": "lorimer.ops.files",
    "attached": "lorimer.attachment.attached",
    "budget": "lorimer.ops.budget",
    "compose": "lorimer.ops.compose",
    "detach": "lorimer.attachment.attach",
    "disabled": "lorimer.attachment.switches",
    "enabled": "lorimer.attachment.switches",
    "extract": "lorimer.ops.extract",
    "intrinsic_dimension": "lorimer.ops.intrinsic_dimension",
    "initialise": "lorimer.ops.initialise",
    "load": "lorimer.ops.files",
    "merge": "lorimer.ops.merge",
    "method": "lorimer.registry",
    "read": "lorimer.ops.files",
    "resize": "lorimer.ops.resize",
    "save": "lorimer.ops.files",
    "set_base_precision": "lorimer.layers.int8_base",
    "rows": "lorimer.attachment.switches",
    "strength": "lorimer.attachment.switches",
    "to_lora": "lorimer.ops.to_lora",
    "unmerge": "lorimer.ops.merge",
    "write": "lorimer.ops.files",
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
