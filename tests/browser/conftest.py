"""A headless Chromium, whose pages may ask nothing but loopback and whose scripts may not fail."""

import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 60_000  # for an answer of a busy machine


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a browser with an empty profile."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: make test-browser installs it"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium here; install it (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=ARGUMENTS, has_touch=True
        )
        context.set_default_timeout(WAIT_MS)
        api.expect.set_options(timeout=WAIT_MS)
        yield context
        context.close()


@pytest.fixture
def page(context: Any) -> Iterator[Any]:
    """Open a page that asks loopback alone, whose scripts do not fail, and which its policy never stops."""
    page, asked, failed = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket_: asked.append(socket_.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if "Content Security" in message.text else None)

    def dismissed(dialog: Any) -> None:
        failed.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismissed)
    yield page
    page.close()
    outside = [url for url in asked if urlsplit(url).hostname not in {"127.0.0.1", None}]
    assert asked
    assert not outside
    assert not failed
