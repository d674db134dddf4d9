"""Streams with 64 clients, some of which vanish: every slot comes back, none is stuck."""

import time
from collections.abc import Callable

import pytest

from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.async_thread import run_in_thread
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.soak_clients import SoakClients


@pytest.mark.slow
def test_clients_that_vanish_take_nothing_with_them(
    start_server: Callable[..., ServerProcess], home: Home
) -> None:
    home.toml.write_text("[engine]\nthreads = 1\n")
    server = start_server().ready()
    soak = SoakClients(server.url, seconds=30, every=2)
    run_in_thread(soak.run())
    after = run_in_thread(soak.rest())
    assert (after.running, after.waiting) == (0, 0)
    assert soak.ends["stuck"] == soak.ends["broken"] == 0
    assert soak.ends["vanished"] > 0 < soak.ends["whole"], soak.ends
    assert soak.growth() < 64, [sample.rss for sample in soak.samples]
    store = Store(home.db)
    answered = soak.ends["whole"] + soak.ends["vanished"]
    for _ in range(100):  # what nobody heard to the end is kept a moment after its slot is free
        if store.counts()["messages"] == 2 * answered:
            break
        time.sleep(0.05)
    assert store.counts()["messages"] == 2 * answered, "an answer that was heard is not kept"
    store.close()
    assert server.stop() == 0
