"""SVF: scaling the singular values of a frozen model's weight matrices by z (section 3.1 of the paper).

`matrices` finds the weight matrices and `selection` chooses among them; `bases` decomposes one and caches the result; `scales` makes z;
`hooks` and `experts` apply it while the model runs, `merge` in the weights; `adapted` ties them together, and `attachment` puts that on a
model; `fingerprint` says in a few numbers what a z does in a model's bases.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2eval.svf.adapted import Adapted as Adapted
    from t2eval.svf.attachment import attach as attach
    from t2eval.svf.attachment import attached as attached
    from t2eval.svf.bases import Basis as Basis
    from t2eval.svf.bases import decompose as decompose
    from t2eval.svf.merge import compose as compose
    from t2eval.svf.selection import target_paths as target_paths

_HOMES = {
    "Adapted": "t2eval.svf.adapted",
    "Basis": "t2eval.svf.bases",
    "attach": "t2eval.svf.attachment",
    "attached": "t2eval.svf.attachment",
    "compose": "t2eval.svf.merge",
    "decompose": "t2eval.svf.bases",
    "target_paths": "t2eval.svf.selection",
}
__all__ = ["Adapted", "Basis", "attach", "attached", "compose", "decompose", "target_paths"]


def __getattr__(name: str) -> Any:
    # torch is imported only where it is needed: `t2 --help` and a plan do without
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
