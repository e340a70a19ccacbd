"""`runtime=compile`: the same updates, compiled once."""

from __future__ import annotations

import shutil

import pytest
import torch
from omegaconf import OmegaConf

from vis_rpg import benchmark, config
from vis_rpg.agent import Agent
from vis_rpg.benchmark import prepared
from vis_rpg.cli import compose
from vis_rpg.errors import UserError

WORDS = ["task=maze", "preset=debug", "device=cpu"]
CPU = torch.device("cpu")


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_compiled_updates_equal_eager_ones_and_are_compiled_once() -> None:
    settings = compose(WORDS)
    (eager, replay, generator), (compiled, *_) = prepared(settings, CPU), prepared(settings, CPU)
    compiled.compile_update()

    def both() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        batch = replay.sample(settings.agent.batch_size, settings.agent.horizon, settings.exploration.batch_size, 0, generator)
        noise = eager.draw_noise(batch, generator)
        return eager.update(batch, noise), compiled.update(batch, noise)

    for _ in range(2):  # the policy steps every second time
        expected, result = both()
        assert expected.keys() == result.keys()
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parameters(compiled), parameters(eager), rtol=1e-3, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(4):
            both()


def parameters(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in agent.named_parameters()}


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install g\\+\\+"):
        config.check(OmegaConf.merge(compose(WORDS), {"runtime": "compile"}))


def test_compiling_without_the_headers_of_python_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.shutil, "which", lambda name: name)
    monkeypatch.setattr(config.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(UserError, match=r"apt-get install python3\.\d+-dev"):
        config.check(OmegaConf.merge(compose(WORDS), {"runtime": "compile"}))


def test_the_benchmark_goes_on_without_a_compiler_and_says_what_it_did_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.shutil, "which", lambda name: None)
    monkeypatch.setattr(benchmark, "UPDATES", {"state, compiled": benchmark.UPDATES["state, compiled"]})
    monkeypatch.setattr(benchmark, "STEPPED", {})
    _, line = benchmark.benchmark("cpu", quick=False)
    assert line["name"] == "update, state, compiled" and "apt-get install g++" in line["not_measured"]
