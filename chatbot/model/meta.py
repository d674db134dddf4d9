"""A base without its weights: the modules' names and shapes, for a model that runs elsewhere.

Adapters are checked against it, and it costs megabytes where the model costs gigabytes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

NamedTensors = Iterable[tuple[str, torch.Tensor]]


def load_meta_model(folder: Path) -> PreTrainedModel:
    """The model of `folder` on the meta device, in eval mode; KeyError, OSError, ValueError."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return cast(PreTrainedModel, model.eval())


def stored_parameters(folder: Path, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter's name in `model` and its values, mapped from the files, not copied.

    Raises KeyError for a model whose files name or cut their weights otherwise than it does.
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
    """Each weight's key -> the file that holds it."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            found.update(dict.fromkeys(weights.keys(), file))
    return found
