"""The training loop: collect, learn, log, save. Resuming is running the same command with `resume=true`."""

from __future__ import annotations

import json
import os
import random
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from vis_rpg import checkpoint
from vis_rpg.acting import Actor
from vis_rpg.build import load_config, make_agent
from vis_rpg.chunks import Chunks
from vis_rpg.config import check, check_resumable, device
from vis_rpg.coverage import CoverageCounter, VisitRecord
from vis_rpg.envs.factory import make_env, task_of
from vis_rpg.envs.group import EnvGroup, StepResult
from vis_rpg.errors import RunStopped, UserError
from vis_rpg.logger import Logger
from vis_rpg.memory import keep_freed_memory
from vis_rpg.replay import Replay

EPISODES_KEPT = 100  # over which return and success of training episodes are averaged


class Trainer:
    """One run in one folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints, replay, visits, and at the end summary.json."""

    def __init__(self, config: DictConfig) -> None:
        check(config)
        self.config, self.out, self.device = config, Path(config.out), device(config)
        self.folder = self.out / "checkpoints"
        keep_freed_memory()
        resume_from = self._prepare_folder()
        for seed_library in (random.seed, np.random.seed, torch.manual_seed):
            seed_library(config.seed)
        settings = config.agent
        self.envs = EnvGroup(lambda _: make_env(config.task, config.obs.kind), settings.envs, config.seed)
        first_env = self.envs.envs[0]
        self.task = task_of(first_env)
        self.agent = make_agent(config, first_env).to(self.device)
        self.optimizers = self.agent.make_optimizers()
        if config.runtime == "compile":
            self.agent.compile_update()
        perception = self.agent.model.perception
        sizes = (settings.replay_capacity, perception.stored, self.agent.action_dim, self.agent.space.dim)
        tqdm.write(
            f"replay of {settings.replay_capacity:,} observations on {self.device}: {Replay.bytes_needed(*sizes) / 2**30:.2f} GiB when full"
        )
        self.replay = Replay(*sizes, perception.history, settings.envs, self.device)
        self.replay_chunks = Chunks(self.out / "replay", "replay")
        self.actor = Actor(self.agent, settings.envs, config.seed + 1)
        self.generator = torch.Generator(self.device).manual_seed(config.seed + 2)
        self.coverage = CoverageCounter(self.task)
        self.visits = VisitRecord(self.out / "visits")
        self.step = self.episodes = self.dropped_episodes = 0
        self.wall_before = 0.0
        self.finished: deque[list[float]] = deque(maxlen=EPISODES_KEPT)
        self.returns = np.zeros(settings.envs)
        self.succeeded = np.zeros(settings.envs, bool)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        if resume_from is None:
            self._begin(self.envs.reset(), np.arange(settings.envs))
        else:
            self._load(resume_from)
        self.logger = Logger(self.out, config.logger.wandb, _plain(config), self.step if resume_from is not None else None)

    def _prepare_folder(self) -> Path | None:
        """Make the run's folder, or find the checkpoint to go on from."""
        found = checkpoint.complete(self.folder)
        if self.config.resume and found:
            check_resumable(self.config, load_config(self.out))
        elif found:
            raise UserError(f"out={self.out}: a run with checkpoints is there already; add resume=true to continue it, or give another out")
        self.out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.out / "config.yaml.part")
        os.replace(self.out / "config.yaml.part", self.out / "config.yaml")
        return found[-1] if found else None

    # The loop ---------------------------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to `steps` interactions; returns what summary.json says."""
        config = self.config
        self.began = time.perf_counter()
        self.last_log = (self.began, self.agent.updates, self.step)
        with tqdm(total=config.steps, initial=self.step, unit="step", desc=f"{self.task.name} {config.agent.name}", mininterval=1.0) as bar:
            while self.step < config.steps:
                before = self.step
                try:
                    self.collect()
                except RunStopped as error:
                    self._check_finite()  # a loss that is not finite comes back as an action that is not: name the loss
                    raise RunStopped(f"stopped at step {before}: {error}; the last checkpoint is kept in {self.folder}") from error
                if self.step > config.agent.seed_steps:
                    self.learn()
                bar.update(self.step - before)
                if self._passed(config.logger.log_every, before):
                    bar.set_postfix(
                        {
                            key: f"{value:.3g}"
                            for key, value in self.log().items()
                            if key in ("coverage", "success", "return", "updates_per_s")
                        }
                    )
                if self._passed(config.logger.checkpoint_every, before) or self.step >= config.steps:
                    self.save()
        return self._finish()

    def collect(self) -> None:
        """One step of every environment, into replay."""
        if self.step < self.config.agent.seed_steps:
            self.actor.decide(explore=True)  # draws z where an episode begins
            action = 2 * torch.rand(len(self.envs), self.agent.action_dim, generator=self.generator, device=self.device) - 1
            self.actor.did(action)
        else:
            action = self.actor.decide(explore=True)
        result = self.envs.step(action.cpu().numpy())
        seen = self.actor.see(result.obs)
        self.replay.add(action, torch.from_numpy(result.reward), torch.from_numpy(result.terminated), self.actor.z, seen)
        self.step += len(self.envs)
        self._count(result)
        if result.first_obs:
            rows = np.array(sorted(result.first_obs))
            self._begin(np.stack([result.first_obs[row] for row in rows]), rows)

    def _begin(self, obs: np.ndarray, rows: np.ndarray) -> None:
        """Episodes begin with these observations in these environments."""
        self.actor.begin(rows)
        self.replay.begin(self.actor.see(obs, rows), torch.from_numpy(rows))

    def _count(self, result: StepResult) -> None:
        """Returns, successes and visited positions."""
        self.returns += result.reward
        self.succeeded |= result.success
        self.coverage.add(result.objects)
        self.visits.add(self.step, result.objects, self.actor.z)
        for row in result.first_obs:
            self.finished.append([float(self.returns[row]), float(result.success[row]), float(self.succeeded[row])])
            self.returns[row], self.succeeded[row] = 0.0, False
            self.episodes += 1

    def learn(self) -> None:
        """One update; metrics stay on the device until they are logged."""
        settings = self.config.agent
        familiar = self.config.exploration.batch_size if self.agent.rnd is not None else 1
        first = settings.batch_size if settings.latent.prior == "learned" and self.agent.space.dim else 0
        batch = self.replay.sample(settings.batch_size, settings.horizon, familiar, first, self.generator)
        if first:
            start, end = settings.latent.entropy_decay
            left = min(1.0, max(0.0, (end - self.step) / (end - start)))
            self.agent.entropy_z.fill_(settings.latent.entropy * left)
        for name, value in self.agent.update(batch, self.agent.draw_noise(batch, self.generator)).items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def _passed(self, every: int, before: int) -> bool:
        return before // every != self.step // every

    # Logs and checkpoints ---------------------------------------------------------------------------------------------------------------

    def log(self) -> dict[str, float]:
        """One line: means since the line before of what updates returned, and where the run stands."""
        self._check_finite()
        now = time.perf_counter()
        seconds = max(now - self.last_log[0], 1e-9)
        metrics: dict[str, float] = {"step": self.step, "updates": self.agent.updates, "wall_s": round(self._wall(), 3), **self._standing()}
        metrics["updates_per_s"] = round((self.agent.updates - self.last_log[1]) / seconds, 3)
        metrics["steps_per_s"] = round((self.step - self.last_log[2]) / seconds, 3)
        metrics |= {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums.clear()
        self.counts.clear()
        self.last_log = (now, self.agent.updates, self.step)
        self.logger.write(metrics)
        return metrics

    def _standing(self) -> dict[str, float]:
        """Coverage, and return and success of the last training episodes (sampled actions)."""
        recent = np.array(self.finished).mean(0) if self.finished else np.full(3, np.nan)
        names = ("return", "success", "success_any")
        return {"coverage": self.coverage.value, **dict(zip(names, map(float, recent), strict=True)), "episodes": self.episodes}

    def _check_finite(self) -> None:
        for name, value in self.sums.items():
            if not torch.isfinite(value):
                raise RunStopped(f"stopped at step {self.step}: {name} is not finite; the last checkpoint is kept in {self.folder}")

    def _wall(self) -> float:
        return self.wall_before + time.perf_counter() - self.began

    def save(self) -> None:
        """A checkpoint of everything that the run needs to go on as if it had never stopped."""
        self._check_finite()
        replay, visits = self.replay.save(self.replay_chunks), self.visits.save()
        state = {
            "agent": self.agent.state_dict(),
            "optimizers": {name: checkpoint.optimizer_state(optimizer) for name, optimizer in self.optimizers.items()},
            "updates": self.agent.updates,
            "actor": self.actor.state(),
            "replay": replay,
            "visits": visits,
            "envs": self.envs.get_state(),
            "generator": self.generator.get_state(),
            "libraries": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "numpy": _numpy_state(),
                "python": random.getstate(),
            },
            "visited": self.coverage.visited if self.coverage.grid is not None else None,
            "finished": list(self.finished),
            "returns": self.returns,
            "succeeded": self.succeeded,
            "sums": self.sums,
            "counts": self.counts,
            "step": self.step,
            "episodes": self.episodes,
            "dropped_episodes": self.dropped_episodes,
            "wall_s": self._wall(),
        }
        checkpoint.save(self.folder, self.step, state)
        kept = [json.loads((path / "state.json").read_text())["state"] for path in checkpoint.complete(self.folder)]
        for chunks, name in ((self.replay_chunks, "replay"), (self.visits.chunks, "visits")):
            chunks.keep({(start, end) for saved in kept for start, end in saved[name]["spans"]})

    def _load(self, path: Path) -> None:
        """Continue from a checkpoint; environments that could not be saved begin a new episode, and their running one is dropped."""
        state = checkpoint.load(path)
        self.agent.load_state_dict(state["agent"])
        self.agent.updates = state["updates"]
        for name, saved in state["optimizers"].items():
            checkpoint.load_optimizer_state(self.optimizers[name], saved)
        self.replay.load(state["replay"], self.replay_chunks)
        self.visits.load(state["visits"])
        self.actor.load_state(state["actor"])
        checkpoint.restore_generator(self.generator, state["generator"])
        if self.coverage.grid is not None:
            self.coverage.visited = state["visited"].copy()
        self.finished.extend(state["finished"])
        self.returns, self.succeeded = state["returns"].copy(), state["succeeded"].copy()
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.counts = state["counts"]
        self.step, self.episodes, self.wall_before = state["step"], state["episodes"], state["wall_s"]
        self.dropped_episodes = state["dropped_episodes"]
        restarted = self.envs.set_state(state["envs"])
        if restarted:
            rows = np.array(restarted)
            self.dropped_episodes += len(rows)
            self.returns[rows], self.succeeded[rows] = 0.0, False
            self._begin(np.stack([self.envs.obs[row] for row in rows]), rows)
            tqdm.write(f"resume: {len(rows)} running episodes could not be saved and were dropped")
        libraries = state["libraries"]
        torch.set_rng_state(libraries["torch"])
        if len(libraries["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(libraries["cuda"])
        np.random.set_state(tuple(libraries["numpy"]))
        version, internal, gauss = libraries["python"]
        random.setstate((version, tuple(internal), gauss))

    def _finish(self) -> dict[str, Any]:
        """Write summary.json, with a random policy's coverage beside the agent's, at as many interactions with pretraining counted in."""
        summary: dict[str, Any] = {**self._standing(), "steps": self.step, "updates": self.agent.updates, "wall_s": round(self._wall(), 1)}
        summary["dropped_episodes"] = self.dropped_episodes
        if self.coverage.grid is not None:
            summary["pretraining_frames"] = self.agent.model.perception.pretraining_frames
            summary["random_coverage"] = random_coverage(self.config, self.step + summary["pretraining_frames"])
        summary |= {"task": self.task.name, "obs": self.config.obs.kind, "agent": self.config.agent.name, "seed": self.config.seed}
        clean = {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in summary.items()}
        (self.out / "summary.json").write_text(json.dumps(clean, indent=2) + "\n")
        self.logger.close()
        self.envs.close()
        return clean


def random_coverage(config: DictConfig, steps: int) -> float:
    """Coverage of uniformly random actions at so many interactions, in environments that begin as the run's."""
    envs = EnvGroup(lambda _: make_env(config.task, "state"), config.agent.envs, config.seed)
    envs.reset()
    counter = CoverageCounter(task_of(envs.envs[0]))
    generator = np.random.default_rng(config.seed)
    shape = envs.envs[0].action_space.shape
    assert shape is not None
    for _ in range(0, steps, len(envs)):
        counter.add(envs.step(generator.uniform(-1, 1, (len(envs), *shape)).astype(np.float32)).objects)
    envs.close()
    return counter.value


def _numpy_state() -> list[Any]:
    return list(np.random.get_state(legacy=True))


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
