"""Trains the starter model from scratch: the base that Talkback speaks with when none is given.

python -m training.starter.pretrain --out chatbot/starter
OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m training.starter.pretrain --out chatbot/starter

The second way, one process a core, is the one to take on a busy machine: its cores wait for each
other once a step, and not once an operation.

A Llama of four million parameters, with its own tokenizer, on the corpus that corpus.py draws.
It starts with an induction circuit (induction.py) and learns, with loss on answers only, when to
copy an approved answer from the prompt and when to say what it knows. Muon moves the matrices: it
needs far fewer tokens than AdamW here (Jordan et al. 2024, "Muon: an optimizer for hidden layers").
"""

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.starter.batches import IGNORE_INDEX, draw_batches, render_pieces
from training.starter.corpus import MIXTURE, Corpus
from training.starter.evaluate import accuracy_by_kind, draw_held_out_samples
from training.starter.induction import set_induction_heads
from training.starter.tokenizer import train_tokenizer

console = Console()


@dataclass(frozen=True)
class PretrainingConfig:
    """Holds the recipe. Tokens are counted with the prompt and the padding, in every process."""

    steps: int = 3000
    tokens_per_step: int = 3072
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    vocab_size: int = 2048
    seed: int = 0
    evaluate_every: int = 500
    evaluate_count: int = 20


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Build an untrained model that can already copy.

    rope_theta is large so that half of each head's dims hardly rotate and can compare content at
    any distance; the fast half is where the heads that attend to the tokens before live.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    set_induction_heads(model, seed)
    return model


def answer_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers; logits are computed at their tokens only."""
    ids, labels = batch[0, :, :-1], batch[1, :, 1:]
    is_answer = labels != IGNORE_INDEX
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = linear(hidden[is_answer], model.lm_head.weight)
    return cross_entropy(logits.float(), labels[is_answer])


def process_rank() -> int:
    """Return this process's rank among those that train together; 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(model: LlamaForCausalLM) -> None:
    """Give every process the mean of all processes' gradients."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def learning_rate_factor(step: int, settings: PretrainingConfig) -> float:
    """Return the learning rate's factor: linear warm-up, then a cosine down to a hundredth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, done))) / 2


def build_optimizers(
    model: LlamaForCausalLM, settings: PretrainingConfig
) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices, and AdamW for the embedding and the norms."""
    tables = [p for n, p in model.named_parameters() if "embed" in n or p.ndim < 2]
    table_ids = {id(p) for p in tables}
    matrices = [p for p in model.parameters() if id(p) not in table_ids]
    rate, decay = settings.learning_rate, settings.weight_decay
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(tables, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainingConfig,
    out: Path,
) -> None:
    """Run the training loop; evaluate and save a checkpoint every `evaluate_every` steps."""
    optimizers = build_optimizers(model, settings)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, settings)
        )
        for optimizer in optimizers
    ]
    corpus = Corpus(settings.seed + 100 + process_rank())
    stream = draw_batches(corpus, tokenizer, settings.tokens_per_step, seed=process_rank())
    started, tokens, smoothed_loss = time.monotonic(), 0, 0.0
    for step in range(1, settings.steps + 1):
        batch = next(stream)
        loss = answer_loss(model, batch)
        torch.autograd.backward(loss)
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        tokens += batch[0].numel()
        smoothed_loss = 0.98 * smoothed_loss + 0.02 * loss.item() if smoothed_loss else loss.item()
        if process_rank() == 0 and step % 50 == 0:
            seconds = time.monotonic() - started
            console.print(
                f"step {step:5d}  loss {smoothed_loss:.4f}  {tokens / 1e6:.2f}M tokens here, "
                f"{seconds:.0f} s, {tokens / seconds:.0f} tokens/s"
            )
        if process_rank() == 0 and (step % settings.evaluate_every == 0 or step == settings.steps):
            console.print(
                accuracy_by_kind(model, tokenizer, draw_held_out_samples(settings.evaluate_count))
            )
            save_model(model, tokenizer, out)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the folder that AutoModelForCausalLM and AutoTokenizer load, weights in bf16."""
    bf16_model = LlamaForCausalLM(model.config)
    bf16_model.load_state_dict(model.state_dict())
    bf16_model.to(torch.bfloat16)
    bf16_model.generation_config.max_new_tokens = 128
    bf16_model.generation_config.do_sample = False
    bf16_model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def draw_tokenizer_texts(seed: int, count: int) -> list[str]:
    """Draw the texts that the tokenizer is trained on: conversations of the corpus."""
    corpus = Corpus(seed)
    samples = [corpus.draw(MIXTURE) for _ in range(count)]
    return ["".join(text for text, _ in render_pieces(sample.messages)) for sample in samples]


def main() -> None:
    """Train a tokenizer and a model and write them to --out."""
    defaults = PretrainingConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--start-from", type=Path, help="go on from this folder's model")
    parser.add_argument("--probe-every", type=int, default=defaults.evaluate_every)
    args = parser.parse_args()
    settings = PretrainingConfig(
        steps=args.steps,
        learning_rate=args.learning_rate,
        seed=args.seed,
        evaluate_every=args.probe_every,
    )
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    if args.start_from:
        tokenizer = AutoTokenizer.from_pretrained(args.start_from)
        model = LlamaForCausalLM.from_pretrained(args.start_from, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(draw_tokenizer_texts(settings.seed, 12000), settings.vocab_size)
        model = build_model(tokenizer, settings.seed)
    console.print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
    pretrain(model, tokenizer, settings, args.out)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
