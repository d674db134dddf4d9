"""The streams that run together: what one step of the model does for each of them.

No locks and no threads here: the engine's worker is the only caller.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from chatbot.engine.local import cpu_threads
from chatbot.engine.local.detokenizer import Detokenizer
from chatbot.engine.local.kv_cache import SlotCache
from chatbot.engine.local.multi_lora import Prepared, Rows
from chatbot.engine.local.prefix_cache import Prefix, Prefixes
from chatbot.engine.local.prompt_lookup import FEW, Lookup
from chatbot.engine.local.runners import select_runner
from chatbot.engine.local.runners.runner import Chunk, KVCache
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.engine.local.sampler import Sampler, best, chance
from chatbot.engine.machine import available_cores
from chatbot.engine.protocol import BASE, Request
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream
from chatbot.model import lora
from chatbot.model.base import FLOAT32_MAX_PARAMETERS, Base, encode, end_token_ids

log = logging.getLogger(__name__)

GREETING = [{"role": "user", "content": "Hello! What can you do for me?"}]
"""What paths are compared on: it and what an adapter answers."""


@dataclass
class Row:
    """A stream and all that it needs; once it runs, its place in the batch is its cache row."""

    request: Request
    stream: Stream
    sampler: Sampler
    words: Detokenizer
    limit: int
    """Most tokens of the answer."""
    position: int = 0
    """Tokens in the cache so far."""
    lookup: Lookup = field(default_factory=Lookup)

    @property
    def adapter(self) -> str | None:
        """The adapter of the row, None for the base."""
        return None if self.request.adapter == BASE else self.request.adapter

    @property
    def read(self) -> list[int]:
        """The tokens in the cache."""
        return [*self.request.prompt_ids, *self.stream.ids][: self.position]

    def guess(self, most: int) -> Sequence[int]:
        """At most so many tokens that may come after the last one and leave room for another."""
        so_far = [*self.request.prompt_ids, *self.stream.ids]
        self.lookup.extend(so_far[len(self.lookup) :])
        return self.lookup.guess(min(most, self.limit - len(self.stream.ids) - 1))


@dataclass(frozen=True)
class Told:
    """What a step says: `logits` [told, vocabulary], whether they are sound, the best tokens."""

    logits: torch.Tensor
    sound: list[bool]
    best: list[int]


class Batch:
    """Up to `slots` running streams, the last of which may still be reading its prompt.

    `ended(row, finish, error)` is called once for each row that leaves.
    """

    def __init__(
        self,
        base: Base,
        settings: EngineSettings,
        max_length: int,
        ended: Callable[[Row, FinishReason, str | None], None],
    ) -> None:
        self.slots = settings.slots
        self._settings = settings
        self.adapters = Rows(base.model, list(lora.target_modules(base.model)))
        self.counts: Counter[str] = Counter()
        self._rows: list[Row] = []
        self._filling: Row | None = None
        self._ended = ended
        self._ends = end_token_ids(base)
        self._prefixes = Prefixes(settings.prefix_mb * 1_000_000)
        self._left: Prefix | None = None
        """What the first free row still holds of its last stream."""
        cache = SlotCache(self.slots, max_length)
        self._weights = sum(parameter.nbytes for parameter in base.model.parameters())
        self._greeting = encode(base.tokenizer, GREETING)
        plain = TransformersRunner(base.model, self.adapters, cache)
        self._path = select_runner.chosen(plain, self._greeting, settings.kind == "int8")

    @property
    def _cache(self) -> KVCache:
        return self._path.cache

    def rows(self) -> list[Row]:
        """Everyone aboard."""
        return [*self._rows, *([self._filling] if self._filling else [])]

    def settle(self, tried: int) -> int:
        """Take as many CPU threads as the settings say or as suit this model, where they were not
        `tried` elsewhere; how many they are."""
        most = max(1, available_cores() // (self._settings.workers or 1))
        threads = self._settings.threads or tried or cpu_threads.threads(self._path, most)
        self._path.set_threads(threads)
        cpu_threads.warm(self._path, self.slots)
        self._gear = cpu_threads.Gear(self._path, threads, threads)
        self.share(most)
        return threads

    @property
    def grows(self) -> bool:
        """Whether it takes more cores while they are there for it. What a small model leaves free
        is there for others."""
        fixed = self._settings.threads or self._path.parameters <= FLOAT32_MAX_PARAMETERS
        return self._path.cpu and not fixed

    def share(self, cores: int) -> None:
        """So many cores are there for it."""
        if self.grows:
            self._gear.share = max(cores, self._gear.few)

    @property
    def fast(self) -> bool:
        """Whether the fast path serves, not transformers' own forward."""
        return self._path.name != "plain"

    @property
    def int8(self) -> bool:
        """Whether it multiplies in eight bits."""
        return self._path.name == "int8"

    def memory(self) -> dict[str, int]:
        """Bytes held, by what holds them."""
        return {
            "weights": self._weights + self._path.extra_bytes,
            "adapters": self._path.adapter_bytes,
            "cache": self._cache.bytes,
            "prefixes": self._prefixes.bytes,
        }

    def install(self, adapter: str, prepared: Prepared) -> None:
        """Make an adapter known that `adapters` prepared."""
        self.adapters.install(adapter, prepared)
        coarse = self.int8
        self._path = select_runner.checked(self._path, self._greeting, adapter)
        if coarse and not self.int8:
            self._read_again()

    def _read_again(self) -> None:
        """Exact weights serve from now on: what eight bits have read is computed anew."""
        self._prefixes, self._left = Prefixes(self._prefixes.limit), None
        self._cache.free()
        for index, row in enumerate(self.rows()):
            if ids := row.read:
                self._path.forward([Chunk(index, ids, 0, row.adapter)])

    def drop(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with."""
        self._path.drop_adapter(adapter)
        self._prefixes.drop(adapter)
        if self._left is not None and self._left.adapter == adapter:
            self._left = None

    def detach(self) -> None:
        """Leave the model as it was."""
        self._path.restore_weights()
        self.adapters.detach()

    def fail(self, error: Exception) -> None:
        """A step broke off: its streams end, the batch is empty and clean again."""
        rows = self.rows()
        self._rows, self._filling, self._left = [], None, None
        self._cache.zero_all()
        for row in rows:
            self._ended(row, "error", f"The engine failed: {error}")

    def reap(self) -> None:
        """Cancelled streams leave."""
        for index in reversed(range(len(self._rows))):
            if self._rows[index].stream.cancelled:
                self._leave(index, "cancelled")
        if self._filling is not None and self._filling.stream.cancelled:
            row, self._filling = self._filling, None
            self._cache.zero_row(len(self._rows))
            self._ended(row, "cancelled", None)

    @property
    def restless(self) -> bool:
        """Whether there is a copy to make that the next who comes would have to wait for."""
        return self._left is not None and not self._left.states

    def rest(self) -> None:
        """Make it: what the last stream has left in its row is kept elsewhere as well."""
        if self._left is not None and not self._left.states:
            self._left = self._keep(len(self._rows), self._left)

    def step(self, budget: int, waiting: Callable[[], Row | None]) -> None:
        """One more token for every stream that has read its prompt, and in the same step up to
        `budget` tokens of prompts; `waiting` gives the next of them."""
        running, guesses = len(self._rows), self._guesses()
        parts = [
            Chunk(index, [row.stream.ids[-1], *guess], row.position, row.adapter, 1 + len(guess))
            for index, (row, guess) in enumerate(zip(self._rows, guesses, strict=True))
        ]
        for row in self._rows:
            row.position += 1
        parts += self._prompts(budget, waiting)
        if not parts:
            return
        with self._gear.step(kind_of(parts)):
            logits = self._path.forward(parts)
        self.counts["steps"] += running > 0
        self._advance(logits, guesses + [()] * (len(self._rows) - running))

    def _prompts(self, budget: int, waiting: Callable[[], Row | None]) -> list[Chunk]:
        """What is read of prompts; whose prompt ends with it runs from now on."""
        parts: list[Chunk] = []
        while budget > 0 and (row := self._next(waiting)) is not None:
            ids = row.request.prompt_ids[row.position : row.position + budget]
            parts.append(Chunk(len(self._rows), ids, row.position, row.adapter))
            row.position += len(ids)
            budget -= len(ids)
            self.counts["prompt"] += len(ids)
            if row.position == len(row.request.prompt_ids):
                self._filling = None
                self._rows.append(row)
        return parts

    def _next(self, waiting: Callable[[], Row | None]) -> Row | None:
        """The prompt that is being read, else the next if there is a slot for it."""
        if self._filling is None and len(self._rows) < self.slots:
            self._filling = waiting()
            if self._filling is not None:
                self._recall(self._filling)
        return self._filling

    def _recall(self, row: Row) -> None:
        """Spare the row what its adapter has read before; the last token gives the logits."""
        adapter, ids = row.request.adapter, torch.tensor(row.request.prompt_ids[:-1])
        row.position = self._still_there(adapter, ids)
        length, states = self._prefixes.longest(adapter, ids)
        if length > row.position:
            self._cache.restore_row(len(self._rows), states, length)
            row.position = length
        self.counts["recalled"] += row.position
        self.counts["recalls"] += row.position > 0

    def _still_there(self, adapter: str, ids: torch.Tensor) -> int:
        """How many of the tokens the next row holds already. What it loses is kept elsewhere."""
        if self._left is None:
            return 0
        there = self._left.common(ids) if self._left.adapter == adapter else 0
        if there < len(self._left.ids) - 1:
            self.rest()
        self._left = None
        return there

    def _remember(self, index: int) -> None:
        """Keep what a stream that ends has read and said for the next turn: in its row, if that
        will be the first free one."""
        row = self._rows[index]
        prefix = Prefix(row.request.adapter, torch.tensor(row.read), [])
        if index == len(self._rows) - 1 and self._filling is None:
            self._left = prefix
        else:
            self._keep(index, prefix)

    def _keep(self, index: int, prefix: Prefix) -> Prefix:
        kept = replace(prefix, states=self._cache.copy_row(index, len(prefix.ids)))
        self._prefixes.keep(kept)
        return kept

    def _guesses(self) -> list[Sequence[int]]:
        """What each stream may say next; with many of them there is no room for guesses."""
        if len(self._rows) > FEW or not self._settings.prompt_lookup:
            return [()] * len(self._rows)
        return [row.guess(self._settings.prompt_lookup) for row in self._rows]

    def _advance(self, logits: torch.Tensor, guesses: Sequence[Sequence[int]]) -> None:
        """Choose and send the next tokens of all rows; those that end leave."""
        at = len(guesses) + sum(map(len, guesses))
        told = Told(logits, *best(logits[:at]))
        for index, guess in reversed(list(enumerate(guesses))):
            at -= 1 + len(guess)
            self._follow(index, told, at, guess)

    def _follow(self, index: int, told: Told, first: int, guess: Sequence[int]) -> None:
        """A row's next token by the logits `first`, and those after it while guesses are right."""
        row, before = self._rows[index], self._rows[index].position
        for at, guessed in enumerate([*guess, None], first):
            if not told.sound[at]:
                self._spoilt(index)
                break
            token = told.best[at] if row.sampler.plain else row.sampler.choose(told.logits[at])
            if (count := row.request.sampling.logprobs) is not None:
                row.stream.logprobs.append(chance(told.logits[at], token, count))
            self.counts["decoded"] += 1
            if (finish := self._say(row, token)) is not None:
                self._leave(index, finish)
                break
            if token != guessed:
                break
            row.position += 1
            self.counts["guessed"] += 1
        if guess:
            row.lookup.judge(row.position - before)

    def _say(self, row: Row, token: int) -> FinishReason | None:
        """Send a token's text; why the answer ends with it, if it does."""
        if token in self._ends:
            row.stream.append_token(token, row.words.rest()[0])
            return "stop"
        text, stopped = row.words.add(token)
        row.stream.append_token(token, text)
        if not stopped and len(row.stream.ids) >= row.limit:
            text, stopped = row.words.rest()
            row.stream.append_text(text)
            return "stop" if stopped else "length"
        return "stop" if stopped else None

    def _spoilt(self, index: int) -> None:
        """Logits without a best token: zero the row, or its NaN would outlive it in the cache."""
        self._cache.zero_row(index)
        reason = f"{self._rows[index].request.adapter} computed NaN or infinity. Roll it back."
        log.error(reason)
        self._leave(index, "error", reason)

    def _leave(self, index: int, finish: FinishReason, error: str | None = None) -> None:
        """End a running stream; the last row takes its place, the prompt being read moves up."""
        self.rest()
        self._left = None  # another row will be the first free one
        if error is None and self._prefixes.limit:
            self._remember(index)
        row, last = self._rows[index], len(self._rows) - 1
        if index != last:
            self._rows[index] = self._rows[last]
            self._cache.move_row(last, index, self._rows[index].position)
        self._rows.pop()
        if self._filling is not None:
            self._cache.move_row(last + 1, last, self._filling.position)
        self._ended(row, finish, error)


def kind_of(parts: Sequence[Chunk]) -> tuple[int, bool] | None:
    """What steps of one token each have in common that take equally long; None for other steps."""
    if any(len(part.ids) > 1 for part in parts):
        return None
    return len(parts), any(part.adapter is not None for part in parts)
