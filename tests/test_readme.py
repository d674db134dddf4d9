"""Runs the README's commands, settings and requests as they stand, so that it cannot lie."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from chatbot.auth import api_keys
from chatbot.chat_settings import ChatSettings
from chatbot.webhooks.delivery import WebhookSettings, decode_secret
from feedback.settings import Home, check_tables
from feedback.store import Store
from talkback.command_options import TABLES
from talkback.cycle import CycleSettings
from tests.fixtures.server_process import ServerProcess
from training.recipe import Recipe
from training.train import TrainingData, plan_batches

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    return [text for named, text in found if named == language]


def curl(command: str, server: ServerProcess) -> dict[str, object]:
    """Run a request of the README against this server; its JSON."""
    line = command.replace("\\\n", " ").replace("http://127.0.0.1:8000", server.url)
    words = shlex.split(line)
    return json.loads(subprocess.run([*words, "-sS"], capture_output=True, check=True).stdout)


def test_every_command_is_one_and_takes_its_options() -> None:
    commands = re.findall(r"^talkback (\w+)([^#\n]*)", "\n".join(blocks()), re.M)
    assert {command for command, _ in commands} >= {"serve", "cycle", "status"}
    for command, options in commands:
        shown = subprocess.run(
            [sys.executable, "-m", "talkback", command, "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        ).stdout
        assert all(option in shown for option in re.findall(r"--[\w-]+", options))


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)$", "\n".join(blocks()), re.M):
        assert f"\n{target}: " in makefile


def test_the_settings_are_read(home: Home) -> None:
    home.toml.write_text("\n".join(blocks("toml")))
    check_tables(home, TABLES)
    assert ChatSettings.read(home).title == "Willow & Finch"
    assert CycleSettings.read(home).min_new == 20
    assert plan_batches(Recipe.read(home), TrainingData("s-1", [], [], []))
    assert decode_secret(WebhookSettings.read(home).secret)


def test_the_requests_are_answered(server: ServerProcess) -> None:
    ask, *rate = (block for block in blocks() if block.startswith("curl"))
    response = curl(ask, server)
    assert len(rate) == 2
    for block in rate:
        kept = curl(block.replace("msg-…", str(response["id"])), server)
        assert str(kept["feedback_id"]).startswith("fb-")
    run_clients(server)
    (review,) = re.findall(r"^curl .*/v1/reviews/next.*$", README, re.M)
    store = Store(server.home.db)
    secret = api_keys.create(store, "rita", "reviewer").secret
    store.close()
    assert curl(review.replace("tb-…", secret), server)["waiting"] == 1


def run_clients(server: ServerProcess) -> None:
    """The examples in Python, as they stand; each prints what it was told."""
    examples = blocks("python")
    used = re.findall(r"^from (\w+)", "".join(examples), re.M)
    assert {"openai", "langchain_openai"} <= set(used)
    for example in examples:
        code = example.replace("http://127.0.0.1:8000", server.url)
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert process.returncode == 0 and process.stdout.strip(), process.stderr


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)
