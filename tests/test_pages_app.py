"""The three pages as one Gradio app, and what making it leaves behind."""

import asyncio
import gc
import threading

from chatbot.server import create_app
from chatbot.service import Service


def open_loops() -> set[int]:
    return {
        id(thing)
        for thing in gc.get_objects()
        if issubclass(type(thing), asyncio.BaseEventLoop) and not thing.is_closed()
    }


def test_an_app_leaves_no_event_loop_open(service: Service) -> None:
    """Gradio makes four on a thread that has none, as a server's loading thread, and closes none.

    Each keeps three file descriptors, and warns when the garbage collector comes to it: in a test
    run, at whatever test is next.
    """
    gc.collect()
    gc.disable()  # what is left open stays to be seen
    try:
        before = open_loops()
        thread = threading.Thread(target=create_app, args=[service])
        thread.start()
        thread.join()
        assert open_loops() - before == set()
    finally:
        gc.enable()
