"""Backs up the home of a real server, and serves what is restored: its adapter, its people."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from chatbot.pages.browser_identity import BrowserIdentities
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.command_line import run_talkback
from tests.fixtures.server_process import ServerProcess

Start = Callable[..., ServerProcess]


def ask(server: ServerProcess, text: str) -> str:
    """Ask a question; return the id of the answer."""
    body = {
        "model": "talkback",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
        "user": "ann",
    }
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    return str(answer.raise_for_status().json()["id"])


@pytest.mark.slow
def test_a_restored_home_serves_the_same_adapter_to_the_same_people(
    home: Home, start_server: Start, tiny_base: Path, tmp_path: Path
) -> None:
    server, file = start_server().ready(), tmp_path / "talkback.tar"
    answer = ask(server, "When do you open?")
    token = BrowserIdentities(home.root).issue()
    person = BrowserIdentities(home.root).verify(token)
    saved = run_talkback(home, "backup", str(file))
    assert saved.returncode == 0, saved.stderr
    refused = run_talkback(home, "restore", str(file), "--replace")
    assert refused.returncode == 2 and "stop the server" in refused.stderr
    refused = run_talkback(home, "downgrade")
    assert refused.returncode == 2
    since = ask(server, "And since then?")
    speaking = httpx.get(f"{server.url}/v1/adapters").json()["speaking"]
    server.kill()  # its locks go with it

    done = run_talkback(home, "restore", str(file), "--replace")
    assert done.returncode == 0, done.stderr
    assert f"in service: {speaking}" in done.stdout and "messages 2" in done.stdout
    assert BrowserIdentities(home.root).verify(token) == person is not None
    again = start_server().ready()
    assert httpx.get(f"{again.url}/v1/adapters").json()["speaking"] == speaking
    store = Store(home.db)
    assert store.has_message(answer) and not store.has_message(since)
    store.close()
    ask(again, "Open again?")
    assert again.stop() == 0
