"""How updates run: what pays is taken, what fails is left, and getting ready leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import facts
from tests.small import changed, config, weights
from tests.training.test_sampler import LEARNED, agents, sampling_learner
from vis_rpg.agent.rpg import Agent
from vis_rpg.training import runtime, trainer
from vis_rpg.training.learner import Learner
from vis_rpg.training.trainer import Trainer


class Timed(Learner):
    """Takes its times from `costs`: runtime -> (seconds to get ready, seconds an update), or
    raises."""

    def __new__(cls, costs: dict[str, Any], device: str = "cpu") -> Any:
        made = sampling_learner(*agents(1))
        made.__class__ = cls
        made.used, made.costs, made.asked = None, costs, []
        if device != "cpu":
            made.device = torch.device(device)
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def use(self, runtime: str) -> None:
        self.used = runtime


@pytest.fixture(autouse=True)
def timed_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_up = runtime.warm_up

    def timed(learner: Learner, name: str, cycles: int) -> Any:
        if not isinstance(learner, Timed):
            return warm_up(learner, name, cycles)
        learner.asked.append(name)
        learner.used = name
        if isinstance(learner.costs[name], Exception):
            raise learner.costs[name]
        return learner.costs[name]

    monkeypatch.setattr(runtime, "warm_up", timed)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("updates", "lacking", "chosen"),
    [(100, None, "eager"), (4000, None, "compile"), (4000, "a C++ compiler", "eager")],
    ids=["little is left", "much is left", "no compiler"],
)
def test_updates_are_compiled_if_what_is_left_to_do_gains_more_than_compiling_takes(
    updates: int, lacking: str | None, chosen: str
) -> None:
    timed = Timed({"eager": (0.1, 0.137), "compile": (60.0, 0.060)})
    assert runtime.start(timed, "auto", updates, lacking) == timed.used == chosen


def test_compiling_has_to_save_more_where_a_step_waits_for_seeing_too() -> None:
    costs = {"eager": (0.1, 0.060), "compile": (60.0, 0.030)}
    assert runtime.start(Timed(costs), "auto", 5000) == "compile", (
        "it saves 150 s and is expected to take 120 s"
    )
    assert runtime.start(Timed(costs), "auto", 3000, while_encoding=True) == "eager", (
        "it saves 90 s, a step 45 s of them, and takes 60 s"
    )
    assert runtime.start(Timed(costs), "auto", 3001) == "compile", "it saves 90 s and takes 60 s"


def test_what_was_measured_decides_later_runs_and_the_same_run_is_decided_alike() -> None:
    def choose(updates: int, eager: float, compiled: float) -> tuple[str, list[str]]:
        timed = Timed({"eager": (0.1, eager), "compile": (30.0, compiled)})
        return runtime.start(timed, "auto", updates), timed.asked

    assert choose(4000, eager=0.1, compiled=0.09) == ("compile", ["eager", "compile"]), (
        "expected to pay"
    )
    assert choose(4001, eager=0.1, compiled=0.09) == ("compile", ["compile"]), (
        "4001 updates save 40 s for 30 s"
    )
    assert choose(2000, eager=9.9, compiled=0.01) == ("eager", []), (
        "2000 save 20 s by what is known"
    )
    assert choose(4000, eager=0.1, compiled=0.2)[0] == "compile", "the same command runs as before"


@pytest.mark.parametrize("broken", ["", "[]", '{"eager_ms": "fast"}', '{"choices": 3}'])
def test_a_broken_cache_is_measured_anew(broken: str, cache: Path) -> None:
    timed = Timed({"eager": (0.1, 0.1), "compile": (30.0, 0.05)})
    runtime.start(timed, "auto", 4000)
    [path] = cache.rglob("updates-*.json")
    path.write_text(broken)
    assert runtime.start(timed, "auto", 4000) == "compile"
    assert json.loads(path.read_text())["eager_ms"] == 100.0


def test_a_cache_that_cannot_be_written_changes_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert (
        runtime.start(Timed({"eager": (0.1, 0.1), "compile": (30.0, 0.05)}), "auto", 4000)
        == "compile"
    )


@pytest.mark.parametrize(
    ("device", "wanted", "fails", "chosen"),
    [
        ("cuda", "auto", (), "graph"),
        ("cuda", "auto", ("graph",), "compile"),
        ("cuda", "auto", ("graph", "compile"), "eager"),
        ("cuda", "graph", ("graph",), "compile"),
        ("cpu", "compile", ("compile",), "eager"),
        ("cpu", "graph", (), "eager"),
        ("cpu", "eager", (), "eager"),
    ],
)
def test_a_runtime_that_fails_gives_way_to_the_next_with_one_line(
    device: str,
    wanted: str,
    fails: tuple[str, ...],
    chosen: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    costs: dict[str, Any] = {
        name: RuntimeError("invalid\nELF header") if name in fails else (1.0, 0.1)
        for name in runtime.FASTEST_FIRST
    }
    timed = Timed(costs, device)
    assert runtime.start(timed, wanted, 10) == timed.used == chosen
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(said) == len(fails)
    for name, line in zip(fails, said, strict=True):
        assert f"runtime={name}" in line and "RuntimeError: invalid ELF header" in line


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_getting_ready_leaves_no_trace_in_what_is_learned(count: int, staged: bool) -> None:
    of, reference = agents(count, LEARNED), agents(count, LEARNED)
    ready, plain = (sampling_learner(*own, prefetch=staged) for own in (of, reference))
    before = [weights(agent) for agent in of]
    runtime.warm_up(ready, "eager", 1)
    assert [changed(*pair) for pair in zip(before, of, strict=True)] == [set()] * count
    for _ in range(3):
        ready.step()
        plain.step()
    for own, other in zip(of, reference, strict=True):
        assert changed(weights(own), other) == set()
    assert ready.counts == plain.counts and ready.updates == plain.updates == 3
    torch.testing.assert_close(ready.sums, plain.sums, rtol=0, atol=0)


def test_a_failure_while_getting_ready_leaves_no_trace_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [of] = agents(1)
    ready = sampling_learner(of)
    before = weights(of)

    def failing(*_: Any) -> Any:
        raise RuntimeError("cannot be compiled")

    monkeypatch.setattr(Agent, "policy_loss", staticmethod(failing))
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        runtime.warm_up(ready, "eager", 1)
    assert changed(before, of) == set()
    assert ready.updates == 0 and not any(value.any() for value in ready.sums.values())


def test_a_run_keeps_its_runtime_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []

    def start(learner: Learner, words: str, updates: int, *_: Any) -> str:
        wanted.append(words)
        return "eager"

    monkeypatch.setattr(trainer.runtime, "start", start)
    for more in (("steps=150",), ("steps=200", "resume=true")):
        Trainer(config("task=maze", f"out={tmp_path}", *more)).run()
    assert wanted == ["auto", "eager"]
    (tmp_path / "runtime.json").write_text('{"runtime": "graph", "device": "cuda"}')
    Trainer(config("task=maze", f"out={tmp_path}", "steps=250", "resume=true")).run()
    assert wanted[-1] == "auto", "a GPU's choice is no CPU's"


def test_measuring_what_pays_changes_no_run(tmp_path: Path) -> None:
    for name in ("auto", "eager"):
        Trainer(config("task=maze", f"out={tmp_path / name}", f"runtime={name}", "steps=200")).run()
    assert facts(tmp_path / "auto") == facts(tmp_path / "eager")
