"""Makes one Gradio app of the three pages, and mounts it on the server's app."""

import asyncio
import os
import warnings
from typing import TYPE_CHECKING

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from chatbot.auth import hub_login
from chatbot.pages import theme
from chatbot.pages.adapters.page import AdaptersPage
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat.page import ChatPage
from chatbot.pages.checked_blocks import CheckedBlocks
from chatbot.pages.gradio_routes import remove_unused_routes
from chatbot.pages.page_template import ICON, install_page_template
from chatbot.pages.review.page import ReviewPage

if TYPE_CHECKING:
    from chatbot.service import Service

QUEUE_SLEEP_SECONDS = 0.01
"""How long Gradio's queue sleeps when it is empty. Gradio's own default of a millisecond wakes an
idle server a thousand times a second, and takes the interpreter from answers that stream."""


def build_pages(service: "Service") -> gr.Blocks:
    """Build the app: chat at "", the review queue at "review", the adapters at "adapters"."""
    # Gradio's dashboard, which is off, would still cost a pandas table of all events at each event.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**12))
    identities = BrowserIdentities(service.home.root)
    with CheckedBlocks(
        title=service.chat_settings.title, analytics_enabled=False, fill_height=True
    ) as blocks:
        ChatPage(service, identities).build(blocks)
    with blocks.route("Review", "review"):
        ReviewPage(service, identities).build(blocks)
    with blocks.route("Adapters", "adapters"):
        AdaptersPage(service).build(blocks)
    blocks._queue.sleep_when_free = QUEUE_SLEEP_SECONDS
    return blocks


def mount_pages(app: FastAPI, service: "Service", path: str = "/") -> FastAPI:
    """Mount the pages on `app` at `path`; everything they load comes from this process."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # On a thread without a loop Gradio makes one for each of its locks and closes none: each
        # would keep three file descriptors. With a loop that runs it makes none.
        return asyncio.run(_mount_under_loop(app, service, path))
    return _mount(app, service, path)


async def _mount_under_loop(app: FastAPI, service: "Service", path: str) -> FastAPI:
    return _mount(app, service, path)


def _mount(app: FastAPI, service: "Service", path: str) -> FastAPI:
    install_page_template()
    with warnings.catch_warnings():
        # Gradio says of every app with several pages that it turns SSR off, also where it is off.
        warnings.filterwarnings("ignore", message="SSR mode is not supported")
        blocks = build_pages(service)
        mounted: FastAPI = gr.mount_gradio_app(
            app,
            blocks,
            path,
            theme=theme.build_theme(),
            css_paths=theme.CSS,
            favicon_path=ICON,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            app_kwargs={
                "exception_handlers": hub_login.exception_handlers(),
                # Streams of events pass as they are; Gradio itself compresses its scripts alone.
                "middleware": [Middleware(GZipMiddleware, compresslevel=5)],
            },
        )
    for route in mounted.routes:
        pages = route.app if isinstance(route, Mount) else None
        if isinstance(pages, gr.routes.App) and pages.blocks is blocks:
            remove_unused_routes(pages)
    return mounted
