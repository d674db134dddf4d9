"""Drives other CPU engines on the same model as ours: llama.cpp and OpenVINO GenAI.

Each is driven in its own leanest way: no server, no text, no thread beside its own, and the
likeliest token taken straight from its logits. What these leave out, ours does.
"""

import ctypes
import math
import shutil
import subprocess
import time
from importlib.util import find_spec
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from chatbot.engine.local.runners.llama_cpu import LlamaCpuRunner, LlamaInt8Runner
from chatbot.engine.local.runners.llama_torch import LlamaTorchRunner
from chatbot.engine.protocol import BASE
from chatbot.model.base import load_base
from tests.bench.bench_accuracy import Model
from tests.bench.bench_engine import ANSWER, PROMPT, engine_rate, prompt, start

MOST = 16
"""Streams at the same time."""


class Peer(Protocol):
    """An engine with the model loaded, in a process of its own."""

    def rate(self, streams: int) -> float:
        """Decode tokens/s over all streams, counted once all prompts are read."""

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits [tokens, vocab] after each token of a text."""


def perplexity(peer: Peer, windows: list[list[int]]) -> float:
    """The perplexity of a text in windows."""
    losses = [
        float(
            functional.cross_entropy(torch.from_numpy(peer.logits(ids))[:-1], torch.tensor(ids[1:]))
        )
        for ids in windows
    ]
    return math.exp(sum(losses) / len(losses))


class Ours:
    """One worker, as a service has them, of as many threads as the others get."""

    def __init__(self, folder: Path, threads: int, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._engine = start(str(folder), kind, threads=threads, workers=1)
        Finalize(None, self._engine.close, exitpriority=2)  # children call nothing of `atexit`
        assert kind != "int8" or self._engine.stats()["int8"], "this machine has no eight bits"

    def rate(self, streams: int) -> float:
        return engine_rate(self._engine, streams, [BASE])

    def logits(self, ids: list[int]) -> np.ndarray:
        """By the runner that the engine has chosen, in this process."""
        if not hasattr(self, "_model"):
            self._model = Model(str(self._folder), "auto", None)
            kinds = {"int8": LlamaInt8Runner, "llama_cpu": LlamaCpuRunner}
            kind = kinds.get(self._engine.stats()["runner"], LlamaTorchRunner)
            self._runner = kind(self._model.reference)
        return self._model.logits(self._runner, ids).numpy()


class LlamaCpp:
    """One `llama_decode` a step, one sequence a stream."""

    def __init__(self, file: Path, threads: int) -> None:
        import llama_cpp

        self._llama, self._threads = llama_cpp, threads
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)  # which C does not keep
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
        assert self._model, f"llama.cpp cannot read {file}"
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def rate(self, streams: int) -> float:
        context = self._context(streams)
        generated = [
            [token] for token in self._step(context, [prompt(n) for n in range(streams)], 0)
        ]
        begin = time.perf_counter()
        for step in range(ANSWER - 1):
            last = [ids[-1:] for ids in generated]
            for ids, token in zip(generated, self._step(context, last, PROMPT + step), strict=True):
                ids.append(token)
        took = time.perf_counter() - begin
        self._llama.llama_free(context)
        self.generated = generated
        return streams * (ANSWER - 1) / took

    def logits(self, ids: list[int]) -> np.ndarray:
        """In one batch, with logits after each of its tokens."""
        context = self._context(1, len(ids))
        logits = self._decode(context, [ids], 0, all_logits=True).copy()
        self._llama.llama_free(context)
        return logits

    def _context(self, streams: int, length: int = 256) -> Any:
        options = self._llama.llama_context_default_params()
        options.n_ctx = streams * length
        options.n_batch, options.n_seq_max = streams * max(PROMPT, length), streams
        options.n_threads = options.n_threads_batch = self._threads
        return self._llama.llama_init_from_model(self._model, options)

    def _step(self, context: Any, rows: list[list[int]], at: int) -> list[int]:
        """The likeliest next token of each row, whose tokens begin at position ``at``."""
        best: list[int] = self._decode(context, rows, at).argmax(1).tolist()
        return best

    def _decode(
        self, context: Any, rows: list[list[int]], at: int, all_logits: bool = False
    ) -> np.ndarray:
        """The logits after the last token of each row, or after each token of all rows."""
        batch = self._llama.llama_batch_init(sum(map(len, rows)), 0, 1)
        flat = [(token, row, n) for row, ids in enumerate(rows) for n, token in enumerate(ids)]
        for i, (token, row, n) in enumerate(flat):
            batch.token[i], batch.pos[i] = token, at + n
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = all_logits or n == len(rows[row]) - 1
        batch.n_tokens = len(flat)
        assert self._llama.llama_decode(context, batch) == 0, "llama.cpp has no room"
        wanted = len(flat) if all_logits else len(rows)
        self._llama.llama_batch_free(batch)
        logits = self._llama.llama_get_logits(context)
        return np.ctypeslib.as_array(logits, (wanted, self._vocab_size))


class OpenVino:
    """The continuous batching pipeline, step by step, all prompts read in the first."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino_genai as genai

        self._folder = folder
        settings = genai.SchedulerConfig()
        settings.cache_size, settings.max_num_seqs = 1, MOST
        settings.max_num_batched_tokens = MOST * PROMPT
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipe = genai.ContinuousBatchingPipeline(folder, settings, "CPU", properties)
        self._config = genai.GenerationConfig(max_new_tokens=ANSWER, ignore_eos=True)

    def rate(self, streams: int) -> float:
        from openvino import Tensor

        asked = [
            self._pipe.add_request(n, Tensor(np.array([prompt(n)])), self._config)
            for n in range(streams)
        ]
        self._pipe.step()
        begin = time.perf_counter()
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        took = time.perf_counter() - begin
        self.generated = [each.read_all()[0].generated_ids for each in asked]
        assert all(len(ids) == ANSWER for ids in self.generated)
        return streams * (ANSWER - 1) / took

    def logits(self, ids: list[int]) -> np.ndarray:
        """By OpenVINO itself, since the pipeline gives none."""
        import openvino

        if not hasattr(self, "_compiled"):
            model = self._folder / "openvino_model.xml"
            self._compiled = openvino.Core().compile_model(model, "CPU")
        request = self._compiled.create_infer_request()
        tokens = np.array([ids])
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(len(ids))[None],
            "beam_idx": np.array([0], np.int32),
        }
        logits: np.ndarray = request.infer(inputs)["logits"][0]
        return logits


# -- The model, written as each peer reads it


def write_gguf(out: Path, folder: Path, kind: str) -> None:
    """The Llama in ``folder`` as GGUF in bf16 or q8_0; without a tokenizer, for only ids matter."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    model = load_base(str(folder), dtype="float32").model
    config, kinds = model.config, GGMLQuantizationType
    writer = GGUFWriter(out, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, values in _tensors(model):
        wanted = kinds.F32 if values.ndim == 1 else kinds[kind.upper()]
        writer.add_tensor(name, quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Any) -> list[tuple[str, np.ndarray]]:
    """GGUF's names and values; its Llama turns neighbours, so queries and keys are rearranged."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    found = []
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = weight.unflatten(0, (-1, 2, model.config.head_dim // 2))
            weight = halves.transpose(1, 2).flatten(0, 2)
        found.append((names.get_name(name, (".weight",)), weight.detach().numpy()))
    return found


def write_openvino(out: Path, folder: Path, exporter: str) -> None:
    """The model as OpenVINO's own exporter writes it in eight bits."""
    task = ("--task", "text-generation-with-past", "--weight-format", "int8")
    export = subprocess.run(
        [exporter, "export", "openvino", "--model", folder, *task, out], capture_output=True
    )
    assert export.returncode == 0, export.stderr.decode()[-2000:]


def lacks(peer: str, exporter: str) -> str:
    """What has to be installed before a peer can be measured; empty where nothing has."""
    modules = {"llama.cpp": ("llama_cpp", "gguf"), "OpenVINO": ("openvino_genai",)}[peer]
    packages = [name.replace("llama_cpp", "llama-cpp-python") for name in modules]
    if not all(find_spec(name) for name in modules):
        return f"not installed: pip install {' '.join(packages).replace('_', '-')}"
    if peer == "OpenVINO" and not shutil.which(exporter):
        return "no exporter: pip install optimum-intel[openvino], in an environment of its own"
    return ""
