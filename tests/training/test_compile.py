"""`runtime=compile`: the same updates, compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from perception.ops import kernels
from tests import small
from vis_rpg import checks
from vis_rpg.benchmarks import updates as benchmark
from vis_rpg.compose import compose
from vis_rpg.errors import UserError
from vis_rpg.training.runtime import compile_each
from vis_rpg.training.trainer import Trainer

WORDS = ["task=maze", "preset=debug", "device=cpu"]


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("words", "backend"),
    [
        (["task=maze"], "aot_eager"),
        pytest.param(["task=maze"], "inductor", marks=pytest.mark.slow),
        pytest.param(
            ["task=block_push", "obs=pixels", "perception=cnn"], "inductor", marks=pytest.mark.slow
        ),
    ],
    ids=["state, traced", "state", "cnn"],
)
def test_compiled_updates_equal_eager_ones_and_are_compiled_once(
    words: list[str], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With aot_eager, graphs and gradients are traced as ever, and run without the minute in which
    inductor generates code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    many = (
        "agent.batch_size=64",
        "exploration.batch_size=64",
    )  # rows, from which on a CPU's kernels take them
    eager, compiled = (
        Trainer(small.config(*words, *many, f"runtime={name}", f"out={tmp_path / name}"))
        for name in ("eager", "compile")
    )
    for trainer in (eager, compiled):
        trainer.learner.use(trainer.config.runtime)
    assert kernels.LOADED

    def both() -> None:
        for trainer in (eager, compiled):
            trainer.learner.step()

    for _ in range(12):  # so that replay holds something, during the seed steps
        eager.step()
        compiled.step()
    for _ in range(2):  # the policy steps every second time
        both()
    assert compiled.learner.counts == eager.learner.counts != {}
    torch.testing.assert_close(compiled.learner.sums, eager.learner.sums, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parameters(compiled), parameters(eager), rtol=1e-3, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(4):
            both()


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainer.runs[0].agent.named_parameters()}


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install g\\+\\+"):
        checks.check(OmegaConf.merge(compose(WORDS), {"runtime": "compile"}))


def test_compiling_without_the_headers_of_python_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: name)
    monkeypatch.setattr(checks.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(UserError, match=r"apt-get install python3\.\d+-dev"):
        checks.check(OmegaConf.merge(compose(WORDS), {"runtime": "compile"}))


def test_the_benchmark_goes_on_without_a_compiler_and_says_what_it_did_not_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setattr(benchmark, "UPDATES", {"state": benchmark.UPDATES["state"]})
    monkeypatch.setattr(benchmark, "update_speed", lambda *_: {"updates_per_s": 1.0})
    for others in ("RUNS", "STEPPED"):
        monkeypatch.setattr(benchmark, others, {})
    _, measured, missing = benchmark.suite("cpu", quick=False)
    assert measured["updates_per_s"] == 1.0
    assert (missing["name"], missing["runtime"]) == (
        "update, state",
        "compile",
    ) and "apt-get install g++" in missing["not_measured"]


@pytest.mark.compiler
def test_what_is_compiled_for_one_learner_is_not_run_for_another() -> None:
    def once(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x + 2

    def scaled(factor: float) -> Callable[..., torch.Tensor]:
        return compile_each(lambda function, x: factor * function(x))

    two, three = scaled(2.0), scaled(3.0)
    x = torch.ones(3)
    for call, factor in ((two, 2.0), (three, 3.0), (two, 2.0)):
        for function in (once, twice):
            assert torch.equal(call(function, x), factor * function(x))
    assert torch.equal(two(once, torch.ones(5)), torch.full((5,), 4.0)), (
        "other shapes are compiled anew"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_updates_move_the_statistics_of_the_bonus(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    of = small.agent("exploration.warmup_updates=0").to(dtype)
    data = small.batch(of)
    data.rnd_obs = {name: value.to(dtype) for name, value in data.rnd_obs.items()}
    data.obs_sequence = {name: value.to(dtype) for name, value in data.obs_sequence.items()}
    learner = small.learner(of)
    learner.use("compile")
    for _ in range(2):
        learner.update(data, small.noise_of(of, data)())
    assert of.rnd is not None and of.rnd.updates == 2
    assert of.rnd.statistics.count == 2 * 8 and of.rnd.statistics.mean > 0
