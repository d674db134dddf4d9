"""Tests the command line as people use it: real processes, exit codes, one-line errors."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chatbot.registry import Registry
from feedback.messages import Speaker
from feedback.review.decisions import decide
from feedback.settings import Home
from feedback.store import Store
from talkback.command_options import TABLES
from tests.fixtures.command_line import ROOT, run_talkback
from tests.fixtures.conversations import SPEAKER, add_answer, add_edit
from tests.fixtures.disks import small_disk


def answered(store: Store, question: str, answer: str) -> str:
    conversation = store.start_conversation("ann", question)
    asked = store.add_message(conversation, None, "user", question)
    return store.add_message(
        conversation, asked, "assistant", answer, Speaker(adapter="a-0", base="tiny")
    )


@pytest.fixture
def edited(store: Store) -> str:
    """An answer that waits for a reviewer."""
    message = answered(store, "When do you open?", "At nine.")
    store.add_feedback(message, "ann", "edit", {"text": "At ten."})
    return message


def test_every_table_that_some_code_reads_is_known() -> None:
    packages = ("talkback", "chatbot", "feedback", "training", "evaluation")
    texts = [path.read_text() for name in packages for path in (ROOT / name).rglob("*.py")]
    declared = {name for text in texts for name in re.findall(r'\n    table\b.* = "(\w+)"', text)}
    assert declared == set(TABLES)


def test_an_empty_home_has_a_status(home: Home) -> None:
    status = json.loads(run_talkback(home, "status", "--json").stdout)
    assert (status["adapter"], status["feedback"], status["waiting for review"]) == (None, 0, 0)
    assert "none yet" in run_talkback(home, "status").stdout


def test_the_queue_is_listed_and_decided_on(home: Home, edited: str, store: Store) -> None:
    (item,) = json.loads(run_talkback(home, "review", "--json").stdout)
    assert (item["message"], item["proposed"]) == (edited, "At ten.")
    done = run_talkback(home, "review", edited, "--approve", "--who", "rita")
    assert done.returncode == 0
    assert json.loads(run_talkback(home, "review", "--json").stdout) == []
    other = run_talkback(home, "review", edited, "--reject", "--who", "bob")
    assert other.returncode == 2 and "rita approved" in other.stderr
    other = run_talkback(home, "review", edited, "--reject", "--overrule", "--who", "bob")
    assert other.returncode == 0
    assert dict(store.rows("select reviewer, answer from review")[0]) == {
        "reviewer": "rita",
        "answer": "At ten.",
    }


def test_what_came_after_the_version_that_was_seen_is_not_overruled(
    home: Home, edited: str, store: Store
) -> None:
    (item,) = json.loads(run_talkback(home, "review", "--json").stdout)
    add_edit(store, edited, "At eleven.", "bob")
    seen = ("--approve", "--seen", item["version"])
    late = run_talkback(home, "review", edited, *seen, "--who", "rita")
    assert late.returncode == 2 and "bob edited it" in late.stderr
    (item,) = json.loads(run_talkback(home, "review", "--json").stdout)
    seen = ("--correct", "At ten.", "--seen", item["version"])
    assert run_talkback(home, "review", edited, *seen, "--who", "rita").returncode == 0


def test_the_queue_shows_every_edit_with_its_people_and_that_an_answer_was_cut(
    home: Home, store: Store
) -> None:
    id = add_answer(store, "Open?", "From 9 to", speaker=replace(SPEAKER, finish="length"))
    for person, text in (("bob", "From 8."), ("cleo", "From 9."), ("dan", "From 9.")):
        add_edit(store, id, text, person)
    (item,) = json.loads(run_talkback(home, "review", "--json").stdout)
    assert (item["finish"], item["proposed"]) == ("length", "From 9.")
    assert item["edits"] == [
        {"people": ["bob"], "text": "From 8."},
        {"people": ["cleo", "dan"], "text": "From 9."},
    ]
    shown = run_talkback(home, "review").stdout
    assert "bob" in shown and "length" in shown


def test_promote_and_rollback_are_kept_with_a_name(home: Home, store: Store) -> None:
    registry = Registry(store, home)
    for name in ("a-000000000001", "a-000000000002"):
        folder = home.adapters / name
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"id": name, "base": "tiny"}))
        registry.register(folder)
        assert run_talkback(home, "promote", name, "--who", "otto").returncode == 0
    assert run_talkback(home, "rollback", "--who", "otto", "--reason", "terse").returncode == 0
    newest = registry.promotion()
    assert newest is not None
    assert (newest.adapter, newest.who, newest.reason) == ("a-000000000001", "otto", "terse")
    listed = json.loads(run_talkback(home, "adapters", "--json").stdout)
    assert [one["id"] for one in listed if one["speaking"]] == ["a-000000000001"]
    second = "a-000000000002"
    registry.add_report("r-1", adapter=second, against="a-0", verdict="refuse", reasons=["Worse."])
    refused = run_talkback(home, "promote", second, "--confirm")
    assert refused.returncode == 2 and "Worse.; confirm" in refused.stderr
    assert run_talkback(home, "promote", second, "--confirm", "--reason", "a look").returncode == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["promote", "a-nobody"], "no adapter 'a-nobody'"),
        (["rollback"], "no earlier adapter"),
        (["review", "msg-nobody", "--approve"], "no message 'msg-nobody'"),
        (["review", "msg-nobody"], "decide with one of"),
        (["serve", "--base-model", "/no/such/folder", "--port", "0"], "There is no folder"),
        (["serve", "--host", "203.0.113.7"], "--host"),
        (["bogus"], "No such command"),
    ],
)
def test_a_mistake_is_told_in_a_line_without_a_traceback(
    home: Home, args: list[str], message: str
) -> None:
    done = run_talkback(home, *args)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_unknown_key_or_table_is_named(home: Home) -> None:
    home.toml.write_text("[cycle]\nmin_knew = 1\n")
    assert "min_knew" in run_talkback(home, "cycle").stderr
    home.toml.write_text("[cykle]\nmin_new = 1\n")
    assert "[cykle]" in run_talkback(home, "cycle").stderr


def test_a_dry_run_shows_what_would_train_and_why_not(home: Home, edited: str) -> None:
    (dropped,) = json.loads(run_talkback(home, "cycle", "--dry-run", "--json").stdout)["dropped"]
    assert dropped["reason"] == "waits for a reviewer"
    assert "waits for a reviewer" in run_talkback(home, "cycle", "--dry-run").stdout


def test_the_preview_shows_which_questions_would_get_anothers_answer(
    home: Home, store: Store
) -> None:
    approved = "When does the shop open on Sundays?"
    decide(store, answered(store, approved, "?"), "rita", "correct", "At eleven.")
    for question in (approved, "On Sundays, when does the shop open?", "Do you repair chairs?"):
        answered(store, question, "?")
    answered(store, "On Sundays, when does the shop open?", "?")
    shown = run_talkback(home, "similar", "--threshold", "0.6", "--json")
    (row,) = json.loads(shown.stdout)
    assert (row["question"], row["asked"]) == ("On Sundays, when does the shop open?", 2)
    assert row["answered_as"] == approved and 0.6 <= row["similarity"] < 1
    assert "answered_as" in run_talkback(home, "similar").stdout
    home.toml.write_text("[chat]\napproved_similarity = 0.99\n")
    assert "No past question is so similar" in run_talkback(home, "similar").stdout
    refused = run_talkback(home, "similar", "--threshold", "2")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr


def test_every_command_has_help_with_an_example() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "talkback", "--help"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    commands = re.findall(r"^│ (\w+) +[A-Z]", text, flags=re.M)
    assert set(commands) >= {"serve", "demo", "cycle", "status", "adapters", "promote", "review"}
    commands += ["keys add", "keys list", "keys revoke"]
    for command in commands:
        line = [sys.executable, "-m", "talkback", *command.split(), "--help"]
        shown = subprocess.run(line, capture_output=True, text=True, cwd=ROOT).stdout
        assert f"Example: talkback {command}" in shown


HOSTILE = (
    "[/] [/bold] [bold",
    "my_list[int] and [link=http://evil.example]here[/link]",
    "\x1b[2J\x1b]0;owned\x07 \x9b31m \x08\x08",
    ":smile: {'a': 1} [@click=quit]x[/]",
)
"""What a terminal, or rich, would take for commands."""


def test_other_peoples_text_is_shown_as_it_stands(home: Home, store: Store) -> None:
    for number, text in enumerate(HOSTILE):
        message = answered(store, f"question {text}", f"answer {text}")
        store.add_feedback(message, f"person {number}", "edit", {"text": f"edit {text}"})
        folder = home.adapters / f"a-00000000000{number}"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"id": folder.name, "base": text}))
        Registry(store, home).register(folder)
    commands = {
        ("review",): ("question ", "answer ", "edit "),
        ("cycle", "--dry-run"): ("edit ",),
        ("adapters",): ("",),
    }
    for command, prefixes in commands.items():
        done = run_talkback(home, *command, COLUMNS="400")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)
        for text in HOSTILE:
            shown = text.encode("unicode_escape").decode() if "\x1b" in text else text
            for prefix in prefixes:
                assert prefix + shown in done.stdout, (command, done.stdout)
    done = run_talkback(home, "promote", HOSTILE[2])
    assert done.returncode == 2 and "\x1b" not in done.stderr
    done = run_talkback(home, "rollback", "--who", HOSTILE[0], "--reason", HOSTILE[2])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_a_terminal_that_lacks_letters_shows_them_written_out(
    home: Home, store: Store, locale: dict[str, str]
) -> None:
    message = answered(store, "Où est le café? 咖啡", "Là-bas ☕")
    store.add_feedback(message, "ann", "thumb", {"up": False})
    done = run_talkback(home, "review", COLUMNS="400", **locale)
    assert done.returncode == 0 and "caf" in done.stdout, done.stderr


@pytest.mark.parametrize("args", [("keys", "add", "ann\udcff"), ("review", "\udcff", "--approve")])
def test_arguments_that_are_no_text_are_refused_in_one_line(
    home: Home, args: tuple[str, ...]
) -> None:
    refused = run_talkback(home, *args)
    assert refused.returncode == 2 and "is not UTF-8" in refused.stderr
    assert refused.stderr.count("\n") == 1


def folder_instead(home: Home, name: str) -> None:
    (home.root / name).mkdir()


def file_instead(home: Home, name: str) -> None:
    (home.root / name).rmdir()
    (home.root / name).touch()


@pytest.mark.parametrize(
    ("spoil", "name", "commands"),
    [
        (folder_instead, "talkback.toml", ("status", "cycle", "serve")),
        (folder_instead, "talkback.db", ("status", "cycle")),
        (folder_instead, "cycle.lock", ("cycle",)),
        (file_instead, "snapshots", ("status",)),
        (file_instead, "adapters", ("cycle",)),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line_with_its_name(
    home: Home, spoil: Callable[[Home, str], None], name: str, commands: tuple[str, ...]
) -> None:
    spoil(home, name)
    for command in commands:
        done = run_talkback(home, command)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("talkback: ")]
        assert done.returncode == 2 and str(home.root) in line, line
        assert "Traceback" not in done.stderr


def test_a_disk_that_is_full_in_the_middle_of_a_cycle_is_one_line(
    home: Home, edited: str, store: Store
) -> None:
    folder = home.adapters / "a-000000000001"
    folder.mkdir()
    manifest = {"id": folder.name, "base": "org/tiny", "base_revision": "0123abc"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    registry = Registry(store, home)
    registry.promote(registry.register(folder), "start", "talkback", "first")
    decide(store, edited, "rita", "approve")
    home.toml.write_text("[cycle]\ngeneral_prompts = false\n")
    with small_disk(home.snapshots, "4k") as disk:
        done = run_talkback(home, "cycle", "--force")
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("talkback: ")]
        assert line.startswith(f"talkback: {disk}/.snapshot-") and "free some space" in line
        assert not list(disk.iterdir())


@pytest.mark.parametrize(
    "command", ["cycle", "status", pytest.param("serve", marks=pytest.mark.slow)]
)
def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, command: str) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        home = Home.find(disk / "home")
        assert run_talkback(home, "status").returncode == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = run_talkback(home, command)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert str(home.root) in done.stderr.splitlines()[-1]
