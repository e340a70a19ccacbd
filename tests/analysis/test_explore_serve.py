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


def rolled(server: Any, asked: str) -> Any:
    return json.loads(get(server, f"rollout?{asked}&version={server.shown[1]}"))


def refusal(server: Any, path: str, **headers: str) -> int:
    with pytest.raises(HTTPError) as error:
        urlopen(Request(server.url + path, headers=headers), timeout=300)
    return error.value.code


def test_a_live_rollout_has_the_z_that_is_asked_for_and_the_start() -> None:
    with served(trained(*GAUSSIAN)) as server:
        assert b'id="live"' in get(server, "")
        one, again, other = (rolled(server, f"u={u}&v=-0.5&start=3") for u in (1.25, 1.25, -1))
        assert one["z"] == "(1.25, -0.50)" and other["z"] == "(-1.00, -0.50)"
        assert one == again and one["path"] != other["path"]
        assert len(one["pictures"]) > 1 and one["began"] is None
        for asked, wrong in (("u=1&v=2", "start="), ("u=nan&v=2&start=0", "u=nan")):
            assert rolled(server, asked) == {"error": f"{wrong}: give a number"}
        for asked in ("u=1&v=2&start=1e300", "u=1&v=2&start=2.7", "u=1e308&v=0&start=0"):
            assert "give" in rolled(server, asked)["error"]
        old = json.loads(get(server, "rollout?u=1&v=2&start=0&version=step-0000000001"))
        assert old == {"error": "the run has gone on: load the page again"}
        assert refusal(server, "report.html") == 404
        assert refusal(server, "", Host="elsewhere.example") == 403
        assert refusal(server, "version", **{"Sec-Fetch-Site": "cross-site"}) == 403


def test_a_category_is_asked_for_by_its_number() -> None:
    with served(trained(*CATEGORICAL)) as server:
        assert rolled(server, "category=4&start=0")["z"] == "category 4"
        assert "from 1 to 5" in rolled(server, "category=6&start=0")["error"]


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


def test_one_rollout_at_a_time_and_faults_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(trained(*GAUSSIAN)) as server:
        server.rolling = True
        assert "another rollout" in rolled(server, "u=0&v=0&start=0")["error"]
        server.rolling = False
        stage = server.shown[2]
        monkeypatch.setattr(stage.env.unwrapped, "step", lambda action: 1 / 0)
        assert rolled(server, "u=0&v=0&start=0")["error"].startswith("ZeroDivisionError")
        assert not server.rolling


def test_a_page_that_cannot_be_made_anew_is_tried_once_for_each_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained(*GAUSSIAN), tmp_path / "run")
    with served(run) as server:
        made = []
        monkeypatch.setattr(server_module, "collect", lambda *given: made.append(given) or 1 / 0)
        monkeypatch.setattr(server_module, "newest", lambda run: "step-2")
        for _ in range(3):
            assert get(server, "version").decode() == "step-0000000150"
            if server.making is not None:
                server.making.exception()
        assert len(made) == 1
        assert capsys.readouterr().err.count("the page is as it was: ZeroDivisionError") == 1
