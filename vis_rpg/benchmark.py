"""Speed, measured: updates, environment steps, rendered frames, and what share of the machine's matrix rate an update reaches."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from perception.percept import Memory
from vis_rpg.agent import Agent
from vis_rpg.build import make_agent
from vis_rpg.cli import compose
from vis_rpg.config import check
from vis_rpg.config import device as device_of
from vis_rpg.envs.factory import make_env
from vis_rpg.envs.group import EnvGroup
from vis_rpg.errors import UserError
from vis_rpg.memory import keep_freed_memory
from vis_rpg.replay import Replay

UPDATES = {
    "state": ["task=block_push", "obs=state"],
    "slots frozen": ["task=block_push", "obs=pixels", "perception=slots"],
    "state, compiled": ["task=block_push", "obs=state", "runtime=compile"],
    "slots frozen, compiled": ["task=block_push", "obs=pixels", "perception=slots", "runtime=compile"],
    "slots trained on": ["task=block_push", "obs=pixels", "perception=slots", "perception.train=true"],
    "cnn": ["task=block_push", "obs=pixels", "perception=cnn"],
}
TRAINED_PERCEPTION = ("slots trained on", "cnn")
STEPPED = {"maze": ["task=maze"], "block_push": ["task=block_push"]}


def benchmark(device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Measurements one by one, each a JSON object; `quick` takes under a minute on two cores."""
    chosen = device_of(DictConfig({"device": device}))
    keep_freed_memory()
    yield machine(chosen)
    repeats, least = (3, 0.3) if quick else (5, 4.0)
    for name, overrides in UPDATES.items():
        if "runtime=compile" in overrides:
            if quick:
                continue  # compiling alone takes longer
            try:
                check(compose([*overrides, f"device={device}"]))
            except UserError as error:
                yield {"name": f"update, {name}", "not_measured": str(error)}
                continue
        if name in TRAINED_PERCEPTION:
            size = 16 if quick else 128
            overrides = [*overrides, f"agent.batch_size={size}", f"exploration.batch_size={size}"]
        yield {"name": f"update, {name}", **update_speed([*overrides, f"device={device}"], repeats, least)}
    for name, overrides in STEPPED.items():
        for obs in ("state", "pixels"):
            result = step_speed([*overrides, "obs=state"], obs, repeats, least)
            yield {"name": f"{'steps' if obs == 'state' else 'steps with frames 64 x 64'}, {name}", **result}


def machine(device: torch.device) -> dict[str, Any]:
    """What is measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"name": "machine", "device": str(device), "hardware": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def matrix_rate(device: torch.device, seconds: float) -> float:
    """Float32 matrix products in GFLOP/s: the best of square sizes, so that a share of it flatters nobody."""
    rates = []
    for size in (512, 1024, 2048):
        a, b = torch.randn(2, size, size, device=device)

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            torch.mm(a, b)

        rates.append(2 * size**3 / statistics.median(timed(product, 5, seconds / 15, device)) / 1e9)
    return max(rates)


def timed(call: Callable[[], object], repeats: int, least: float, device: torch.device) -> list[float]:
    """Seconds a call, in `repeats` groups of at least `least` seconds each, after a warm-up."""

    def group(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    group(1)
    count = max(1, round(least / max(group(1), 1e-7)))
    return [group(count) / count for _ in range(repeats)]


class FlopCounter(TorchDispatchMode):
    """Counts the arithmetic of products and convolutions, as torch's own counter does, whose module hooks refuse frozen parts in the
    middle of a trained model."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def update_speed(overrides: list[str], repeats: int, least: float) -> dict[str, Any]:
    """Updates/s with sampling, at the paper's sizes; the mean over the cycle of two (the policy steps every second time). The matrix rate
    is measured in turns with it: a machine that others use too is not equally fast all the time."""
    config = compose(overrides)
    device = device_of(config)
    agent, replay, generator = prepared(config, device)
    settings = config.agent

    def cycle() -> None:
        for _ in range(settings.policy_every):
            batch = replay.sample(settings.batch_size, settings.horizon, config.exploration.batch_size, 0, generator)
            agent.update(batch, agent.draw_noise(batch, generator))

    cycle()
    with FlopCounter() as counter:
        cycle()
    gflop = counter.total / settings.policy_every / 1e9
    if config.runtime == "compile":
        agent.compile_update()
        cycle()
    turns = [(matrix_rate(device, least / 4), timed(cycle, 1, least, device)[0]) for _ in range(repeats)]
    rate, seconds = (statistics.median(values) for values in zip(*turns, strict=True))
    per_s = settings.policy_every / seconds
    return {
        "updates_per_s": round(per_s, 3),
        "batch_size": settings.batch_size,
        "gflop_per_update": round(gflop, 2),
        "matrix_rate_gflop_per_s": round(rate, 1),
        "share_of_matrix_rate": round(per_s * gflop / rate, 3),
    }


def prepared(config: DictConfig, device: torch.device) -> tuple[Agent, Replay, torch.Generator]:
    """An agent with its optimizers and a replay filled by random actions."""
    envs = EnvGroup(lambda _: make_env(config.task, config.obs.kind), config.agent.envs, 0)
    agent = make_agent(config, envs.envs[0]).to(device)
    agent.make_optimizers()
    perception = agent.model.perception
    replay = Replay(5000, perception.stored, agent.action_dim, agent.space.dim, perception.history, len(envs), device)
    generator = torch.Generator(device).manual_seed(0)
    rng = np.random.default_rng(0)
    is_first = torch.ones(len(envs), dtype=torch.bool, device=device)
    memory: Memory = {}
    action = torch.zeros(len(envs), agent.action_dim, device=device)
    _, seen, memory = perception.perceive(torch.as_tensor(envs.reset(), device=device), action, is_first, memory)
    replay.begin(seen, torch.arange(len(envs)))
    for _ in range(50):  # shorter than an episode
        action = torch.as_tensor(rng.uniform(-1, 1, action.shape), dtype=torch.float32, device=device)
        result = envs.step(action.cpu().numpy())
        _, seen, memory = perception.perceive(torch.as_tensor(result.obs, device=device), action, ~is_first, memory)
        z = torch.randn(len(envs), agent.space.dim, device=device)
        if not result.first_obs:
            replay.add(action, torch.from_numpy(result.reward), torch.from_numpy(result.terminated), z, seen)
    return agent, replay, generator


def step_speed(overrides: list[str], obs: str, repeats: int, least: float) -> dict[str, Any]:
    """Interactions/s of one process; with obs=pixels one frame is rendered at each."""
    config = compose(overrides)
    envs = EnvGroup(lambda _: make_env(config.task, obs), config.agent.envs, 0)
    envs.reset()
    rng = np.random.default_rng(0)
    shape = envs.envs[0].action_space.shape
    assert shape is not None
    seconds = statistics.median(timed(lambda: envs.step(rng.uniform(-1, 1, (len(envs), *shape))), repeats, least, torch.device("cpu")))
    return {"steps_per_s": round(len(envs) / seconds, 1), "envs": len(envs)}
