"""Tests the server as a process: how it starts, crashes and ends, and what survives."""

import itertools
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatbot.auth import api_keys
from chatbot.server import ServerError, ServerSettings, open_listener
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.server_process import SERVER_TOML, ServerProcess
from tests.fixtures.tiny_models import write_adapter

Start = Callable[..., ServerProcess]
ASK = [{"role": "user", "content": "When do you open?"}]


def ask(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    """Request a short completion without streaming."""
    body = {"messages": ASK, "max_tokens": 8, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    return dict(answer.raise_for_status().json())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[ServerProcess]:
    """Start a server for tests that leave it as it was."""
    home = Home.find(tmp_path_factory.mktemp("running"))
    home.toml.write_text(SERVER_TOML)
    server = ServerProcess(home, "--base-model", str(tiny_base))
    try:
        yield server.ready()
    finally:
        server.kill()


def test_it_answers_at_once_that_it_is_loading(start_server: Start, home: Home) -> None:
    home.root.chmod(0o755)
    server = start_server()
    health = httpx.get(f"{server.url}/healthz", timeout=60)
    assert health.status_code == 200 and health.json() == {"ok": False, "status": "loading"}
    ready = httpx.get(f"{server.url}/readyz", timeout=60)
    assert ready.status_code == 503 and "loading" in ready.json()["reason"]
    error = httpx.post(f"{server.url}/v1/chat/completions", json={}).json()["error"]
    assert error["code"] == "loading"
    page = httpx.get(server.url)
    assert page.status_code == 503 and 'http-equiv="refresh"' in page.text
    remedy = f"close the home with: chmod -R go-rwx {home.root}\n"
    assert f"everybody on this machine can read {home.toml}; {remedy}" in server.log.read_text()
    assert server.stop() == 0


def test_api_and_pages_are_one_server(running: ServerProcess) -> None:
    assert httpx.get(f"{running.url}/healthz").json()["ok"] is True
    for path in ("", "review", "adapters"):
        page = httpx.get(f"{running.url}/{path}", timeout=60)
        assert page.status_code == 200 and "gradio" in page.text
    assert ask(running)["model"].startswith("talkback:a-")
    figures = httpx.get(f"{running.url}/metrics").text
    assert 'talkback_http_requests_total{method="GET",route="pages",status="200"}' in figures
    assert 'route="/review"' not in figures
    assert httpx.get(f"{running.url}/v1/nowhere").json()["error"]["code"] == "not_found"


def test_who_is_not_asked_sleeps(running: ServerProcess) -> None:
    """Gradio's queue alone would wake it a thousand times a second."""

    def woken() -> int:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        return sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status)))

    before = woken()
    time.sleep(2)
    assert woken() - before < 2 * 400


def test_kill_9_loses_nothing_that_was_acknowledged(
    server: ServerProcess, start_server: Start, home: Home
) -> None:
    id = ask(server, user="ann")["id"]
    acknowledged: list[str] = []
    raters = [
        threading.Thread(target=rate, args=(server, id, acknowledged, number))
        for number in range(4)
    ]
    body = {"messages": ASK, "max_tokens": 4000, "stream": True, "user": "bob"}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as stream:
        next(stream.iter_lines())
        for rater in raters:
            rater.start()
        while len(acknowledged) < 40:
            threading.Event().wait(0.01)
        server.kill()
    for rater in raters:
        rater.join()
    store = Store(home.db)
    comments = store.feedback_on(id)
    assert set(acknowledged) <= {row.id for row in comments}
    (conversation,) = store.conversations("bob")
    assert store.messages(conversation.id)[0].content == "When do you open?"
    store.close()
    again = start_server().ready()
    answer = ask(again, user="bob", metadata={"conversation_id": conversation.id})
    assert answer["metadata"]["conversation_id"] == conversation.id
    (stored,) = [row for row in comments if row.idempotency_key == "0-0"]
    repeated = httpx.post(f"{again.url}/v1/feedback", json=comment(id, 0, 0)).json()
    assert repeated["feedback_id"] == stored.id, "the key is remembered across the crash"


def rate(server: ServerProcess, id: str, acknowledged: list[str], number: int) -> None:
    """Comment again and again until the server is gone; note what it has acknowledged."""
    with httpx.Client(timeout=60) as http:
        for count in itertools.count():
            try:
                answer = http.post(f"{server.url}/v1/feedback", json=comment(id, number, count))
            except httpx.HTTPError:
                return
            acknowledged.append(answer.json()["feedback_id"])


def comment(id: str, number: int, count: int) -> dict[str, str]:
    """Return the body of a chunk."""
    key = f"{number}-{count}"
    return {"message_id": id, "kind": "comment", "text": f"by {number}", "idempotency_key": key}


def test_sigterm_ends_it_well_and_keeps_what_was_said(server: ServerProcess, home: Home) -> None:
    body = {"messages": ASK, "max_tokens": 4000, "stream": True, "user": "ann"}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as stream:
        list(itertools.islice(stream.iter_lines(), 8))
        assert server.stop() == 0
    store = Store(home.db)
    (conversation,) = store.conversations("ann")
    question, answer = store.messages(conversation.id)
    speaker = store.speaker(answer.id)
    assert speaker is not None and speaker.finish in ("cancelled", "length", "stop")
    assert answer.content and answer.parent_id == question.id
    store.close()


def test_a_promotion_by_another_process_is_followed_without_a_restart(
    running: ServerProcess, tiny_base: Path
) -> None:
    from chatbot.model.base import load_base
    from chatbot.registry import Registry

    first = ask(running)["model"]
    store = Store(running.home.db)
    registry = Registry(store, running.home)
    new = registry.register(write_adapter(running.home.adapters, load_base(str(tiny_base))))
    registry.promote(new, "person", "ann", "try")
    for _ in range(500):
        if httpx.get(f"{running.url}/healthz").json()["adapter"] == new:
            break
        threading.Event().wait(0.02)
    assert ask(running)["model"] == f"talkback:{new}" != first
    store.close()


def test_a_base_that_cannot_be_had_is_one_line_and_no_traceback(start_server: Start) -> None:
    code, output = start_server(base="/nowhere/at/all").ended()
    assert code == 1
    assert "There is no folder /nowhere/at/all" in output and "Traceback" not in output


def test_a_wrong_setting_is_one_line_that_names_it(start_server: Start, home: Home) -> None:
    home.toml.write_text("[chat]\ntemprature = 1\n")
    code, output = start_server().ended()
    assert code == 1 and "temprature" in output and "Traceback" not in output


def test_a_port_that_is_taken_is_refused_with_the_remedy(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"{port}.*--port"):
            open_listener("127.0.0.1", port)
        with pytest.raises(ServerError, match="--host"):
            open_listener("host.invalid", 0)


@pytest.mark.slow
def test_open_to_the_world_it_makes_a_token_until_a_reviewer_has_a_key(
    start_server: Start, home: Home
) -> None:
    server = start_server("--host", "0.0.0.0").ready()
    match = re.search(r"review page's token is (\S{16}) ", server.log.read_text())
    assert match is not None
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/adapters").status_code == 401
    token = {"Authorization": f"Bearer {match[1]}"}
    assert httpx.get(f"{url}/v1/adapters", headers=token).status_code == 200
    assert httpx.post(f"{url}/v1/chat/completions", json={"messages": ASK}).status_code == 200
    server.kill()
    store = Store(home.db)
    api_keys.create(store, "rita", "reviewer")
    store.close()
    assert "page's token" not in start_server("--host", "0.0.0.0").ready().log.read_text()


def test_settings_have_their_table(home: Home) -> None:
    home.toml.write_text("[server]\nport = 9000\nreview_token = 'owl'\n")
    settings = ServerSettings.read(home)
    assert (settings.host, settings.port, settings.review_token) == ("127.0.0.1", 9000, "owl")


def test_importing_the_server_loads_neither_torch_nor_gradio() -> None:
    code = (
        "import sys, chatbot.server; print(*{'torch', 'gradio', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
