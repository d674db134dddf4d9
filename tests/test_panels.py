"""Matrices in panels: their products are those of torch, by every build of the kernels."""

import pytest
import torch
from torch.nn import functional

from chatbot.engine.local.kernels.library import kernel_library
from chatbot.engine.local.kernels.panels import HugePageArena, PanelLinear

pytestmark = pytest.mark.skipif(
    kernel_library() is None, reason="no kernels: they take AVX-512 with VNNI and a C compiler"
)

KINDS = [(torch.float32, None, 1e-6), (torch.bfloat16, None, 5e-3), (torch.float32, 12, 5e-2)]


@pytest.mark.usefixtures("kernels", "threads")
@pytest.mark.parametrize("dtype, group, near", KINDS, ids=["float32", "bfloat16", "bytes"])
@pytest.mark.parametrize("outputs, inputs", [(32, 12), (70, 96), (7, 240)])
@pytest.mark.parametrize("count", [1, 3, 8, 19])
def test_a_product_is_that_of_torch(
    dtype: torch.dtype, group: int | None, near: float, outputs: int, inputs: int, count: int
) -> None:
    torch.manual_seed(count)
    weight, bias = torch.randn(outputs, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype)
    x = torch.randn(count, inputs, dtype=dtype)
    for arena in (None, HugePageArena()):
        panels = PanelLinear(weight, bias, arena, group)
        expected = functional.linear(x.double(), weight.double(), bias.double())
        assert (panels(x) - expected).norm() < near * expected.norm()
        assert group or torch.equal(panels.dense(), weight)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("group, inputs", [(48, 240), (96, 96), (128, 640)])
def test_an_outlier_leaves_the_other_inputs_of_its_scale_their_steps(
    group: int, inputs: int
) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(40, inputs), torch.randn(9, inputs)
    x[:, 5], weight[:, 5] = 100, 0
    expected = functional.linear(x, weight)
    grouped = x.view(9, -1, group)
    steps = grouped.abs().amax(-1, keepdim=True) / 127
    rounded = functional.linear(((grouped / steps).round() * steps).view(9, -1), weight)
    error = PanelLinear(weight, group=group)(x) - expected
    assert error.norm() < 0.6 * (rounded - expected).norm()


@pytest.mark.parametrize("group", [192, 100])
def test_a_group_that_the_kernels_have_no_room_for_is_refused(group: int) -> None:
    with pytest.raises(ValueError, match=f"{group}"):
        PanelLinear(torch.randn(32, 576), group=group)
