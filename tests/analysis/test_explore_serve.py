"""The served page: live rollouts of the z that is asked for, and a page that follows its run."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from tests.runs import CATEGORICAL, GAUSSIAN, trained
from tests.small import config
from vis_rpg.analysis.explorer import page
from vis_rpg.analysis.explorer.states import ZView
from vis_rpg.training.trainer import Trainer

pytest.importorskip("bokeh")
server_module = pytest.importorskip("vis_rpg.analysis.explorer.server")


@contextmanager
def served(run: Path) -> Iterator[Any]:
    """A server of the run's page, on a thread of its own."""
    server = server_module.PageServer(run, str(run), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def two_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "COUNT", 2)


def get(server: Any, path: str) -> bytes:
    with urlopen(server.url + path, timeout=300) as answer:
        content: bytes = answer.read()
    return content


def refusal(server: Any, path: str, **headers: str) -> int:
    with pytest.raises(HTTPError) as error:
        urlopen(Request(server.url + path, headers=headers), timeout=300)
    return error.value.code


def test_a_live_rollout_has_the_z_that_is_asked_for_and_the_start() -> None:
    with served(trained(*GAUSSIAN)) as server:
        assert b'id="live"' in get(server, "")
        one, again, other = (
            json.loads(get(server, f"rollout?u={u}&v=-0.5&start=3")) for u in (1.25, 1.25, -1)
        )
        assert one["z"] == "(1.25, -0.50)" and other["z"] == "(-1.00, -0.50)"
        assert one == again and one["path"] != other["path"]
        assert len(one["pictures"]) > 1 and one["began"] is None
        for asked, wrong in (("u=1&v=2", "start="), ("u=nan&v=2&start=0", "u=nan")):
            answer = json.loads(get(server, f"rollout?{asked}"))
            assert answer == {"error": f"{wrong}: give a number"}
        assert refusal(server, "report.html") == 404
        assert refusal(server, "", Host="elsewhere.example") == 403


def test_a_category_is_asked_for_by_its_number() -> None:
    with served(trained(*CATEGORICAL)) as server:
        assert json.loads(get(server, "rollout?category=4&start=0"))["z"] == "category 4"
        assert b"from 1 to 5" in get(server, "rollout?category=6&start=0")


def test_a_z_at_a_place_of_the_plane_is_there_and_nowhere_else() -> None:
    view = ZView("gaussian", np.random.default_rng(0).normal(size=(6, 4)), "")
    z = view.z_at(np.array([0.7, -1.2]), 6)
    assert view.places(z[None])[0] == pytest.approx([0.7, -1.2])
    assert (z**2).sum() == pytest.approx(0.7**2 + 1.2**2)


def test_the_page_follows_a_run_that_goes_on(tmp_path: Path) -> None:
    run = shutil.copytree(trained(*GAUSSIAN), tmp_path / "run")
    with served(run) as server:
        before = get(server, "version").decode()
        assert before == "step-0000000150" == get(server, "version").decode()
        Trainer(config(f"out={run}", "task=maze", "steps=300", "resume=true")).run()
        get(server, "version")
        server.making.result()
        assert get(server, "version").decode() == "step-0000000300"
        assert b'"version": "step-0000000300"' in get(server, "")
