"""Every method by default, and the variants of it that compute in another way, for the contract tests.

A new method joins by existing; a variant is worth a line here when it builds other tensors or takes
another path through the code.
"""

from __future__ import annotations

from typing import Any

from lorimer import registry
from lorimer.adapters._base import Method
from lorimer.adapters._starts import STARTS

# Variant -> (method, its further fields). The label begins with the method's name.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora+bias": ("lora", {"bias": True}),
    "lora+rslora": ("lora", {"rslora": True}),
    **{f"lora+{start}": ("lora", {"start": start}) for start in STARTS if start != "kaiming"},
    "loha+factored": ("loha", {"rank": 1}),
    "loha+tucker": ("loha", {"tucker": True}),
    "lokr+decomposed": ("lokr", {"rank": 1, "decompose_both": True}),
    "lokr+full": ("lokr", {"full_matrix": True, "factor": 3}),
    "lokr+tucker": ("lokr", {"rank": 1, "factor": 2, "tucker": True}),
    "ia3+input": ("ia3", {"on": "input"}),
    "oft": ("oft", {"block_size": 3}),
    "oft+series": ("oft", {"block_size": 2, "neumann_terms": 5}),
    "dora+columns": ("dora", {"columns": True}),
    "dora+lokr": ("dora", {"direction": "lokr"}),
    "dora+miss": ("dora", {"direction": "miss"}),
}


def make(name: str, rank: int = 3, alpha: float = 5.0, **fields: Any) -> Method:
    """A method with alpha != rank, so that a lost scale shows."""
    plugin = registry.get("method", name)
    made: Method = plugin(rank=rank, alpha=alpha, **fields) if plugin.ranked else plugin(**fields)
    return made


METHODS: dict[str, Method] = {
    **{name: make(name) for name in registry.names("method")},
    **{label: make(name, **fields) for label, (name, fields) in _VARIANTS.items()},
}
