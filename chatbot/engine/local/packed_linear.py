"""Holds a weight matrix in the layout that the device multiplies by fastest.

On a CPU oneDNN packs it beforehand: a product for one or sixteen rows then takes about half the
time. The operators are those that torch.compile uses when it freezes a model.
"""

import torch
from torch.nn import functional


class PackedLinear:
    """Computes x W^T + b; the weight is held in one layout only."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed = _packable(weight)
        self._bias = bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._packed else weight
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [.., out] for x [.., in]."""
        if not self._packed:
            return functional.linear(x, self._weight, self._bias)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, self._weight, self._bias, "none", [], ""
        )
        return y

    def dense(self) -> torch.Tensor:
        """Return the weight [out, in], bit for bit as it was given."""
        return self._weight.to_dense() if self._packed else self._weight


def _packable(weight: torch.Tensor) -> bool:
    """Tell whether oneDNN multiplies on this device and in this type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
