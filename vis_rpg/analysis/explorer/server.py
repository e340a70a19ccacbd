"""Serve the page of a run on this machine: it rolls out live, and follows a run that goes on."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import torch

from vis_rpg.analysis.curves import seed_runs
from vis_rpg.analysis.explorer.live import Stage
from vis_rpg.analysis.explorer.page import collect, make_page
from vis_rpg.errors import UserError, one_line, require
from vis_rpg.training import checkpoint
from vis_rpg.training.logger import without_nan
from vis_rpg.training.published import is_published

HOST, PORT = "127.0.0.1", 8787
"""Another port is taken where this one is in use."""


def serve(run: Path, name: str, seed: int) -> None:
    """Serve until Ctrl-C.

    Args:
        run: The folder of a run, of several seeds, or of a published agent.
        name: As the user calls it.
        seed: Of the rollouts.

    Raises:
        UserError: There is no run.
    """
    server = PageServer(run, name, seed)
    print(f"the page is at {server.url}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


class PageServer(ThreadingHTTPServer):
    """Answers `/` with the page, `/version` with what it shows, `/rollout` with a new rollout.

    Pages and rollouts are made one after another in one thread, to which a GL context belongs. The
    page is made anew when somebody looks at it and the run has another checkpoint.

    Args:
        run: The folder of a run, of several seeds, or of a published agent.
        name: As the user calls it.
        seed: Of the rollouts.
    """

    daemon_threads = True

    def __init__(self, run: Path, name: str, seed: int) -> None:
        self.run, self.name, self.seed = run, name, seed
        self.shown: tuple[bytes, str, Stage | None] = b"", "", None
        """The page, its version, and the agent that rolls out for it."""
        self.worker = ThreadPoolExecutor(1, "explorer", torch.set_num_threads, (1,))
        self.lock = threading.Lock()
        self.making: Future[None] | None = None
        self.tried = newest(run)
        """The version that was last made, whether it came to be or not."""
        self.rolling = False
        self.worker.submit(self._make, self.tried).result()
        try:
            super().__init__((HOST, PORT), _Handler)
        except OSError:
            super().__init__((HOST, 0), _Handler)
        self.url = f"http://{HOST}:{self.server_address[1]}/"

    def server_close(self) -> None:
        """End, and drop what waits to be played."""
        self.worker.shutdown(wait=False, cancel_futures=True)
        super().server_close()

    def _make(self, version: str) -> None:
        data, stage = collect(self.run, self.name, self.seed)
        choice = None if stage is None else stage.choice
        page = make_page([data | {"live": {"version": version, "choice": choice}}])
        (*_, before), self.shown = self.shown, (page, version, stage)
        if before is not None:
            before.env.close()

    def follow(self) -> str:
        """Return the version of the page; begin to make it anew where the run has gone on."""
        with self.lock:
            if self.making is not None and self.making.done():
                if (error := self.making.exception()) is not None:
                    print(f"note: the page is as it was: {_why(error)}", file=sys.stderr)
                self.making = None
            if self.making is None and (version := newest(self.run)) != self.tried:
                self.tried = version
                self.making = self.worker.submit(self._make, version)
            return self.shown[1]

    def rollout(self, wanted: dict[str, str]) -> dict[str, Any]:
        """Roll out once what is being made is done, as `Stage.rollout`.

        Args:
            wanted: With the `version` of the page that asks.

        Raises:
            UserError: Another rollout waits, or the page shows another agent.
        """
        with self.lock:
            require(not self.rolling, "another rollout is being played: wait until it is there")
            self.rolling = True
        try:
            return self.worker.submit(self._play, wanted).result()
        finally:
            self.rolling = False

    def _play(self, wanted: dict[str, str]) -> dict[str, Any]:
        _, version, stage = self.shown
        require(wanted.get("version") == version, "the run has gone on: load the page again")
        require(stage is not None, "there is no agent to roll out yet")
        assert stage is not None
        return stage.rollout(wanted)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        """Answer."""
        asked = urlsplit(self.path)
        here = self.headers.get("Host", "").rsplit(":", 1)[0] in (HOST, "localhost")
        if not here or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._answer(403, "text/plain", b"only for this machine")  # no page of another site
        elif asked.path == "/":
            self._answer(200, "text/html; charset=utf-8", self.server.shown[0])
        elif asked.path == "/version":
            self._answer(200, "text/plain", self.server.follow().encode())
        elif asked.path == "/rollout":
            try:
                played = self.server.rollout(dict(parse_qsl(asked.query)))
            except Exception as error:  # no bad status, which browsers complain of
                played = {"error": _why(error)}
            self._answer(200, "application/json", json.dumps(without_nan(played)).encode())
        else:
            self._answer(404, "text/plain", b"not here")

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        with suppress(ConnectionError):  # the browser has gone
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else one_line(error)


def newest(run: Path) -> str:
    """Name what a page of this run shows: checkpoints, or the metrics until there are some."""
    if is_published(run):
        return "published"
    names = []
    for folder in seed_runs(run):
        found = checkpoint.complete(folder / "checkpoints")
        metrics = folder / "metrics.jsonl"
        lines = metrics.stat().st_size if metrics.exists() else 0
        names.append(found[-1].name if found else f"{lines} bytes")
    return ", ".join(names)
