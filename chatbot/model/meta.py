"""Loads a base on the meta device, without weights, where another process runs the model.

Adapters are checked against the names and shapes of its modules; it takes megabytes where the model
takes gigabytes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

NamedTensors = Iterable[tuple[str, torch.Tensor]]
"""Pairs of a parameter's name and its values."""


def load_meta_model(folder: Path) -> PreTrainedModel:
    """Load the model of `folder` on the meta device, in eval mode.

    Raises KeyError, OSError or ValueError for a folder that transformers cannot read.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return cast(PreTrainedModel, model.eval())


def stored_parameters(folder: Path, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter's name in `model` and its values, memory-mapped from the files.

    Raises KeyError for a model whose files name or split their weights otherwise than it does.
    """
    files = _files_by_key(folder)
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        key = name if name in files else name.removeprefix(prefix)
        with safe_open(str(files[key]), "pt") as weights:
            values = weights.get_tensor(key)
        if values.shape != parameter.shape:
            raise KeyError(name)
        yield name, values


def _files_by_key(folder: Path) -> dict[str, Path]:
    """Return the file that holds each weight, by its key."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            found.update(dict.fromkeys(weights.keys(), file))
    return found
