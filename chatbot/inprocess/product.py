"""One weight matrix, laid out as the device multiplies by it best.

On a CPU oneDNN packs it beforehand: a product for one or sixteen rows then takes about half the
time. The operators are those that torch.compile uses when it freezes a model. In eight bits
FBGEMM's kernels take another half or third of it, and the result is near, not the same.
"""

import warnings
from typing import Protocol

import torch
from torch.nn import functional

WIDEST = 127
"""The largest weight of each output becomes this."""


class Layout(Protocol):
    """x -> x W^T + b."""

    nbytes: int
    """Memory of the weight in this layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None: ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[.., in] -> [.., out]."""


class Product:
    """The weight in its own type, held once."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed = _packable(weight)
        self._bias = bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._packed else weight
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[.., in] -> [.., out]."""
        if not self._packed:
            return functional.linear(x, self._weight, self._bias)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, self._weight, self._bias, "none", [], ""
        )
        return y

    def dense(self) -> torch.Tensor:
        """The weight [out, in], bit for bit as it came."""
        return self._weight.to_dense() if self._packed else self._weight


class Int8:
    """The weight in eight bits, one scale an output; x in eight bits too, one scale a row."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        full = weight.float()
        scales = (full.abs().amax(1) / WIDEST).clamp_min(torch.finfo(torch.float32).tiny)
        with warnings.catch_warnings():
            # The tensor type goes away some day, so says torch; `available` asks whether it has.
            warnings.filterwarnings("ignore", "torch.quantize_per_", UserWarning)
            zeros = torch.zeros(len(full), dtype=torch.int64)
            small = torch.quantize_per_channel(full, scales.double(), zeros, 0, torch.qint8)
        self._weight = torch.ops.quantized.linear_prepack(small, _float(bias))
        self._multiply = torch.ops.quantized.linear_dynamic.default
        # Without VNNI sums of two products overflow, unless x has seven bits only.
        self._seven_bits = not torch.cpu._is_vnni_supported()
        self.nbytes = weight.numel()

    @staticmethod
    def available(weight: torch.Tensor) -> bool:
        """Whether this machine and this torch have the kernels."""
        kernels = torch.backends.quantized.engine in ("x86", "fbgemm")
        ops = hasattr(torch, "quantize_per_channel") and hasattr(
            torch.ops.quantized, "linear_dynamic"
        )
        return weight.device.type == "cpu" and kernels and ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[.., in] -> [.., out]."""
        full = x.float()
        if full.numel() == full.shape[-1]:
            y: torch.Tensor = self._multiply(full, self._weight, self._seven_bits)
            return y.to(x.dtype)
        # The kernel has one scale for all rows: they are made equally large for it, and back. A
        # row that is no number stays one, and its neighbours are spared.
        size = full.abs().amax(-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
        y = self._multiply((full / size).nan_to_num_(), self._weight, self._seven_bits)
        return y.mul_(size).to(x.dtype)


def _float(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.float()


def _packable(weight: torch.Tensor) -> bool:
    """Whether oneDNN serves this device and type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
