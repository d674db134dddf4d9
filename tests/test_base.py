"""Finding, checking and loading a base."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatbot.model import lora
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import BaseError, end_token_ids, load_base
from chatbot.model.untrained import write_untrained
from tests.fakes.hub_server import COMMIT, serve_hub
from tests.fixtures import tiny_models
from tests.fixtures.disks import small_disk


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_any_family_loads_and_knows_its_content(family: tiny_models.Family, tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path / "one", family)
    first, again = load_base(str(folder)), load_base(str(folder))
    assert (first.revision, first.fingerprint) == (again.revision, again.fingerprint)
    other = load_base(str(tiny_models.write_model(tmp_path / "two", family, seed=1)))
    assert other.revision != first.revision
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_without_weights_a_base_is_the_same_base(
    family: tiny_models.Family, tmp_path: Path
) -> None:
    folder = str(tiny_models.write_model(tmp_path / "base", family))
    whole, bare = load_base(folder), load_base(folder, weights=False)
    assert {p.device.type for p in bare.model.parameters()} == {"meta"}
    assert (bare.revision, bare.fingerprint) == (whole.revision, whole.fingerprint)
    assert lora.target_modules(bare.model) == lora.target_modules(whole.model) and end_token_ids(
        bare
    ) == end_token_ids(whole)
    adapter = tiny_models.write_adapter(tmp_path, whole)
    assert verify_adapter(adapter, bare).id == adapter.name
    assert write_untrained(bare, tmp_path / "one").name == write_untrained(whole, tmp_path).name


def test_weights_that_the_files_cut_otherwise_are_loaded_once_for_their_name(
    tmp_path: Path,
) -> None:
    folder = tiny_models.write_model(tmp_path, "gpt2")
    whole = load_base(str(folder))
    file = folder / "model.safetensors"
    # As on the Hub: without the prefix that the model's own names have.
    bare = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    assert load_base(str(folder), weights=False).fingerprint == whole.fingerprint
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert (
        end_token_ids(load_base(str(folder), weights=False))
        == end_token_ids(load_base(str(folder)))
        >= {0, 2}
    )


def test_small_models_are_exact_unless_told_otherwise(tmp_path: Path) -> None:
    folder = str(tiny_models.write_model(tmp_path))
    assert load_base(folder).model.dtype == torch.float32
    assert load_base(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_fingerprint_does_not_depend_on_the_precision(tmp_path: Path) -> None:
    folder = str(tiny_models.write_model(tmp_path))
    prints = {load_base(folder, dtype=dtype).fingerprint for dtype in ("float32", "bfloat16")}
    assert len(prints) == 1


def refused(name: str, revision: str | None = None) -> str:
    """The one line with which a base is refused."""
    with pytest.raises(BaseError) as refusal:
        load_base(name, revision)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no folder" in refused(str(tmp_path / "nowhere"))
    assert "config.json" in refused(str(tmp_path))


def test_a_hub_model_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "no network" in refused("nobody/no-such-model")


FROM_THE_HUB = """
from chatbot.model.base import BaseError, load_base
for name, revision in (("org/tiny", None), ("org/tiny", COMMIT), ("org/tiny", "nowhere"),
                       ("org/none", None), ("org/gated", None)):
    try:
        print(load_base(name, revision).revision)
    except BaseError as error:
        print(error)
"""


def test_a_hub_model_is_fetched_pinned_and_missed_in_one_line(tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path / "model", "qwen3")
    script = FROM_THE_HUB.replace("COMMIT", repr(COMMIT))
    with serve_hub(folder) as address:
        home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}
        output = subprocess.check_output([sys.executable, "-c", script], env=os.environ | home)
    newest, pinned, no_revision, no_repo, gated = output.decode().splitlines()
    assert newest == pinned == COMMIT
    assert "no revision 'nowhere'" in no_revision
    assert "no public Hub model 'org/none'" in no_repo
    assert "gated" in gated and "HF_TOKEN" in gated


REFUSED_BY_THE_HUB = {
    "org/status-401": "answered 401. Set HF_TOKEN",
    "org/status-403": "answered 403. Set HF_TOKEN",
    "org/status-404": "answered 404. Check the name",
    "org/status-429": "answered 429. Wait a few minutes",
    "org/status-500": "answered 500. Try again later",
    "org/status-503": "answered 503. Try again later",
}


@pytest.mark.slow
def test_what_the_hub_answers_is_not_called_no_network(tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path / "model")
    with serve_hub(folder) as address:
        answers = fetch_from(address, tmp_path / "cache", *REFUSED_BY_THE_HUB)
        for answer, expected in zip(answers, REFUSED_BY_THE_HUB.values(), strict=True):
            assert expected in answer and "no network" not in answer
        with small_disk(tmp_path / "full", "4k") as disk:
            (answer,) = fetch_from(address, disk / "cache", "org/tiny")
            assert "space" in answer and "HF_HOME" in answer and str(disk) in answer
    (answer,) = fetch_from("http://127.0.0.1:9", tmp_path / "cache", "org/tiny")
    assert "no network" in answer


def fetch_from(hub: str, cache: Path, *names: str) -> list[str]:
    """Return in one line each what becomes of loading bases from a Hub."""
    names_and_revisions = tuple((name, None) for name in names)
    script = re.sub(r"in \(\(.*?\)\):", f"in {names_and_revisions!r}:", FROM_THE_HUB, flags=re.S)
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(cache)}
    return subprocess.check_output(
        [sys.executable, "-c", script], env=environment, text=True
    ).splitlines()


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    assert "revision" in refused(str(tiny_models.write_model(tmp_path)), "main")


def test_pickled_weights_never_load(tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "safetensors" in refused(str(folder))
    (folder / "pytorch_model.bin").unlink()
    assert "no *.safetensors" in refused(str(folder))


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path, tokenizer=False)
    assert "tokenizer" in refused(str(folder))


def test_code_in_a_model_never_runs(tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    assert "code of its own" in refused(str(folder))


def test_an_encoder_is_no_chatbot(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=50, intermediate_size=16, **size)).save_pretrained(tmp_path)
    assert "BertModel, not a causal language model" in refused(str(tmp_path))


def test_damaged_or_missing_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_models.write_model(tmp_path / "missing")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in refused(str(folder))
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:100])
    assert "damaged" in refused(str(cut))
