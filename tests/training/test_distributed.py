"""Several processes make the updates of one on the same batch, and their run resumes exactly."""

from __future__ import annotations

import faulthandler
import os
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.runs import comparable, differences, facts, final, lines, trained
from tests.small import agent, batch, changed, config, noise_of, weights
from vis_rpg import distributed
from vis_rpg.agent.batch import Batch, Noise
from vis_rpg.agent.rpg import Agent
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.errors import UserError
from vis_rpg.training.learner import Learner
from vis_rpg.training.trainer import Trainer

N = 2
UNCLIPPED = "agent.grad_clip=1e9"  # so that the scale of a loss shows
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "relabelled z": (("agent.latent.relabel=0.5", UNCLIPPED), {}),
    "all z relabelled": (("agent.latent.relabel=1.0", UNCLIPPED), {}),
    "learned prior": (("agent.latent.prior=learned", "agent.grad_clip=0.5"), {}),
    "disagreement": (("exploration=disagreement",), {}),
    "sac": (("agent=sac",), {}),
    "terminations": ((), {"terminates": True}),
}
BATCH_AXIS = {
    **dict.fromkeys(("obs_sequence", "action", "reward", "terminated", "mask"), 1),
    **dict.fromkeys(("rnd_obs", "first", "policy", "z_first"), 1),
    **dict.fromkeys(("z", "paid"), 0),
    "target": 2,
    "noise first": 2,
}
"""Of each field of a batch and of noise."""


# Updates ------------------------------------------------------------------------------------------


def made(variant: str, dtype: torch.dtype, seed: int = 0) -> Agent:
    words, options = VARIANTS[variant]
    horizon = "agent.horizon=1" if variant == "sac" else "agent.horizon=3"
    of = agent("exploration.warmup_updates=1", horizon, *words, seed=seed, **options)
    return of.to(dtype)


def inputs(of: Agent, update: int) -> tuple[Batch, Noise]:
    """A whole batch, whose odd segments alone end early and whose even ones alone were paid."""
    data = batch(of, size=8, seed=update)
    data.mask[1:, 1::2], data.terminated[0, 1::2] = 0, 1
    if update == 1:
        data.paid[1:] = True  # where all paid ones take fresh z, p_phi learns from one segment
    return data, noise_of(of, data, 100 + update)()


def share(whole: Batch | Noise, rank: int) -> Any:
    """Every N-th segment, so that each share has as many with fresh z."""

    def of(name: str, value: Tensor) -> Tensor:
        axis = BATCH_AXIS[f"noise {name}" if isinstance(whole, Noise) and name == "first" else name]
        rows = torch.arange(rank, value.shape[axis], N)
        return value.index_select(axis, rows)

    fields = {
        name: pytree.tree_map(partial(of, name), value)
        for name, value in vars(whole).items()
        if value is not None
    }
    return type(whole)(**fields)


def learn(of: Agent, rank: int | None) -> dict[str, Any]:
    """Four updates on the whole batch, or on a process's share."""
    learner = Learner([of])
    gradients = []
    for update in range(4):
        given = inputs(of, update)
        if rank is not None:
            given = tuple(share(each, rank) for each in given)
        learner.update(*given)
        own = {k: adam.param_groups[0]["params"][0].grad for k, adam in learner.optimizers.items()}
        gradients.append({part: gradient.clone() for part, gradient in own.items()})
    return {"weights": weights(of), "gradients": gradients}


WORDS = (
    "task=block_push",
    "agent.envs=4",
    "agent.seed_steps=40",
    "runtime=eager",
    "logger.log_every=40",
)


def train(out: Path, *words: str) -> None:
    Trainer(config(f"out={out}", *WORDS, *words)).run()


def starts(count: int) -> Tensor:
    task = config("task=gym", "task.id=Pendulum-v1").task
    [envs] = make_vector_envs(task, "state", count, [3])
    return torch.from_numpy(envs.reset())


def processes(rank: int, folder: Path, port: int) -> None:
    """What each of the processes does: imports take the most time, so one start serves all."""
    torch.set_num_threads(1)
    faulthandler.enable()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(N)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.process_group():
        in_group(rank, folder)
        dist.barrier()  # one that leaves while the other still listens can abort it
    threads = [(each / "comm").read_text() for each in Path("/proc/self/task").iterdir()]
    assert not [name for name in threads if "gloo" in name], "they can abort the interpreter's end"


def in_group(rank: int, folder: Path) -> None:
    for variant in VARIANTS:
        for dtype in (torch.float32, torch.float64):
            of = made(variant, dtype, seed=rank)  # the first process's weights count
            torch.save(learn(of, rank), folder / f"{variant} {dtype} {rank}")
    torch.save(starts(4 // N), folder / f"starts {rank}")
    train(folder / "whole", "steps=120")
    train(folder / "parts", "steps=80")
    train(folder / "parts", "steps=120", "resume=true")
    with pytest.raises(UserError, match="agent.envs=5: is shared out over 2 processes"):
        train(folder / "refused", "agent.envs=5")
    with pytest.raises(UserError, match="seeds=2: several processes train one seed"):
        train(folder / "refused", "seeds=2")
    if rank == 1:
        shutil.copytree(folder / "whole" / "rank-1", folder / "there" / "rank-1")
    dist.barrier()
    with pytest.raises(UserError, match="rank-1: a run with checkpoints is there already"):
        train(folder / "there")  # the second process alone finds it


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what they left."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(processes, (folder, port), N)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_processes_with_shares_of_a_batch_make_the_updates_of_one(
    together: Path, variant: str
) -> None:
    for dtype, within in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        first, second = (torch.load(together / f"{variant} {dtype} {rank}") for rank in range(N))
        assert differences(first["weights"], second["weights"]) == []
        of = made(variant, dtype)
        before = weights(of)
        alone = learn(of, None)
        assert all(changed(before, of) & set(part) for part in names_of_parts(of))
        for mine, theirs in zip(first["gradients"], alone["gradients"], strict=True):
            for part, gradient in theirs.items():
                atol = within * max(1.0, float(gradient.abs().max()))
                torch.testing.assert_close(mine[part], gradient, rtol=0, atol=atol)
        torch.testing.assert_close(first["weights"], alone["weights"], rtol=within, atol=within)


def names_of_parts(of: Agent) -> list[set[str]]:
    names = {id(p): name for name, p in of.named_parameters()}
    return [{names[id(p)] for p in part} for part in of.parts().values()]


# Runs ---------------------------------------------------------------------------------------------


def test_a_run_of_several_processes_resumes_to_the_last_bit(together: Path) -> None:
    for own in (".", "rank-1"):
        whole, parts = together / "whole" / own, together / "parts" / own
        assert differences(comparable(whole), comparable(parts)) == []
        assert differences(facts(whole), facts(parts)) == []


def test_processes_share_a_run_and_its_agent_and_log_all_of_it(together: Path) -> None:
    first, second = final(together / "whole"), final(together / "whole" / "rank-1")
    assert differences(first["agent"], second["agent"]) == []
    assert differences(first["learner"]["optimizers"], second["learner"]["optimizers"]) == []
    assert first["step"] == second["step"] == 120
    alone = trained(*WORDS, "steps=120")
    assert lines(alone)[-1]["updates"] == first["learner"]["updates"]
    for name in ("coverage", "joint_coverage", "episodes", "model_grad_norm"):
        own = [facts(together / "whole" / folder)[-1][name] for folder in (".", "rank-1")]
        assert own[0] == own[1], name
    assert facts(alone)[0]["episodes"] == facts(together / "whole")[0]["episodes"]
    visits = [state["progress"]["coverage"]["visits"] for state in (first, second)]
    assert not (visits[0] == visits[1]).all(), "each has its own environments"
    assert lines(together / "whole")[-1]["coverage"] == float((visits[0] + visits[1] > 0).mean())


def test_the_environments_of_a_run_begin_alike_however_many_processes_share_them(
    together: Path,
) -> None:
    shares = [torch.load(together / f"starts {rank}") for rank in range(N)]
    alone = starts(4)
    assert len(alone.unique(dim=0)) == 4
    assert torch.equal(torch.cat(shares), alone)


def test_a_run_is_not_continued_by_another_number_of_processes(together: Path) -> None:
    with pytest.raises(UserError, match="is of 2 processes: start as many"):
        train(together / "whole", "steps=160", "resume=true")


@pytest.mark.parametrize(
    ("size", "said"), [("2", "start several processes by torchrun"), ("two", "is no number")]
)
def test_a_world_size_without_torchrun_is_one_line(
    monkeypatch: pytest.MonkeyPatch, size: str, said: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    for name in distributed.NEEDED:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=said):
        distributed.process_group().__enter__()
