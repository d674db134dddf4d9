"""Finds, checks and loads the base model and its tokenizer.

    base = load_base("HuggingFaceTB/SmolLM2-135M-Instruct")

Training imports this very module, so what is trained is what is served.
"""

import errno
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from chatbot.model.base_name import STARTER_FOLDER, canonical_name, find_folder
from chatbot.model.chat_template import FALLBACK_TEMPLATE, encode_answer
from chatbot.model.fingerprint import (
    behaviour_fingerprint,
    describe_difference,
    fingerprint_tensors,
    hash_folder,
    weights_fingerprint,
)
from chatbot.model.meta import load_meta_model, stored_parameters
from feedback.errors import TalkbackError, describe_os_error, first_line, name_file

STARTER = str(STARTER_FOLDER)
"""The default base: the small model that comes with the package."""

DType = Literal["auto", "float32", "bfloat16"]

FLOAT32_MAX_PARAMETERS = 50_000_000
"""A model with fewer parameters is loaded in float32, which is exact and costs little on a CPU; a
larger one in bfloat16."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "tokenizer.model",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)

HUB_REMEDIES = {
    401: "Set HF_TOKEN to a token that may read it.",
    403: "Set HF_TOKEN to a token that may read it.",
    404: "Check the name and --revision.",
    429: "Wait a few minutes, or set HF_TOKEN: who is known may ask more often.",
}
DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}


class BaseError(TalkbackError):
    """Says why the base model cannot be loaded, and what to do about it."""


@dataclass(frozen=True)
class Base:
    """Holds a loaded base.

    `revision` is the commit or content hash of its files, `fingerprint` names the weights.
    Where another process runs the model, `model` is on the meta device, without weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    fingerprint: str

    @cached_property
    def identity(self) -> str:
        """Return what the base is, wherever it lies and however it is saved: its weights'
        fingerprint, a dot, and that of its behaviour."""
        return f"{self.fingerprint}.{behaviour_fingerprint(self.model.config, self.tokenizer)}"

    def check_identity(self, expected: str) -> None:
        """Raise BaseError for another base than the one expected."""
        if self.identity != expected:
            raise BaseError(
                f"{self.name} is not the base that the server speaks with any more: it has "
                f"{describe_difference(expected, self.identity)}. Start the server again."
            )


def load_base(
    name: str = STARTER,
    revision: str | None = None,
    *,
    dtype: DType = "auto",
    weights: bool = True,
    before_loading: Callable[[Path], object] = lambda folder: None,
) -> Base:
    """Load a local folder or a Hub id; any causal LM of transformers with safetensors.

    Raises `BaseError` when it cannot be loaded. The model is on the CPU, in eval mode;
    without `weights` it is on the meta device, with the same fingerprint. `before_loading` is
    called with the folder once its small files are checked.
    """
    folder, commit = _locate(name, revision)
    _check_files(folder, name)
    before_loading(folder)
    tokenizer = _load_tokenizer(folder, name)
    if weights:
        model = _load_model(folder, name, choose_dtype(folder, dtype))
        mark = weights_fingerprint(model)
    else:
        model, mark = _load_without_weights(folder, name)
    return Base(model, tokenizer, canonical_name(name), commit or hash_folder(folder), mark)


def load_tokenizer(name: str = STARTER, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone, with pad token and chat template ensured."""
    return _load_tokenizer(_locate(name, revision)[0], name)


# -- Finding and checking the files


def _locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the folder with the files, and the commit when it came from the Hub."""
    local = find_folder(name)
    if local is not None:
        if revision is not None:
            raise BaseError(
                f"{name} is a folder and has no revision {revision!r}. Leave --revision out."
            )
        return local, None
    if Path(name).is_absolute() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name[0] == ".":
        raise BaseError(f"There is no folder {name}. Give a folder or a Hub id such as org/model.")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision!r}" if revision else ""
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except errors.GatedRepoError as e:
        raise BaseError(f"{name} is gated. Accept its terms on the Hub and set HF_TOKEN.") from e
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        raise BaseError(
            f"There is no folder and no public Hub model {name!r}. Check the name, or set HF_TOKEN."
        ) from e
    except errors.RevisionNotFoundError as e:
        raise BaseError(f"{name} has no revision {revision!r}. Check --revision.") from e
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as e:
        raise BaseError(f"Cannot fetch {name}{at}: {_explain_download_error(e)}") from e
    return folder, folder.name


def _explain_download_error(error: BaseException | None) -> str:
    """Return why a download failed, and the remedy; the Hub's client hides it in the causes."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
            remedy = HUB_REMEDIES.get(status, "Try again later, or give a local folder.")
            return f"the Hub answered {status}. {remedy}"
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            named = name_file(error, Path(HF_HUB_CACHE))
            return f"{describe_os_error(named)}. HF_HOME names the folder of the cache."
        error = error.__cause__ or error.__context__
    return "no network, and it is not in the local cache. Go online once, or give a local folder."


def _check_files(folder: Path, name: str) -> None:
    """Refuse what cannot work, before anything heavy is loaded."""
    if not (folder / "config.json").is_file():
        raise BaseError(f"{name} has no config.json. Give the folder of a transformers model.")
    _check_architecture(folder, name)
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise BaseError(
                f"{name} has only pickled weights, which can run code. Convert them to safetensors "
                "(save_pretrained of transformers does) or choose another revision."
            )
        raise BaseError(f"{name} has no *.safetensors weights. Give a complete model.")


def _check_architecture(folder: Path, name: str) -> None:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        text = (folder / "config.json").read_text(encoding="utf-8", errors="replace")
        if '"auto_map"' in text:
            raise BaseError(
                f"{name} needs code of its own, which never runs here. Choose a model that "
                "transformers knows."
            ) from e
        raise BaseError(f"The config.json of {name} cannot be read: {first_line(e)}") from e
    kinds = config.architectures or ["a model of unnamed architecture"]
    known = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)} - {None}
    if config.is_encoder_decoder or not known or (config.architectures and not known & set(kinds)):
        raise BaseError(
            f"{name} is {kinds[0]}, not a causal language model. Choose one that writes text, "
            "such as a Llama, Qwen, SmolLM or GPT-2."
        )


def choose_dtype(folder: Path, dtype: DType) -> torch.dtype:
    """Return the type that the weights in a folder are loaded in."""
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    return torch.float32 if count_parameters(folder) < FLOAT32_MAX_PARAMETERS else torch.bfloat16


def count_parameters(folder: Path) -> int:
    """Count the parameters, from the headers of the weight files alone; BaseError for a damaged
    file."""
    total = 0
    for file in _weight_files(folder):
        try:
            # "np" maps the file for reading alone; "pt" can map none larger than memory.
            with safe_open(str(file), "np") as weights:
                keys = weights.keys()
                total += sum(math.prod(weights.get_slice(key).get_shape()) for key in keys)
        except SafetensorError as e:
            raise BaseError(f"{file} is damaged: {first_line(e)}. Fetch it again.") from e
    return total


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of the weights; others beside them may hold the same weights again."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    found = sorted(folder.glob("*.safetensors"))
    if single.is_file():
        return [single]
    named = index.read_text(encoding="utf-8", errors="replace") if index.is_file() else ""
    return [file for file in found if f'"{file.name}"' in named] or found


def _load_model(folder: Path, name: str, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as e:
        raise BaseError(f"The weights of {name} cannot be loaded: {first_line(e)}") from e
    if missing := sorted(info["missing_keys"]):
        raise BaseError(
            f"{name} lacks {len(missing)} of its weights, {missing[0]} first. Fetch it again."
        )
    return cast(PreTrainedModel, model.eval())


def _load_without_weights(folder: Path, name: str) -> tuple[PreTrainedModel, str]:
    """Return the model on the meta device, and the fingerprint of its weights as if loaded."""
    try:
        model = load_meta_model(folder)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
        raise BaseError(f"The model of {name} cannot be made: {first_line(e)}") from e
    try:
        return model, fingerprint_tensors(stored_parameters(folder, model))
    except KeyError:  # the files split the weights otherwise than the model: load it once
        return model, weights_fingerprint(_load_model(folder, name, choose_dtype(folder, "auto")))
    except SafetensorError as e:
        raise BaseError(
            f"The weights of {name} are damaged: {first_line(e)}. Fetch it again."
        ) from e


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise BaseError(f"{name} has no tokenizer. Put its tokenizer.json beside the weights.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as e:
        raise BaseError(f"The tokenizer of {name} cannot be loaded: {first_line(e)}") from e
    if tokenizer.eos_token is None:
        raise BaseError(f"The tokenizer of {name} has no end token. Set eos_token in its config.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + FALLBACK_TEMPLATE
    elif isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise BaseError(f"{name} has the chat templates {names}. Name the one to take default.")
    return tokenizer


# -- What its files say of generation


def end_token_ids(base: Base) -> frozenset[int]:
    """Return the token ids that end an answer: the model's, the tokenizer's and the template's."""
    tokenizer = base.tokenizer
    config = base.model.generation_config
    configured = config.eos_token_id if config is not None else None
    found = {configured} if isinstance(configured, int) else set(configured or ())
    answer = encode_answer(tokenizer, [{"role": "user", "content": "x"}], "x")[1]
    return frozenset(found | {tokenizer.eos_token_id, answer[-1]})
