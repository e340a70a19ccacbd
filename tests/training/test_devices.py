"""Nothing is left on the CPU where a GPU learns: whole runs on a device in name, which any machine
has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import nn

import vis_rpg
from tests.elsewhere import DEVICE, Mixed, elsewhere
from tests.small import config
from vis_rpg import checks
from vis_rpg.agent.rpg import Agent
from vis_rpg.benchmarks.op_counter import OperatorCounter
from vis_rpg.training.memory import prepare
from vis_rpg.training.run import Run
from vis_rpg.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
PIXELS, LEARNED, HOST = "obs=pixels", "agent.latent.prior=learned", "agent.replay_device=host"


@pytest.fixture(autouse=True)
def frames_may_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of a device in name are zeros, random actions too, so that nothing moves."""
    monkeypatch.setattr(Run, "_check_frames", lambda *_: None)


def trainer(out: Path, *words: str, steps: int = 12) -> Trainer:
    """Of a run of two updates, with a log and two checkpoints."""
    short = (
        "agent.envs=3",
        "agent.horizon=1",
        "agent.seed_steps=6",
        "logger.log_every=9",
        "logger.checkpoint_every=9",
    )
    settings = config("task=maze", "runtime=eager", f"steps={steps}", *short, *words)
    settings.out = str(out)
    return Trainer(settings)


@pytest.mark.parametrize(
    "words",
    [
        (LEARNED, "seeds=2", HOST),
        (LEARNED, "agent.latent.kind=categorical"),
        ("exploration.rnd_input=oracle_positions", "task.terminates=true", "seeds=2"),
        (PIXELS, "agent.latent.kind=categorical", "exploration.rnd_input=moving_slots", "seeds=2"),
        (PIXELS, HOST),
        (PIXELS, LEARNED, "exploration.rnd_input=frame_embedding"),
        (PIXELS, "perception=cnn", "exploration.rnd_input=frames", "seeds=2", HOST),
        (PIXELS, "perception=cnn", "agent=mbsac", "exploration=none"),
    ],
    ids=" ".join,
)
def test_a_whole_run_leaves_nothing_on_the_host_and_its_updates_wait_for_nothing(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    with elsewhere() as mode:
        run = trainer(tmp_path / "run", *words)
        step = run.learner.step

        def counted() -> None:
            before = mode.host_syncs
            with OperatorCounter() as counter:
                step()
            assert (mode.host_syncs - before, counter.sync_ops) == (0, set())

        run.learner.step = counted  # type: ignore[method-assign]
        run.run()
    assert run.learner.updates == 2


@pytest.mark.parametrize("words", [(LEARNED, "seeds=2"), (PIXELS, HOST)], ids=" ".join)
def test_it_resumes_there_and_its_agent_acts_there(words: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with elsewhere():
        trainer(out, *words).run()
        resumed = trainer(out, *words, "resume=true", steps=18)
        resumed.run()
        actor, env = vis_rpg.load(out / "seed-0" if "seeds=2" in words else out, str(DEVICE))
        obs, _ = env.reset(seed=0)
        actor.reset()
        for explore in (True, False):
            obs, *_ = env.step(actor.act(obs, explore))
    assert resumed.learner.updates == 4


# Faults put in on purpose -------------------------------------------------------------------------


@cache
def sound() -> Trainer:
    """A trainer that has acted and learned, to be broken in one place at a time."""
    made = trainer(Path(mkdtemp()) / "run", LEARNED)
    for _ in range(4):
        made.step()
    return made


def left_on_the_host(
    owner: Callable[[Trainer], Any], name: str
) -> Callable[[Trainer, pytest.MonkeyPatch], None]:
    def fault(of: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        held = vars(owner(of))
        table = next(
            (held[kind] for kind in ("_parameters", "_buffers") if name in held.get(kind, ())), held
        )
        left = torch.ones(table[name].shape, dtype=table[name].dtype)
        monkeypatch.setitem(
            table, name, nn.Parameter(left) if isinstance(table[name], nn.Parameter) else left
        )

    return fault


def agent(of: Trainer) -> Agent:
    return of.learner.agent


def mask(of: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = of.learner.sampler
    draw = sampler.draw
    monkeypatch.setattr(
        sampler, "draw", lambda: replace(batch := draw(), mask=torch.ones(batch.mask.shape))
    )


def noise(of: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of.learner, "noise_generators", [torch.Generator()])


def generator(of: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of.runs[0], "generator", torch.Generator())


FAULTS = {
    "parameter": left_on_the_host(lambda of: agent(of).pi.net.layers[0], "bias"),
    "single parameter": left_on_the_host(agent, "log_alpha"),
    "target parameter": left_on_the_host(lambda of: of.learner.target, "flat"),
    "buffer": left_on_the_host(agent, "step_weights"),
    "statistic": left_on_the_host(lambda of: agent(of).rnd.statistics, "mean"),  # type: ignore[union-attr]
    "noise": noise,
    "mask": mask,
    "what acting carries": left_on_the_host(lambda of: of.runs[0].actor, "z"),
    "generator": generator,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_left_on_the_host_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere():
        of = sound()
        FAULTS[fault](of, monkeypatch)
        of.runs[0].step = 0  # so that actions are drawn at random too
        with pytest.raises((Mixed, RuntimeError), match=r"\bon\b|cpu"):  # torch itself refuses some
            of.runs[0].select_action()
            of.learn()
            of.learn()


# What no device in name can show ------------------------------------------------------------------


def test_a_gpu_without_a_number_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = [checks.device(name) for name in ("auto", "cuda", "cuda:1")]
    assert [str(device) for device in chosen] == ["cuda:0", "cuda:0", "cuda:1"], (
        "as tensors there say, and as torch asks for"
    )
    asked: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", asked.append, raising=False)
    for device in chosen:
        prepare(device)
    assert asked == [0, 0, 1]
