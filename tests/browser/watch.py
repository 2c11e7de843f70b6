"""Everything that a browser is told, keeps, shows and says, to be searched for secrets.

Knows Playwright and canaries; nothing of what a page is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from playwright.sync_api import Page

from tests.leaks.canaries import Canary

_STORAGE = """async () => JSON.stringify({
  local: {...localStorage}, session: {...sessionStorage}, cookies: document.cookie, name: window.name,
  databases: await indexedDB.databases(), caches: await caches.keys(), history: history.state, url: location.href,
})"""


class Watch:
    """Watches a page from its start; `places` is what there is to be searched, by name."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._said: list[str] = []
        self._chunks: list[str] = []
        self._seen: dict[str, list[str]] = {"the DOM": [], "storage": [], "the heap": []}
        page.on("console", lambda message: self._said.append(message.text))
        page.on("pageerror", lambda error: self._said.append(str(error)))
        self._cdp = page.context.new_cdp_session(page)
        self._cdp.on("HeapProfiler.addHeapSnapshotChunk", lambda event: self._chunks.append(event["chunk"]))

    def look(self, *, heap: bool = False) -> None:
        """Take down what is there now."""
        self._seen["the DOM"].append(self._page.content())
        self._seen["storage"].append(self._page.evaluate(_STORAGE))
        self._seen["storage"].append(json.dumps(self._page.context.storage_state(indexed_db=True)))
        if heap:
            self._cdp.send("HeapProfiler.takeHeapSnapshot")
            self._seen["the heap"].append("".join(self._chunks))
            self._chunks.clear()

    @property
    def said(self) -> list[str]:
        """What the console said, with errors that nobody caught."""
        return self._said

    def places(self, *, har: Path, profile: Path) -> Mapping[str, str]:
        """All of it, with the network's log and what the browser has left on disk."""
        files = [path.read_bytes().decode("latin-1") for path in profile.rglob("*") if path.is_file()]
        return {
            **{place: "\n".join(texts) for place, texts in self._seen.items()},
            "the console": "\n".join(self._said),
            "the network": har.read_text(),
            "the disk": "\n".join(files),
        }


def found(places: Mapping[str, str], secrets: Mapping[str, str]) -> set[tuple[str, str]]:
    """Which secret is where, whole or a part, in whichever alphabet: place and name of each."""
    return {
        (place, name)
        for name, value in secrets.items()
        for place, text in places.items()
        if any(needle in text for needles in Canary(name, value, value).needles.values() for needle in needles)
    }
