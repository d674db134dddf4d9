"""Schedules sequences: which tokens of which streams each forward of the model computes.

There are no locks and no threads here: the engine's worker thread is the only caller.
"""

import logging
from collections import Counter
from collections.abc import Callable

import torch

from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers, PreparedAdapter
from chatbot.engine.local.prefix_cache import PrefixReuse
from chatbot.engine.local.prompt_lookup import MAX_SPECULATING
from chatbot.engine.local.runners import select_runner
from chatbot.engine.local.runners.runner import Chunk, KVCache
from chatbot.engine.local.runners.select_runner import Truth, encode_probe
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.engine.local.sampler import argmax_tokens
from chatbot.engine.local.sequence import Sequence, StepOutput
from chatbot.engine.local.timing import cpu_threads
from chatbot.engine.local.timing.prompt_budget import PromptBudget
from chatbot.engine.progress import Progress
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason
from chatbot.model import lora
from chatbot.model.adapter import LoraMatrices
from chatbot.model.base import Base, end_token_ids

log = logging.getLogger(__name__)

NextWaiting = Callable[[], Sequence | None]
"""Takes the next sequence from the queue of those that wait; None if nobody does."""


class Scheduler:
    """Runs up to `slots` sequences at once; each step decodes all of them and prefills the next.

    The rows of the key/value cache mirror this: row i belongs to running sequence i, the row after
    them to the one whose prompt is being computed, if any, and the rows behind are free. Rows in
    use thus lie side by side at the front, and a step reads the cache as one slice without copies.

    `on_finish(sequence, reason, error)` is called once for each sequence that leaves.
    """

    def __init__(
        self,
        base: Base,
        settings: EngineSettings,
        max_length: int,
        on_finish: Callable[[Sequence, FinishReason, str | None], None],
        progress: Progress,
    ) -> None:
        self.slots = settings.slots
        self.lora = LoraLayers(base.model, list(lora.target_modules(base.model)))
        """The adapters of all linears."""
        self.prefixes = PrefixReuse(settings.prefix_mb * 1_000_000)
        """What ended sequences have computed."""
        self.counts: Counter[str] = Counter()
        """See `TOKEN_COUNTERS`."""
        self._settings = settings
        self._prompt_budget = PromptBudget(settings.chunk)
        self._running: list[Sequence] = []
        self._prefilling: Sequence | None = None
        self._on_finish = on_finish
        self._end_token_ids = end_token_ids(base)
        self._weight_bytes = sum(parameter.nbytes for parameter in base.model.parameters())
        kv_cache = SlotKVCache(self.slots, max_length, progress)
        self._reference = TransformersRunner(base.model, self.lora, kv_cache)
        self._probe = encode_probe(base.tokenizer, self._reference.parameters)
        self._base_truth = select_runner.measure_truth(self._reference, self._probe)
        self.runner = select_runner.select_runner(
            self._reference, self._base_truth, settings.kind == "int8"
        )
        """Computes the steps; an adapter that it computes wrongly has it replaced."""

    @property
    def _kv_cache(self) -> KVCache:
        return self.runner.cache

    @property
    def sequences(self) -> list[Sequence]:
        """Return all sequences in the order of their cache rows: running ones, then prefilling."""
        return [*self._running, *([self._prefilling] if self._prefilling else [])]

    # -- CPU threads

    def choose_threads(self, measured: int) -> int:
        """Set the number of CPU threads and warm up; return it. See `start_governor`."""
        self._governor = cpu_threads.start_governor(self.runner, self._settings, measured)
        return self._governor.min_threads

    @property
    def uses_spare_cores(self) -> bool:
        """Tell whether steps use more cores while these are free."""
        return cpu_threads.uses_spare_cores(self.runner, self._settings)

    def set_available_cores(self, cores: int) -> None:
        """Let steps use up to so many cores, where they use spare ones at all."""
        if self.uses_spare_cores:
            self._governor.max_threads = max(cores, self._governor.min_threads)

    # -- Numbers for a status page

    @property
    def is_fast(self) -> bool:
        """Tell whether a runner of ours computes, and not transformers' own forward."""
        return self.runner.name != "transformers"

    @property
    def is_int8(self) -> bool:
        """Tell whether the model multiplies in eight bits."""
        return self.runner.name == "int8"

    @property
    def notes(self) -> list[str]:
        """Return why what was wanted, or is faster, does not compute."""
        return self._reference.notes

    def memory(self) -> dict[str, int]:
        """Return the bytes held by weights, adapters, key/value cache and prefixes."""
        return {
            "weights": self._weight_bytes + self.runner.extra_bytes,
            "adapters": self.runner.adapter_bytes,
            "cache": self._kv_cache.bytes,
            "prefixes": self.prefixes.cache.nbytes,
        }

    # -- Between two steps

    def prepare_adapter(
        self, adapter: str, matrices: LoraMatrices
    ) -> tuple[PreparedAdapter, Truth | None]:
        """Return what `install_adapter` takes; on any thread, beside running streams."""
        truth = select_runner.measure_truth(self._reference, self._probe, adapter, matrices)
        return self.lora.prepare(matrices, self._reference.like), truth

    def install_adapter(self, adapter: str, prepared: PreparedAdapter, truth: Truth | None) -> None:
        """Make an adapter known; replace a runner that computes it wrong."""
        self.lora.install(adapter, prepared)
        was_int8 = self.is_int8
        self.runner = select_runner.checked_runner(self.runner, truth, self._base_truth)
        if was_int8 and not self.is_int8:
            self._recompute_kv()

    def _recompute_kv(self) -> None:
        """Compute the keys and values of all sequences anew, now that exact weights serve.

        What eight bits have computed differs by more than rounding, and its cache has another type.
        """
        self.prefixes.clear()
        self._kv_cache.free()
        for row, sequence in enumerate(self.sequences):
            if ids := sequence.computed_ids:
                self.runner.forward([Chunk(row, ids, 0, sequence.adapter)])

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no sequence uses any more."""
        self.runner.drop_adapter(adapter)
        self.prefixes.drop_adapter(adapter)

    def detach(self) -> None:
        """Give the model its own weights and forward back."""
        self.runner.restore_weights()
        self.lora.detach()

    def fail_all(self, error: Exception) -> None:
        """End all sequences after a step that raised; the cache is zeroed, for it may hold NaN."""
        sequences = self.sequences
        self._running, self._prefilling = [], None
        self.prefixes.forget_free_row()
        self._kv_cache.zero_all()
        for sequence in sequences:
            self._on_finish(sequence, "error", f"The engine failed: {error}")

    def remove_cancelled(self) -> None:
        """End the sequences whose streams were cancelled."""
        # From the back, for the last sequence moves into a row that becomes free.
        for index in reversed(range(len(self._running))):
            if self._running[index].stream.cancelled:
                self._finish(index, "cancelled")
        if self._prefilling is not None and self._prefilling.stream.cancelled:
            sequence, self._prefilling = self._prefilling, None
            self._kv_cache.zero_row(len(self._running))
            self._on_finish(sequence, "cancelled", None)

    def copy_deferred_prefix(self) -> None:
        """Do a copy that the next sequence would otherwise wait for; call it while idle."""
        self.prefixes.copy_deferred(self._kv_cache, len(self._running))

    # -- A step

    def step(self, next_waiting: NextWaiting) -> None:
        """Decode a token or more of every running sequence and prefill the next prompts' tokens, as
        many as `PromptBudget` allows.

        Both share one forward, so that a long prompt delays running streams by a chunk at most.
        """
        drafts = self._propose_drafts()
        num_decoding = len(drafts)
        decoded = self._schedule_decode(drafts)
        decoding = sum(len(chunk.ids) for chunk in decoded)
        prompts = self._schedule_prefill(self._prompt_budget.tokens(decoding), next_waiting)
        chunks = decoded + prompts
        if not chunks:
            return
        prompt_tokens = sum(len(chunk.ids) for chunk in prompts)
        with (
            self._prompt_budget.step(decoding, prompt_tokens),
            self._governor.step(cpu_threads.step_kind(chunks)),
        ):
            logits = self.runner.forward(chunks)
        self.counts["steps"] += num_decoding > 0
        # Those whose prompt ends with this step have their first token now, and no draft.
        self._process_logits(logits, drafts + [[] for _ in self._running[num_decoding:]])

    def _propose_drafts(self) -> list[list[int]]:
        """Return the speculative tokens of each running sequence, perhaps none.

        A forward of few tokens reads all weights anyway, and verifying some more costs hardly any
        time. With many sequences the products are large enough that every token costs, and tokens
        that are sure to be wanted are worth more than guesses.
        """
        if len(self._running) > MAX_SPECULATING or not self._settings.prompt_lookup:
            return [[] for _ in self._running]
        return [each.propose_draft(self._settings.prompt_lookup) for each in self._running]

    def _schedule_decode(self, drafts: list[list[int]]) -> list[Chunk]:
        """Return a chunk for each running sequence: its last token, then its draft.

        Only the last token counts as computed: those of the draft do when they are accepted. What
        a wrong draft leaves in the cache lies beyond `num_computed_tokens` and is overwritten.
        """
        chunks: list[Chunk] = []
        for row, (sequence, draft) in enumerate(zip(self._running, drafts, strict=True)):
            ids, start = [sequence.stream.ids[-1], *draft], sequence.num_computed_tokens
            chunks.append(Chunk(row, ids, start, sequence.adapter, num_logits=len(ids)))
            sequence.num_computed_tokens += 1
        return chunks

    def _schedule_prefill(self, token_budget: int, next_waiting: NextWaiting) -> list[Chunk]:
        """Return the chunks of prompts; a sequence whose prompt ends in one runs from now on.

        Prompts are computed one after the other, in the order in which they came: the first one's
        answer begins sooner than if all shared the budget.
        """
        chunks: list[Chunk] = []
        while token_budget > 0 and (sequence := self._admit(next_waiting)) is not None:
            ids = sequence.next_prompt_ids(token_budget)
            start = sequence.num_computed_tokens
            chunks.append(Chunk(len(self._running), ids, start, sequence.adapter))
            sequence.num_computed_tokens += len(ids)
            token_budget -= len(ids)
            self.counts["prompt"] += len(ids)
            if sequence.is_prefilled:
                self._prefilling = None
                self._running.append(sequence)
        return chunks

    def _admit(self, next_waiting: NextWaiting) -> Sequence | None:
        """Return the sequence that is prefilling, else the next that waits if a slot is free."""
        if self._prefilling is None and len(self._running) < self.slots:
            self._prefilling = next_waiting()
            if self._prefilling is not None:
                self._restore_prefix(self._prefilling)
        return self._prefilling

    def _restore_prefix(self, sequence: Sequence) -> None:
        """Spare a sequence the tokens of its prompt that its adapter has computed before."""
        request, row = sequence.request, len(self._running)
        length = self.prefixes.restore(self._kv_cache, row, request.adapter, request.prompt_ids)
        sequence.num_computed_tokens = length
        self.counts["recalled"] += length
        self.counts["recalls"] += length > 0

    # -- After the forward

    def _process_logits(self, logits: torch.Tensor, drafts: list[list[int]]) -> None:
        """Sample and send the next tokens of all running sequences; those that end leave."""
        first = len(drafts) + sum(map(len, drafts))
        # A prompt that goes on has logits too, the last ones; nobody needs them.
        output = StepOutput(logits, *argmax_tokens(logits[:first]))
        # From the back: the last sequence moves into the row of one that ends, and it must have
        # had its turn by then.
        for index, draft in reversed(list(enumerate(drafts))):
            first -= 1 + len(draft)
            self._accept_tokens(index, output, first, draft)

    def _accept_tokens(self, index: int, output: StepOutput, first: int, draft: list[int]) -> None:
        """Sample a sequence's next tokens by the logits from `first` on; end it if one ends it."""
        verified = self._running[index].verify(output, first, draft, self._end_token_ids)
        self.counts["decoded"] += verified.num_sampled
        self.counts["guessed"] += verified.num_accepted
        if verified.finish == "error":
            self._fail_non_finite(index)
        elif verified.finish is not None:
            self._finish(index, verified.finish)

    def _fail_non_finite(self, index: int) -> None:
        """End a sequence that has NaN in its logits, and zero its row, or NaN would outlive it."""
        self._kv_cache.zero_row(index)
        error = f"{self._running[index].request.adapter} computed NaN or infinity. Roll it back."
        log.error(error)
        self._finish(index, "error", error)

    def _finish(self, index: int, reason: FinishReason, error: str | None = None) -> None:
        """End a running sequence and close the gap that its row leaves.

        Copying one row, the last, into the gap is the least work that keeps rows in use together at
        the front; the prompt that is being computed moves up behind them.
        """
        sequence, last = self._running[index], len(self._running) - 1
        # Another row becomes the first free one, so what that holds is copied out before.
        self.copy_deferred_prefix()
        self.prefixes.forget_free_row()
        if error is None:
            # The last row becomes the first free one if no prompt moves up into it: the prefix
            # then stays where the next turn of this conversation will look first.
            becomes_free = index == last and self._prefilling is None
            adapter, ids = sequence.request.adapter, sequence.computed_ids
            self.prefixes.save(self._kv_cache, index, adapter, ids, becomes_free=becomes_free)
        if index != last:
            self._running[index] = self._running[last]
            self._kv_cache.move_row(last, index, self._running[index].num_computed_tokens)
        self._running.pop()
        if self._prefilling is not None:
            self._kv_cache.move_row(last + 1, last, self._prefilling.num_computed_tokens)
        self._on_finish(sequence, reason, error)
