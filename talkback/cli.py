"""Defines the command line of Talkback, a chatbot that learns from the people who talk to it.

talkback serve                        # the chat, its API, the review page
talkback cycle                        # learn from what people said; from cron
talkback status | adapters | review   # look;  promote | rollback   # decide
talkback similar                      # what giving approved answers to similar questions would do
talkback keys add | list | revoke     # who may come in
talkback backup FILE | restore FILE   # the whole home;  downgrade   # the schema before
"""

import getpass
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from chatbot.auth import api_keys
from chatbot.engine.engine_status import read_engine
from chatbot.known_bases import UnknownBaseError
from chatbot.registry import Registry
from feedback.cycle_lock import read_running_cycle
from feedback.db.well_formed import to_well_formed
from feedback.errors import TalkbackError, describe_os_error
from feedback.review.decisions import decide
from feedback.review.queue import count_pending, find_item, list_pending
from feedback.store import Store
from talkback.backup_commands import backup, downgrade, restore
from talkback.command_options import HomeOption, example_line, find_home
from talkback.cycle import preview_rows, run_cycle
from talkback.cycle_history import CycleHistory
from talkback.output import (
    console,
    describe_value,
    escape_control,
    show_curation,
    show_outcome,
    show_queue,
    show_rows,
    stderr,
    styled,
)
from talkback.similar_questions import preview_similar


class ArgumentError(TalkbackError):
    """Reports an argument that is no text."""


app = typer.Typer(
    help="A chatbot that learns from the people who talk to it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(
    help="Make, list and revoke the keys that let people and programs in.",
    no_args_is_help=True,
)
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base-model", help="A folder or a Hub id of any causal LM. Default: the starter model."
    ),
]
WhoOption = Annotated[str | None, typer.Option("--who", help="Your name. Default: your login.")]


@app.command(epilog=example_line("talkback serve --base-model Qwen/Qwen3-0.6B --port 8000"))
def serve(
    home: HomeOption = None,
    base_model: BaseOption = None,
    revision: Annotated[str | None, typer.Option(help="The base's commit, to pin it.")] = None,
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8000")] = None,
) -> None:
    """Serve the chat page, the review page and the API."""
    from chatbot.server import run

    run(find_home(home), base_model, revision=revision, host=host, port=port)


@app.command(epilog=example_line("talkback demo --exit"))
def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="End after the table.")] = False,
    port: Annotated[int, typer.Option(help="Where the demo's server listens; 0: any.")] = 8000,
    home: HomeOption = None,
) -> None:
    """Play the whole loop on the starter model: ask, correct, learn, ask again."""
    from talkback.demo import play_demo

    play_demo(home, port=port, stay=not exit_)


@app.command(epilog=example_line("talkback cycle --dry-run"))
def cycle(
    home: HomeOption = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would train, and why not.")] = False,
    force: Annotated[bool, typer.Option(help="Train even when little is new.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Learn from new feedback, judge the result, promote it if it is better."""
    root = find_home(home)
    if dry_run:
        show_curation(preview_rows(root), as_json)
        return
    with stderr.status("the cycle begins") as status:
        outcome = run_cycle(
            root,
            force=force,
            on_progress=lambda stage, line: status.update(styled((stage, "bold"), f" {line}")),
        )
    if as_json:
        print(json.dumps(asdict(outcome)))
    else:
        show_outcome(outcome)
    raise typer.Exit(outcome.exit_code)


@app.command(epilog=example_line("talkback status --json"))
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show who speaks, what people said, what waits for a reviewer, how cycles go and ended."""
    root = find_home(home)
    store = Store(root.db)
    registry, running = Registry(store, root), read_running_cycle(root)
    current, last = registry.promotion(), CycleHistory(store).last_outcome()
    change = registry.base_change()
    summary: dict[str, Any] = {
        "home": str(root.root),
        "adapter": current.adapter if current else None,
        "since": current.created_at if current else None,
        "base": describe_base(registry, current.adapter) if current else None,
        "base change": change.reason if change else None,
        "waiting for review": count_pending(store),
        "running cycle": asdict(running) if running else None,
        "last cycle": last,
        "engine": read_engine(root),
        **store.counts(),
    }
    if as_json:
        print(json.dumps(summary))
        return
    for name in ("running cycle", "base change"):
        summary[name] = summary[name] or "none"
    table = Table(box=None, show_header=False)
    for name, value in summary.items():
        table.add_row(styled((name, "bold")), describe_value(value))
    console.print(table)


@app.command(epilog=example_line("talkback adapters --json"))
def adapters(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all adapters, newest first, with the verdict on each."""
    _, registry = open_home(home)
    current = registry.current()
    rows = [
        {
            "id": adapter.id,
            "speaking": current is not None and adapter.id == current.id,
            "base": adapter.base,
            "same_base": registry.same_base(adapter.id),
            "snapshot": adapter.snapshot,
            "created_at": adapter.created_at,
            "verdicts": [report.verdict for report in registry.reports(adapter.id)],
        }
        for adapter in registry.adapters()
    ]
    show_rows(rows, as_json, "No adapter yet: start `talkback serve` once.")


@app.command(epilog=example_line("talkback promote a-3f9c02b1d7e4 --reason 'reads better'"))
def promote(
    adapter: Annotated[str, typer.Argument(help="An id that `talkback adapters` lists.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept with your name.")] = "",
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Also what the gate refused; needs a reason.")
    ] = False,
    who: WhoOption = None,
    home: HomeOption = None,
) -> None:
    """Put an adapter in service by your decision; a running server follows within a second."""
    _, registry = open_home(home)
    promotion = registry.promote(
        adapter,
        "person",
        decider(who),
        reason or "by hand",
        confirmed=confirm and bool(reason.strip()),
    )
    console.print(f"{promotion.adapter} is in service, promoted by {promotion.who}.")


@app.command(epilog=example_line("talkback rollback --reason 'too terse'"))
def rollback(
    reason: Annotated[str, typer.Option(help="Why; it is kept with your name.")] = "",
    who: WhoOption = None,
    home: HomeOption = None,
) -> None:
    """Put the adapter that was in service before back; a running server follows in a second."""
    _, registry = open_home(home)
    promotion = registry.rollback(decider(who), reason or "rollback")
    console.print(f"{promotion.adapter} is back in service, by {promotion.who}.")


@app.command(epilog=example_line("talkback review msg-01kav3 --correct 'We open at 8 am.'"))
def review(
    message: Annotated[str | None, typer.Argument(help="An answer; none: list the queue.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="The proposed text is right.")] = False,
    correct: Annotated[str | None, typer.Option(help="This text is right.")] = None,
    reject: Annotated[bool, typer.Option("--reject", help="Nothing of it trains.")] = False,
    note: Annotated[str, typer.Option(help="For the record.")] = "",
    overrule: Annotated[
        bool, typer.Option("--overrule", help="Also where another reviewer has decided.")
    ] = False,
    seen: Annotated[
        str | None, typer.Option(help="Its version in --json; what came since is not overruled.")
    ] = None,
    who: WhoOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the answers that wait for a reviewer, or decide about one."""
    store, _ = open_home(home)
    if message is None:
        show_queue(list_pending(store), as_json)
        return
    chosen = {"approve": approve, "correct": correct is not None, "reject": reject}
    actions = [action for action, given in chosen.items() if given]
    if len(actions) != 1:
        raise typer.BadParameter("decide with one of --approve, --correct TEXT, --reject")
    if overrule:
        seen = find_item(store, message).version
    decision = decide(store, message, decider(who), actions[0], correct, note, seen=seen)
    print(json.dumps(asdict(decision)) if as_json else f"Saved: {decision.action} {message}.")


@app.command(epilog=example_line("talkback similar --threshold 0.7"))
def similar(
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Default: [chat] approved_similarity, or 0.6."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest questions.")] = 1000,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which past questions [chat] approved_similarity would answer as another one's."""
    root = find_home(home)
    with stderr.status("comparing questions"):
        previews = preview_similar(root, threshold, limit)
    rows = [asdict(preview) for preview in previews]
    show_rows(rows, as_json, "No past question is so similar to one that has an approved answer.")


@keys_app.command("add", epilog=example_line("talkback keys add rita --role reviewer"))
def add_key(
    whose: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    role: Annotated[str, typer.Option(help="user, reviewer or operator.")] = "user",
    home: HomeOption = None,
) -> None:
    """Make a key and show it, this once. A reviewer decides on answers, an operator on adapters."""
    store, _ = open_home(home)
    made = api_keys.create(store, whose, role)
    print(made.secret)
    stderr.print(f"The {made.role} key of {made.name}. It is shown only now: keep it well.")


@keys_app.command("list", epilog=example_line("talkback keys list --json"))
def list_keys(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all keys, newest first, without their secrets."""
    store, _ = open_home(home)
    rows = [asdict(key) for key in api_keys.list_all(store)]
    empty_message = "No key yet: make one with `talkback keys add NAME`."
    show_rows(rows, as_json, empty_message)


@keys_app.command("revoke", epilog=example_line("talkback keys revoke tb-3f9c02b1"))
def revoke_key(
    which: Annotated[str, typer.Argument(metavar="KEY", help="Its prefix or its id.")],
    home: HomeOption = None,
) -> None:
    """End a key at once; a running server refuses the next request with it."""
    store, _ = open_home(home)
    revoked = api_keys.revoke(store, which)
    console.print(f"{revoked.prefix}… of {revoked.name} is revoked.")


app.command(epilog=example_line("talkback backup talkback.tar"))(backup)
app.command(epilog=example_line("talkback restore talkback.tar --replace"))(restore)
app.command(epilog=example_line("talkback downgrade"))(downgrade)
app.add_typer(keys_app, name="keys", epilog=example_line("talkback keys add rita --role reviewer"))


def describe_base(registry: Registry, adapter: str) -> str:
    """Return where an adapter's base is, or that its folder is nowhere, with the remedy."""
    try:
        return registry.locate_base(registry.adapter(adapter)).name
    except UnknownBaseError as error:
        return str(error)


def open_home(home: Path | None) -> tuple[Store, Registry]:
    """Open the store and the registry of a home."""
    root = find_home(home)
    store = Store(root.db)
    return store, Registry(store, root)


def decider(who: str | None) -> str:
    """Return the name that a decision is kept under: the one given, else the login."""
    if who:
        return who
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run as users that have no name
        return f"uid {os.getuid()}"


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ArgumentError for bytes that are no text, which Python reads as lone surrogates."""
    for argument in arguments:
        if to_well_formed(argument) != argument:
            raise ArgumentError(f"the argument {argument!r} is not UTF-8; write it in UTF-8")


def main() -> None:
    """Run the command line; a user's mistake is one line with its remedy, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding lacks is written out
            stream.reconfigure(errors="backslashreplace")
    try:
        check_arguments(sys.argv[1:])
        app()
    except TalkbackError as error:
        end_with_line(str(error))
    except OSError as error:
        end_with_line(describe_os_error(error))


def end_with_line(text: str) -> NoReturn:
    """Print what went wrong in one line, and exit with 2."""
    print(f"talkback: {escape_control(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
