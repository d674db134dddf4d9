"""Runs the training job: a snapshot folder, a recipe and a base in, one adapter folder out.

    python -m training.train --snapshot snapshots/s-… --out adapters

SFT on the approved answers with replay against forgetting, then DPO on the pairs. Always a fresh
adapter over all approved data: rounds upon rounds forget, and erasing a person stays simple.
Touches no database. The last line it prints is JSON.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import SafetensorError

from chatbot.engine.default_sampling import thinking_budget
from chatbot.model import lora
from chatbot.model.adapter import MANIFEST_FILE, is_of_base, verify_adapter, write_manifest
from chatbot.model.base import STARTER, Base, load_base
from chatbot.model.scoring import EncodedAnswer
from feedback.errors import TalkbackError, describe_os_error, first_line
from feedback.publish import make_folder, publish_folder
from feedback.settings import Home
from feedback.snapshot import Record, Snapshot
from training.callbacks import (
    ProgressCallback,
    TimeBudget,
    TrainingError,
    TrainingMonitor,
    min_token_probabilities,
)
from training.recipe import Recipe
from training.thoughts import with_thoughts
from training.training_need import Batches, training_need

TrainingMetrics = dict[str, Any]

VERSIONS = ("torch", "transformers", "trl", "peft", "tokenizers")
"""The packages whose version may change the numbers."""


@dataclass(frozen=True)
class TrainingData:
    """Holds what trains: the snapshot's id, its new rows, its replay rows, and its pairs."""

    snapshot: str
    new: list[Record]
    replay: list[Record]
    pairs: list[Record]
    thinking: int = 0
    """Most tokens of the thought before an answer; 0: none."""


def train_adapter(
    snapshot: Path,
    base_name: str,
    revision: str | None,
    out: Path,
    recipe: Recipe,
    report_progress: ProgressCallback = lambda line: None,
    *,
    identity: str | None = None,
    thinking: int = 0,
) -> Path:
    """Train an adapter; return its folder ``out/<id>``, which is there whole or not at all.

    With `identity` the base has to be that one; BaseError for another. `thinking` is the most
    tokens of a thought where it will speak, 0: it will not think.
    """
    data = read_training_data(snapshot)
    phases = plan_batches(recipe, data)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)

    def check_memory(folder: Path) -> None:
        if not torch.cuda.is_available():
            report_progress(training_need(base_name, folder, phases).describe())

    base = load_base(base_name, revision, before_loading=check_memory)
    if identity is not None:
        base.check_identity(identity)
    data = give_thoughts(base, data, phases, thinking_budget(base, thinking))
    make_folder(out)
    with tempfile.TemporaryDirectory(prefix=".training-", dir=out) as scratch:
        draft = Path(scratch) / "adapter"
        metrics = train_lora(base, data, recipe, draft, report_progress)
        return publish_adapter(draft, out, base, data, recipe, metrics)


def plan_batches(recipe: Recipe, data: TrainingData) -> list[Batches]:
    """Return what goes through the model together in SFT and in DPO.

    Raises SettingsError for anything that TRL would refuse, before the long work begins.
    """
    from training import dpo, sft

    with tempfile.TemporaryDirectory() as scratch:
        by_base = sft.replays_base(data.replay)
        of_sft = sft.build_config(recipe, Path(scratch), by_base=by_base)
        of_dpo = dpo.build_config(recipe, Path(scratch))
    answers = of_sft.per_device_train_batch_size
    pairs = of_dpo.per_device_train_batch_size
    return [
        Batches([*data.new, *data.replay], answers, of_sft.max_length),
        Batches(data.pairs, 2 * pairs, of_dpo.max_length),
    ]


def read_training_data(snapshot: Path) -> TrainingData:
    """Read the snapshot's rows, which are checked against its manifest.

    Raises TrainingError for a snapshot without anything to learn.
    """
    read = Snapshot.read(snapshot)
    new, replay, pairs = (read.rows(name) for name in ("sft", "replay", "dpo"))
    if not new and not pairs:
        raise TrainingError(f"{snapshot} has nothing to learn: sft.jsonl and dpo.jsonl are empty")
    return TrainingData(read.id, new, replay, pairs)


def give_thoughts(
    base: Base, data: TrainingData, phases: Sequence[Batches], thinking: int
) -> TrainingData:
    """Return the data with what the base thinks before each new answer, where thinking is on.

    Replay rows stay without, as an answer may be asked for.
    """
    new, pairs = (
        with_thoughts(base, rows, thinking, phase.max_length)
        for rows, phase in zip((data.new, data.pairs), phases, strict=True)
    )
    return replace(data, new=new, pairs=pairs, thinking=thinking)


def train_lora(
    base: Base, data: TrainingData, recipe: Recipe, draft: Path, report_progress: ProgressCallback
) -> TrainingMetrics:
    """Train a fresh LoRA, save it to `draft`, and return the metrics of the run.

    The base's model is as before afterwards. DPO comes second, so that its reference is the model
    that already gives the approved answers; if it fails, what SFT has learnt stays.
    """
    from peft import get_peft_model
    from transformers import set_seed

    from training.fused_layers import fused_layers

    set_seed(recipe.seed)
    budget = TimeBudget(recipe.max_seconds)
    model = get_peft_model(base.model, lora.lora_config(base))
    metrics: TrainingMetrics = {}
    report_progress(
        f"{len(data.new)} new rows, {len(data.replay)} replay rows, {len(data.pairs)} pairs"
    )
    with fused_layers(model):
        if data.new:
            metrics["sft"] = _run_sft(
                model, base, data, recipe, draft, TrainingMonitor("sft", budget, report_progress)
            )
        if data.pairs and not budget.exhausted:
            metrics["dpo"] = _run_dpo(
                model, base, data, recipe, draft, TrainingMonitor("dpo", budget, report_progress)
            )
    try:
        model.save_pretrained(draft, selected_adapters=["default"], save_embedding_layers=False)
    except SafetensorError as error:
        raise TrainingError(f"cannot write {draft}: {first_line(error)}; free space") from error
    model.unload()
    vars(base.model).pop("forward", None)  # the one that TRL has put there
    return metrics | {"seconds": round(budget.elapsed, 1)}


def _run_sft(
    model: Any,
    base: Base,
    data: TrainingData,
    recipe: Recipe,
    draft: Path,
    monitor: TrainingMonitor,
) -> TrainingMetrics:
    from training import sft

    args = sft.build_config(
        recipe,
        draft,
        bf16=_is_bf16(base),
        by_base=sft.replays_base(data.replay),
        parameters=base.model.num_parameters(),
    )
    return sft.train(model, base.tokenizer, data.new, data.replay, args, monitor, recipe)


def _run_dpo(
    model: Any,
    base: Base,
    data: TrainingData,
    recipe: Recipe,
    draft: Path,
    monitor: TrainingMonitor,
) -> TrainingMetrics:
    """Run DPO on the pairs that SFT has not taught; restore the weights from before when it failed
    after SFT, or made the model forget approved answers."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    from training import dpo

    args = dpo.build_config(recipe, draft, bf16=_is_bf16(base))
    pairs = data.pairs
    if data.new and not recipe.learnt_pairs:
        pairs = dpo.leave_out_learnt(model, base.tokenizer, pairs, args.max_length, recipe.sure)
    learnt = len(data.pairs) - len(pairs)
    if not pairs:
        monitor.report_progress(f"dpo: SFT has taught what was chosen in all {learnt} pairs")
        return {"learnt": learnt, "steps": 0, "kept": True}
    kept = [row for row in data.replay if not row.get("by_base")]
    known = _encode_answers(base, [*data.new, *kept], args.max_length)
    before = _count_recalled(model, base, known)
    weights = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    try:
        metrics = dpo.train(model, base.tokenizer, pairs, args, monitor)
    except TrainingError as error:
        if not data.new:
            raise
        monitor.report_progress(f"{first_line(error)} What SFT has learnt stays.")
        set_peft_model_state_dict(model, weights)
        return {"failed": str(error), "kept": False}
    after = _count_recalled(model, base, known)
    if after < before:
        monitor.report_progress(
            f"dpo: taken back, it left {after} of {before} approved answers in mind"
        )
        set_peft_model_state_dict(model, weights)
    recalled = {"recalled_before": before, "recalled_after": after, "kept": after >= before}
    return {"learnt": learnt} | metrics | recalled


def publish_adapter(
    draft: Path, out: Path, base: Base, data: TrainingData, recipe: Recipe, metrics: TrainingMetrics
) -> Path:
    """Name the draft by its content, verify it, and rename it into `out` in one step."""
    (draft / "README.md").unlink(missing_ok=True)
    name = write_manifest(
        draft,
        base,
        snapshot=data.snapshot,
        recipe=recipe.model_dump(),
        seed=recipe.seed,
        versions={package: version(package) for package in VERSIONS},
        threads=torch.get_num_threads(),
        thinking=data.thinking,
        metrics=metrics,
    )
    verify_adapter(draft, base)
    check_not_of_another_base(out / name, base)
    return publish_folder(draft, out / name, lambda folder: verify_adapter(folder, base))


def check_not_of_another_base(folder: Path, base: Base) -> None:
    """Raise TrainingError where this very adapter is there already, and is another base's: with
    other prompts the same weights come about only where nothing was learnt."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # not there, or damaged: what was trained now takes its name
    if isinstance(manifest, dict) and not is_of_base(manifest, base):
        raise TrainingError(
            f"{folder.name} is there already, of another base: nothing was learnt; raise "
            "max_seconds in [training], or learning_rate or num_train_epochs in [training.sft]"
        )


def _encode_answers(base: Base, rows: list[Record], max_length: int | None) -> list[EncodedAnswer]:
    from training import sft

    return [sft.split_row(row) for row in sft.encode_rows(base.tokenizer, rows, max_length)]


def _count_recalled(model: Any, base: Base, rows: list[EncodedAnswer]) -> int:
    """Count the answers that greedy decoding gives exactly."""
    return sum(
        probability > 0.5
        for probability in min_token_probabilities(model, rows, base.tokenizer.pad_token_id)
    )


def _is_bf16(base: Base) -> bool:
    return bool(base.model.dtype == torch.bfloat16)


def main(
    snapshot: Annotated[Path, typer.Option(help="The snapshot folder.")],
    out: Annotated[Path, typer.Option(help="Where the adapter's folder is put.")],
    base_model: Annotated[str, typer.Option(help="A folder or a Hub id.")] = STARTER,
    revision: Annotated[str | None, typer.Option(help="The base's commit, to pin it.")] = None,
    base_identity: Annotated[str | None, typer.Option(help="Train on no other base.")] = None,
    thinking: Annotated[int, typer.Option(help="Most tokens of a thought; 0: none.")] = 0,
    home: Annotated[
        Path | None,
        typer.Option(envvar="TALKBACK_HOME", help="Its talkback.toml has the recipe."),
    ] = None,
) -> None:
    """Train an adapter; the last line on stdout is JSON: {"id", "adapter", "metrics"}."""
    # What is learnt well has gradients of next to nothing, with which a CPU takes longer.
    torch.set_flush_denormal(True)
    try:
        recipe = Recipe.read(Home.find(home))
        folder = train_adapter(
            snapshot,
            base_model,
            revision,
            out,
            recipe,
            _print_progress,
            identity=base_identity,
            thinking=thinking,
        )
    except TalkbackError as error:
        sys.exit(f"training: {error}")
    except OSError as error:
        sys.exit(f"training: {describe_os_error(error)}")
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    last = {"id": manifest["id"], "adapter": str(folder), "metrics": manifest["metrics"]}
    print(json.dumps(last))


def _print_progress(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
