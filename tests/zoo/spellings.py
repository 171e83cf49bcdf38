"""Every hand-written operator spelling in one table (onnx and numpy only, no torch).

``SPELLINGS[name]`` is a function that returns a fresh, fixed ``onnx.ModelProto`` of tiny shapes, and the operator
counts a complete raising must reach on it. A count of zero says that raising to that operator is wrong.
"""

from __future__ import annotations

from .activation_spellings import ACTIVATION_SPELLINGS
from .attention_spellings import ATTENTION_SPELLINGS
from .layer_norm_spellings import LAYER_NORM_SPELLINGS, Build, Counts
from .rms_norm_spellings import RMS_NORM_SPELLINGS

SPELLINGS: dict[str, tuple[Build, Counts]] = {
    **LAYER_NORM_SPELLINGS,
    **RMS_NORM_SPELLINGS,
    **ACTIVATION_SPELLINGS,
    **ATTENTION_SPELLINGS,
}
