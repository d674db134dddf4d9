"""Has the base answer the general prompts that come along, once: that is what it shall not forget.

    python -m chatbot.general.answers --base-model FOLDER --out general

`split.py` tells what for. Interrupted, it goes on where it was. The last line it prints is JSON.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from chatbot.chat_settings import ChatSettings
from chatbot.engine.batch import submit_prompts, wait_for_texts
from chatbot.engine.factory import start_batch_engine
from chatbot.engine.protocol import BASE, Sampling
from chatbot.model.base import STARTER, Base, load_base
from chatbot.model.chat_template import encode
from feedback.curation.row_files import Record, read_rows
from feedback.errors import TalkbackError, describe_os_error
from feedback.publish import make_file, make_folder, replace_file
from feedback.settings import Home

PROMPTS = Path(__file__).with_name("prompts.jsonl")
MAX_TOKENS = 64
"""An answer is cut after so many: each of its tokens counts, and none needs its end."""
BATCH = 32
"""Answers that are written down together."""


def answer_general_prompts(
    base: Base,
    system_prompt: str,
    out: Path,
    report_progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the file of the base's answers in `out`, whose name tells base, prompts and system
    prompt; made where it is not there yet.

    Each row is a dialogue (``{"messages": [...], "kind": ...}``) behind the system prompt. Raises
    TalkbackError.
    """
    rows = _read_prompts(system_prompt)
    file = answers_file(base, system_prompt, out)
    if file.exists():
        return file
    make_folder(out)
    draft = file.with_suffix(".partial")
    make_file(draft)
    done = draft.read_text(encoding="utf-8").split("\n")[:-1]  # the last line may be torn
    for answered in _answer(base, rows[len(done) :]):
        done += [json.dumps(row, ensure_ascii=False) for row in answered]
        replace_file(draft, "".join(line + "\n" for line in done))
        report_progress(f"the base has answered {len(done)} of {len(rows)} general prompts")
    draft.replace(file)
    return file


def answers_file(base: Base, system_prompt: str, out: Path) -> Path:
    """Return where in `out` the base's answers are, or will be; its weights are not needed."""
    asked = json.dumps(
        [base.identity, MAX_TOKENS, _read_prompts(system_prompt)], ensure_ascii=False
    )
    return out / f"{hashlib.sha256(asked.encode()).hexdigest()[:12]}.jsonl"


def read_accepted() -> dict[str, list[str]]:
    """Return for each prompt whose answer is right or wrong the texts of which a right one holds
    one, by its question."""
    rows = read_rows(PROMPTS)
    return {row["messages"][-1]["content"]: row["right"] for row in rows if "right" in row}


def _read_prompts(system_prompt: str) -> list[Record]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    return [
        {"messages": [*system, *row["messages"]], "kind": row["kind"]} for row in read_rows(PROMPTS)
    ]


def _answer(base: Base, rows: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield the rows with the base's greedy answers, some at a time."""
    prompts = [encode(base.tokenizer, row["messages"]) for row in rows]
    engine = start_batch_engine(base, prompts, MAX_TOKENS)
    try:
        for start in range(0, len(rows), BATCH):
            asked = slice(start, start + BATCH)
            streams = submit_prompts(engine, prompts[asked], BASE, Sampling(max_tokens=MAX_TOKENS))
            yield [
                {**row, "messages": [*row["messages"], {"role": "assistant", "content": text}]}
                for row, text in zip(rows[asked], wait_for_texts(streams), strict=True)
            ]
    finally:
        engine.close()


def main(
    out: Annotated[Path, typer.Option(help="Where the file of answers is put.")],
    base_model: Annotated[str, typer.Option(help="A folder or a Hub id.")] = STARTER,
    revision: Annotated[str | None, typer.Option(help="The base's commit, to pin it.")] = None,
    home: Annotated[
        Path | None,
        typer.Option(envvar="TALKBACK_HOME", help="Its talkback.toml has the system prompt."),
    ] = None,
) -> None:
    """Have the base answer; the last line on stdout is JSON: {"answers"}."""
    try:
        chat = ChatSettings.read(Home.find(home))
        file = answers_file(load_base(base_model, revision, weights=False), chat.system_prompt, out)
        if not file.exists():
            base = load_base(base_model, revision)
            file = answer_general_prompts(base, chat.system_prompt, out, _print_progress)
    except TalkbackError as error:
        sys.exit(f"answers: {error}")
    except OSError as error:
        sys.exit(f"answers: {describe_os_error(error)}")
    print(json.dumps({"answers": str(file)}))


def _print_progress(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
