"""The streams that run together: what one step of the model does for each of them.

No locks and no threads here: the engine's worker is the only caller.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from chatbot.engine.local import cpu_threads
from chatbot.engine.local.detokenizer import Detokenizer
from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers, PreparedAdapter
from chatbot.engine.local.prefix_cache import Prefix, PrefixCache
from chatbot.engine.local.prompt_lookup import MAX_SPECULATING, PromptLookup
from chatbot.engine.local.runners import select_runner
from chatbot.engine.local.runners.runner import Chunk, KVCache
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.engine.local.sampler import Sampler, argmax_tokens, token_logprob
from chatbot.engine.machine import available_cores
from chatbot.engine.protocol import BASE, Request
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream
from chatbot.model import lora
from chatbot.model.base import FLOAT32_MAX_PARAMETERS, Base, encode, end_token_ids

log = logging.getLogger(__name__)

PROBE_MESSAGES = [{"role": "user", "content": "Hello! What can you do for me?"}]
"""What paths are compared on: it and what an adapter answers."""


@dataclass
class Sequence:
    """A stream and all that it needs; once it runs, its place in the batch is its cache row."""

    request: Request
    stream: Stream
    sampler: Sampler
    detokenizer: Detokenizer
    max_tokens: int
    """Most tokens of the answer."""
    num_computed_tokens: int = 0
    """Tokens in the cache so far."""
    lookup: PromptLookup = field(default_factory=PromptLookup)

    @property
    def adapter(self) -> str | None:
        """The adapter of the row, None for the base."""
        return None if self.request.adapter == BASE else self.request.adapter

    @property
    def computed_ids(self) -> list[int]:
        """The tokens in the cache."""
        return [*self.request.prompt_ids, *self.stream.ids][: self.num_computed_tokens]

    def propose_draft(self, most: int) -> list[int]:
        """At most so many tokens that may come after the last one and leave room for another."""
        so_far = [*self.request.prompt_ids, *self.stream.ids]
        self.lookup.extend(so_far[len(self.lookup) :])
        return self.lookup.propose(min(most, self.max_tokens - len(self.stream.ids) - 1))


@dataclass(frozen=True)
class StepOutput:
    """What a step says: `logits` [told, vocabulary], whether they are sound, the best tokens."""

    logits: torch.Tensor
    finite: list[bool]
    argmax: list[int]


class Scheduler:
    """Up to `slots` running streams, the last of which may still be reading its prompt.

    `ended(row, finish, error)` is called once for each row that leaves.
    """

    def __init__(
        self,
        base: Base,
        settings: EngineSettings,
        max_length: int,
        ended: Callable[[Sequence, FinishReason, str | None], None],
    ) -> None:
        self.slots = settings.slots
        self._settings = settings
        self.lora = LoraLayers(base.model, list(lora.target_modules(base.model)))
        self.counts: Counter[str] = Counter()
        self._running: list[Sequence] = []
        self._prefilling: Sequence | None = None
        self._on_finish = ended
        self._eos_ids = end_token_ids(base)
        self.prefix_cache = PrefixCache(settings.prefix_mb * 1_000_000)
        self._free_row: Prefix | None = None
        """What the first free row still holds of its last stream."""
        cache = SlotKVCache(self.slots, max_length)
        self._weight_bytes = sum(parameter.nbytes for parameter in base.model.parameters())
        self._probe_ids = encode(base.tokenizer, PROBE_MESSAGES)
        plain = TransformersRunner(base.model, self.lora, cache)
        self.runner = select_runner.select_runner(plain, self._probe_ids, settings.kind == "int8")

    @property
    def _cache(self) -> KVCache:
        return self.runner.cache

    def sequences(self) -> list[Sequence]:
        """Everyone aboard."""
        return [*self._running, *([self._prefilling] if self._prefilling else [])]

    def choose_threads(self, measured: int) -> int:
        """Take as many CPU threads as the settings say or as suit this model, where they were not
        `tried` elsewhere; how many they are."""
        most = max(1, available_cores() // (self._settings.workers or 1))
        threads = (
            self._settings.threads or measured or cpu_threads.choose_thread_count(self.runner, most)
        )
        self.runner.set_threads(threads)
        cpu_threads.warm_up(self.runner, self.slots)
        self._governor = cpu_threads.ThreadGovernor(self.runner, threads, threads)
        self.set_available_cores(most)
        return threads

    @property
    def uses_spare_cores(self) -> bool:
        """Whether it takes more cores while they are there for it. What a small model leaves free
        is there for others."""
        fixed = self._settings.threads or self.runner.parameters <= FLOAT32_MAX_PARAMETERS
        return self.runner.cpu and not fixed

    def set_available_cores(self, cores: int) -> None:
        """So many cores are there for it."""
        if self.uses_spare_cores:
            self._governor.max_threads = max(cores, self._governor.min_threads)

    @property
    def fast(self) -> bool:
        """Whether the fast path serves, not transformers' own forward."""
        return self.runner.name != "transformers"

    @property
    def int8(self) -> bool:
        """Whether it multiplies in eight bits."""
        return self.runner.name == "int8"

    def memory(self) -> dict[str, int]:
        """Bytes held, by what holds them."""
        return {
            "weights": self._weight_bytes + self.runner.extra_bytes,
            "adapters": self.runner.adapter_bytes,
            "cache": self._cache.bytes,
            "prefixes": self.prefix_cache.nbytes,
        }

    def install_adapter(self, adapter: str, prepared: PreparedAdapter) -> None:
        """Make an adapter known that `adapters` prepared."""
        self.lora.install(adapter, prepared)
        coarse = self.int8
        self.runner = select_runner.checked_runner(self.runner, self._probe_ids, adapter)
        if coarse and not self.int8:
            self._recompute_kv()

    def _recompute_kv(self) -> None:
        """Exact weights serve from now on: what eight bits have read is computed anew."""
        self.prefix_cache, self._free_row = PrefixCache(self.prefix_cache.max_bytes), None
        self._cache.free()
        for index, row in enumerate(self.sequences()):
            if ids := row.computed_ids:
                self.runner.forward([Chunk(index, ids, 0, row.adapter)])

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with."""
        self.runner.drop_adapter(adapter)
        self.prefix_cache.drop_adapter(adapter)
        if self._free_row is not None and self._free_row.adapter == adapter:
            self._free_row = None

    def detach(self) -> None:
        """Leave the model as it was."""
        self.runner.restore_weights()
        self.lora.detach()

    def fail_all(self, error: Exception) -> None:
        """A step broke off: its streams end, the batch is empty and clean again."""
        rows = self.sequences()
        self._running, self._prefilling, self._free_row = [], None, None
        self._cache.zero_all()
        for row in rows:
            self._on_finish(row, "error", f"The engine failed: {error}")

    def remove_cancelled(self) -> None:
        """Cancelled streams leave."""
        for index in reversed(range(len(self._running))):
            if self._running[index].stream.cancelled:
                self._finish(index, "cancelled")
        if self._prefilling is not None and self._prefilling.stream.cancelled:
            row, self._prefilling = self._prefilling, None
            self._cache.zero_row(len(self._running))
            self._on_finish(row, "cancelled", None)

    @property
    def has_deferred_copy(self) -> bool:
        """Whether there is a copy to make that the next who comes would have to wait for."""
        return self._free_row is not None and not self._free_row.states

    def copy_deferred(self) -> None:
        """Make it: what the last stream has left in its row is kept elsewhere as well."""
        if self._free_row is not None and not self._free_row.states:
            self._free_row = self._keep(len(self._running), self._free_row)

    def step(self, token_budget: int, next_waiting: Callable[[], Sequence | None]) -> None:
        """One more token for every stream that has read its prompt, and in the same step up to
        `budget` tokens of prompts; `waiting` gives the next of them."""
        running, guesses = len(self._running), self._propose_drafts()
        parts = [
            Chunk(
                index,
                [row.stream.ids[-1], *guess],
                row.num_computed_tokens,
                row.adapter,
                1 + len(guess),
            )
            for index, (row, guess) in enumerate(zip(self._running, guesses, strict=True))
        ]
        for row in self._running:
            row.num_computed_tokens += 1
        parts += self._schedule_prefill(token_budget, next_waiting)
        if not parts:
            return
        with self._governor.step(step_kind(parts)):
            logits = self.runner.forward(parts)
        self.counts["steps"] += running > 0
        self._process_output(logits, guesses + [[] for _ in self._running[running:]])

    def _schedule_prefill(self, budget: int, waiting: Callable[[], Sequence | None]) -> list[Chunk]:
        """What is read of prompts; whose prompt ends with it runs from now on."""
        parts: list[Chunk] = []
        while budget > 0 and (row := self._prefilling_sequence(waiting)) is not None:
            ids = row.request.prompt_ids[row.num_computed_tokens : row.num_computed_tokens + budget]
            parts.append(Chunk(len(self._running), ids, row.num_computed_tokens, row.adapter))
            row.num_computed_tokens += len(ids)
            budget -= len(ids)
            self.counts["prompt"] += len(ids)
            if row.num_computed_tokens == len(row.request.prompt_ids):
                self._prefilling = None
                self._running.append(row)
        return parts

    def _prefilling_sequence(self, waiting: Callable[[], Sequence | None]) -> Sequence | None:
        """The prompt that is being read, else the next if there is a slot for it."""
        if self._prefilling is None and len(self._running) < self.slots:
            self._prefilling = waiting()
            if self._prefilling is not None:
                self._recall(self._prefilling)
        return self._prefilling

    def _recall(self, row: Sequence) -> None:
        """Spare the row what its adapter has read before; the last token gives the logits."""
        adapter, ids = row.request.adapter, torch.tensor(row.request.prompt_ids[:-1])
        row.num_computed_tokens = self._still_there(adapter, ids)
        length, states = self.prefix_cache.match_prefix(adapter, ids)
        if length > row.num_computed_tokens:
            self._cache.restore_row(len(self._running), states, length)
            row.num_computed_tokens = length
        self.counts["recalled"] += row.num_computed_tokens
        self.counts["recalls"] += row.num_computed_tokens > 0

    def _still_there(self, adapter: str, ids: torch.Tensor) -> int:
        """How many of the tokens the next row holds already. What it loses is kept elsewhere."""
        if self._free_row is None:
            return 0
        there = self._free_row.common_length(ids) if self._free_row.adapter == adapter else 0
        if there < len(self._free_row.token_ids) - 1:
            self.copy_deferred()
        self._free_row = None
        return there

    def _remember(self, index: int) -> None:
        """Keep what a stream that ends has read and said for the next turn: in its row, if that
        will be the first free one."""
        row = self._running[index]
        prefix = Prefix(row.request.adapter, torch.tensor(row.computed_ids), [])
        if index == len(self._running) - 1 and self._prefilling is None:
            self._free_row = prefix
        else:
            self._keep(index, prefix)

    def _keep(self, index: int, prefix: Prefix) -> Prefix:
        kept = replace(prefix, states=self._cache.copy_row(index, len(prefix.token_ids)))
        self.prefix_cache.insert(kept)
        return kept

    def _propose_drafts(self) -> list[list[int]]:
        """What each stream may say next; with many of them there is no room for guesses."""
        if len(self._running) > MAX_SPECULATING or not self._settings.prompt_lookup:
            return [[] for _ in self._running]
        return [row.propose_draft(self._settings.prompt_lookup) for row in self._running]

    def _process_output(self, logits: torch.Tensor, guesses: list[list[int]]) -> None:
        """Choose and send the next tokens of all rows; those that end leave."""
        at = len(guesses) + sum(map(len, guesses))
        told = StepOutput(logits, *argmax_tokens(logits[:at]))
        for index, guess in reversed(list(enumerate(guesses))):
            at -= 1 + len(guess)
            self._verify_draft(index, told, at, guess)

    def _verify_draft(self, index: int, told: StepOutput, first: int, guess: list[int]) -> None:
        """A row's next token by the logits `first`, and those after it while guesses are right."""
        row, before = self._running[index], self._running[index].num_computed_tokens
        for at, guessed in enumerate([*guess, None], first):
            if not told.finite[at]:
                self._fail_non_finite(index)
                break
            token = (
                told.argmax[at] if row.sampler.takes_argmax else row.sampler.sample(told.logits[at])
            )
            if (count := row.request.sampling.logprobs) is not None:
                row.stream.logprobs.append(token_logprob(told.logits[at], token, count))
            self.counts["decoded"] += 1
            if (finish := self._emit_token(row, token)) is not None:
                self._finish(index, finish)
                break
            if token != guessed:
                break
            row.num_computed_tokens += 1
            self.counts["guessed"] += 1
        if guess:
            row.lookup.record_accepted(row.num_computed_tokens - before)

    def _emit_token(self, row: Sequence, token: int) -> FinishReason | None:
        """Send a token's text; why the answer ends with it, if it does."""
        if token in self._eos_ids:
            row.stream.append_token(token, row.detokenizer.flush()[0])
            return "stop"
        text, stopped = row.detokenizer.add(token)
        row.stream.append_token(token, text)
        if not stopped and len(row.stream.ids) >= row.max_tokens:
            text, stopped = row.detokenizer.flush()
            row.stream.append_text(text)
            return "stop" if stopped else "length"
        return "stop" if stopped else None

    def _fail_non_finite(self, index: int) -> None:
        """Logits without a best token: zero the row, or its NaN would outlive it in the cache."""
        self._cache.zero_row(index)
        reason = f"{self._running[index].request.adapter} computed NaN or infinity. Roll it back."
        log.error(reason)
        self._finish(index, "error", reason)

    def _finish(self, index: int, finish: FinishReason, error: str | None = None) -> None:
        """End a running stream; the last row takes its place, the prompt being read moves up."""
        self.copy_deferred()
        self._free_row = None  # another row will be the first free one
        if error is None and self.prefix_cache.max_bytes:
            self._remember(index)
        row, last = self._running[index], len(self._running) - 1
        if index != last:
            self._running[index] = self._running[last]
            self._cache.move_row(last, index, self._running[index].num_computed_tokens)
        self._running.pop()
        if self._prefilling is not None:
            self._cache.move_row(last + 1, last, self._prefilling.num_computed_tokens)
        self._on_finish(row, finish, error)


def step_kind(parts: list[Chunk]) -> tuple[int, bool] | None:
    """What steps of one token each have in common that take equally long; None for other steps."""
    if any(len(part.ids) > 1 for part in parts):
        return None
    return len(parts), any(part.adapter is not None for part in parts)
