"""Peers: rates are of what was learned in the time, and what cannot run says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vis_rpg.benchmarks import peers
from vis_rpg.benchmarks.peers import Peer, progress, speed

WRITER = """
import json, sys, time
from pathlib import Path
from typing import Any
words = dict(word.split("=", 1) for word in sys.argv[1:])
for step in range(100, 100000, 100):
    line = {"step": step, "wall_s": step / 50, "success": 0.5, "coverage": 0.1, "obs": words["obs"]}
    with (Path(words["out"]) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
    time.sleep(0.002)
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *chosen: Peer) -> list[dict[str, Any]]:
    monkeypatch.setattr(peers, "PEERS", chosen)
    return list(peers.peers(tmp_path / "peers", 0.03, "state"))


def test_rates_are_those_of_the_time_and_the_process_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [line] = run(tmp_path, monkeypatch, Peer("Ours", None, WRITER, (), 0.2))
    assert line["name"] == "Ours, state"
    assert line["interactions_per_s"] == 50.0
    assert line["updates_per_s"] == 10.0
    assert (line["success"], line["coverage"]) == (0.5, 0.1)
    written = progress(tmp_path / "peers" / "ours-state")
    assert line["step"] == written[-1]["step"] < 99_900
    assert written[-1]["obs"] == "state"


def test_steps_before_the_first_update_do_not_count() -> None:
    slow = [{"step": 100 * i, "wall_s": i * 1.0} for i in range(1, 11)]
    fast = [{"step": 1000 + 100 * i, "wall_s": 10 + i * 10.0} for i in range(1, 11)]
    assert speed(slow + fast, 1.0, starts=1000) == {
        "updates_per_s": 10.0,
        "interactions_per_s": 10.0,
    }
    assert speed(slow, 1.0, starts=1000) == {}


def test_what_is_not_installed_or_stops_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Peer("Absent", "no_such_library", WRITER, (), 1.0)
    broken = Peer("Broken", None, "raise SystemExit('out of order')", (), 1.0)
    first, second = run(tmp_path, monkeypatch, absent, broken)
    assert first["skipped"] == "no_such_library is not installed (vis-rpg[baselines])"
    assert second["failed"] == "out of order"


def test_every_peer_is_given_words_that_compose() -> None:
    from vis_rpg.compose import compose

    for peer in peers.PEERS:
        root = "dreamer" if "dreamer" in peer.command else "train"
        words = ["obs=pixels", *peers.BLOCK, *peer.words, *peer.pixels]
        config = compose(words, root)
        assert config.agent.batch_size * (config.agent.horizon + 1) in (512, 256)
        assert config.agent.hidden_dim == 128
