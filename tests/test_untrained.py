"""The untrained adapter with which a base begins."""

from pathlib import Path

import pytest
import torch

from chatbot.model.adapter import AdapterError, verify_adapter
from chatbot.model.base import Base, load_base
from chatbot.model.untrained import write_untrained
from tests.fixtures import tiny_models
from tests.fixtures.disks import small_disk


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def any_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp(request.param)
    return load_base(str(tiny_models.write_model(folder, request.param)))


def test_an_untrained_adapter_is_equal_to_the_base(any_base: Base, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = write_untrained(any_base, tmp_path)
    ids = torch.arange(5, 25)[None]
    model = load_base(any_base.name).model
    with torch.no_grad():
        alone = model(ids).logits
        assert torch.equal(PeftModel.from_pretrained(model, folder)(ids).logits, alone)


def test_an_untrained_adapter_always_has_the_same_name(any_base: Base, tmp_path: Path) -> None:
    folder = write_untrained(any_base, tmp_path)
    assert write_untrained(any_base, tmp_path) == folder
    assert [child.name for child in tmp_path.iterdir()] == [folder.name]
    assert verify_adapter(folder, any_base).id == folder.name


def test_adapter_0_of_another_base_of_the_same_shape_has_another_id(tmp_path: Path) -> None:
    one, other = (
        load_base(str(tiny_models.write_model(tmp_path / str(n), seed=n))) for n in (0, 1)
    )
    first = write_untrained(one, tmp_path / "adapters")
    second = write_untrained(other, tmp_path / "adapters")
    assert verify_adapter(first, one).id != verify_adapter(second, other).id
    assert write_untrained(one, tmp_path / "adapters") == first


def test_a_full_disk_is_named_and_leaves_nothing_behind(any_base: Base, tmp_path: Path) -> None:
    with small_disk(tmp_path / "adapters", "4k") as disk:
        with pytest.raises(AdapterError, match=rf"Cannot write {disk}/\.draft-.*Free some space"):
            write_untrained(any_base, disk)
        assert not list(disk.iterdir())
