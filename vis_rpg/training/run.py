"""One seed's run in one folder: its environments, what it has seen and done, its logs and its
checkpoints."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from perception.base import Window
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.make import make_agent
from vis_rpg.config import check_resumable
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.sync import StepResult, VectorEnv
from vis_rpg.errors import RunStopped, UserError
from vis_rpg.seeding import restore_generator, stream
from vis_rpg.training import checkpoint, runtime
from vis_rpg.training.chunks import Chunks
from vis_rpg.training.coverage import CoverageCounter, VisitRecord
from vis_rpg.training.load import load_whole_config, restore
from vis_rpg.training.logger import Logger
from vis_rpg.training.online_slots import Adaptation
from vis_rpg.training.replay_buffer import Replay

EPISODES_KEPT = 100  # over which return and success of training episodes are averaged


class Run:
    """Holds config.yaml, metrics.jsonl, TensorBoard events, checkpoints, replay, visits, and at the
    end summary.json.

    What it learns is updated elsewhere, alone or beside others; `replay` is given to it once it is
    known where replays lie.
    """

    replay: Replay
    logger: Logger

    def __init__(self, config: DictConfig, device: torch.device, envs: VectorEnv) -> None:
        self.config, self.out, self.device = config, Path(config.out), device
        self.folder = self.out / "checkpoints"
        count = config.agent.envs
        self.envs = envs
        self.task = envs.task
        self.agent = make_agent(config, envs).to(device)
        self.actor = Actor(self.agent, count, stream(config.seed, 1))
        self.generator = torch.Generator(device).manual_seed(stream(config.seed, 2))
        self.coverage = CoverageCounter(self.task)
        self.replay_chunks = Chunks(self.out / "replay", "replay")
        self.visits = VisitRecord(self.out / "visits")
        self.step = self.episodes = self.dropped_episodes = 0
        self.wall_before = 0.0
        self.finished: deque[list[float]] = deque(maxlen=EPISODES_KEPT)
        self.returns = np.zeros(count)
        self.succeeded = np.zeros(count, bool)
        self.failure: str | None = None
        self.adaptation: Adaptation | None = None
        self._only_frame: np.ndarray | None = (
            None  # during the random steps, as long as no other has been seen
        )

    def keep_in(self, replay: Replay) -> None:
        """Use this replay; batches are drawn from it by a generator of its own."""
        self.replay = replay
        self.sampler = torch.Generator(replay.device).manual_seed(stream(self.config.seed, 3))
        every = self.config.perception.get("learn_every")
        if every is not None:
            self.adaptation = Adaptation(
                self.agent, self.actor, replay, every, len(self.envs), stream(self.config.seed, 4)
            )

    def open_log(self, resumed: bool) -> None:
        self.logger = Logger(
            self.out, self.config.logger.wandb, _plain(self.config), self.step if resumed else None
        )

    # Interaction ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the first episodes."""
        obs = self.envs.reset()
        if self.config.obs.kind == "pixels" and self.config.agent.seed_steps > 0:
            self._only_frame = obs[0, -1]
            self._check_frames(obs)
        self.replay.begin(self._see_first(dict(enumerate(obs))), torch.arange(len(self.envs)))

    def _check_frames(self, obs: np.ndarray) -> None:
        """Raise RunStopped after the random steps if all frames (N, 2, 64, 64, 3) of all
        environments were the same."""
        if self._only_frame is None:
            return
        if (obs != self._only_frame).any():
            self._only_frame = None
        elif self.step >= self.config.agent.seed_steps:
            raise RunStopped(
                f"all frames of all {len(obs)} environments of {self.envs.id} were the same "
                "during the random steps: "
                "nothing is drawn, or nothing that moves is in view; use obs=state, or mend "
                "how it is rendered"
            )

    def choose(self) -> Tensor:
        """The next action of every environment, (envs, A) on the device; uniformly random during
        the seed steps."""
        action = self.actor.decide(explore=True)  # draws z where an episode begins
        if self.step < self.config.agent.seed_steps:
            action = 2 * torch.rand(action.shape, generator=self.generator, device=self.device) - 1
            self.actor.did(action)
        return action

    @property
    def sees_ahead(self) -> bool:
        """Whether seeing depends on nothing that updates change, so that it may go on
        beside one."""
        return self.adaptation is None and not any(
            p.requires_grad for p in self.agent.model.perception.parameters()
        )

    def see(self, result: StepResult) -> list[Window]:
        """Perceive what a step led to, and how new episodes begin: what `take` stores of it."""
        seen = [self._see(result.obs, result.objects)]
        if result.first_obs:
            seen.append(
                self._see_first({row: result.first_obs[row] for row in sorted(result.first_obs)})
            )
        return seen

    def take(self, action: Tensor, result: StepResult, seen: list[Window]) -> None:
        """What these actions led to, and what was seen of it by `see`, into replay and counts."""
        reward, terminated, objects, z = (
            torch.from_numpy(result.reward),
            torch.from_numpy(result.terminated),
            result.objects,
            self.actor.z,
        )
        if result.dropped:
            rows = torch.from_numpy(result.kept)
            action, reward, terminated, objects, z = (
                action[rows],
                reward[rows],
                terminated[rows],
                objects[result.kept],
                z[rows],
            )
            self.replay.add(
                action,
                reward,
                terminated,
                z,
                {name: value[rows] for name, value in seen[0].items()},
                rows,
            )
        else:
            self.replay.add(action, reward, terminated, z, seen[0])
        self.step += len(self.envs)
        self._check_frames(result.obs)
        self.returns += result.reward
        self.succeeded |= result.success
        self.coverage.add(objects)
        self.visits.add(self.step, objects, z)
        for row in result.first_obs:
            if row in result.dropped:
                self.dropped_episodes += 1
            else:
                ended = [
                    float(self.returns[row]),
                    float(result.success[row]),
                    float(self.succeeded[row]),
                ]
                self.finished.append(ended + result.criteria[row].astype(float).tolist())
                self.episodes += 1
            self.returns[row], self.succeeded[row] = 0.0, False
        if result.first_obs:
            self.replay.begin(seen[1], torch.tensor(sorted(result.first_obs)))

    def _see_first(self, obs: Mapping[int, np.ndarray]) -> Window:
        """Episodes begin with these observations in these environments: what replay
        stores of them."""
        rows = np.array(list(obs))
        self.actor.begin(rows)
        return self._see(np.stack(list(obs.values())), None, rows)

    def _see(
        self, obs: np.ndarray, positions: np.ndarray | None, rows: np.ndarray | None = None
    ) -> Window:
        """What replay stores of observations; without true positions a novelty that needs them is
        left zero: no bonus is ever given for, nor the density estimator trained on, an episode's
        first observation."""
        seen, novelty = self.actor.see(obs, rows), self.agent.novelty
        if novelty is not None and novelty.name not in seen:
            seen[novelty.name] = torch.zeros(len(obs), *novelty.shape, dtype=novelty.dtype)
            if positions is not None or not novelty.needs_positions:
                given = (
                    torch.as_tensor(value, device=self.device)
                    for value in (obs, positions if positions is not None else 0.0)
                )
                seen[novelty.name] = novelty(*given).to(novelty.dtype)
        return seen

    def standing(self) -> dict[str, float]:
        """Coverage, and return and success of the last training episodes (sampled actions)."""
        names = (
            "return",
            "success",
            "success_any",
            *(f"success_{name}" for name in self.task.criteria),
        )
        recent = np.array(self.finished).mean(0) if self.finished else np.full(len(names), np.nan)
        standing = {
            "coverage": self.coverage.value,
            **dict(zip(names, map(float, recent), strict=True)),
            "episodes": self.episodes,
        }
        if self.adaptation:
            standing |= {
                "perception_rounds": self.adaptation.rounds,
                "perception_loss": float(self.adaptation.loss),
            }
        return standing

    # Checkpoints ----------------------------------------------------------------------------------

    def prepare_folder(self) -> None:
        """Make the folder and those in it, with the config. Raises UserError where one of them
        cannot be made."""
        for folder in (
            self.folder,
            self.replay_chunks.folder,
            self.visits.chunks.folder,
            self.out / "tensorboard",
        ):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{folder}: cannot be a folder ({error.strerror}); remove what is there, "
                    "or give another out"
                ) from None
        OmegaConf.save(self.config, self.out / "config.yaml.part")
        os.replace(self.out / "config.yaml.part", self.out / "config.yaml")

    def record_runtime(self, chosen: str) -> None:
        """Keep how updates run, for `recorded_runtime`."""
        (self.out / "runtime.json").write_text(
            json.dumps({"runtime": chosen, "device": self.device.type}) + "\n"
        )

    def recorded_runtime(self) -> str | None:
        """How updates ran before this run was resumed, if it did on this kind of device."""
        try:
            kept = json.loads((self.out / "runtime.json").read_text()) if self.config.resume else {}
            return (
                str(kept["runtime"])
                if kept["device"] == self.device.type and kept["runtime"] in runtime.FASTEST_FIRST
                else None
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, learned: dict[str, Any], wall_s: float) -> None:
        """A checkpoint of everything that the run needs to go on as if it had never stopped;
        `learned`: what the update carries."""
        replay, visits = self.replay.save(self.replay_chunks), self.visits.save()
        state = {
            "agent": self.agent.state_dict(),
            "learned": learned,
            "actor": self.actor.state(),
            "replay": replay,
            "visits": visits,
            "envs": self.envs.get_state(),
            "generator": self.generator.get_state(),
            "sampler": self.sampler.get_state(),
            "adaptation": self.adaptation.state() if self.adaptation else None,
            "libraries": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "numpy": list(np.random.get_state(legacy=True)),
                "python": random.getstate(),
            },
            "visited": self.coverage.visited if self.coverage.grid is not None else None,
            "finished": list(self.finished),
            "returns": self.returns,
            "succeeded": self.succeeded,
            "step": self.step,
            "episodes": self.episodes,
            "dropped_episodes": self.dropped_episodes,
            "wall_s": wall_s,
        }
        checkpoint.save(self.folder, self.step, state)
        kept = [
            json.loads((path / "state.json").read_text())["state"]
            for path in checkpoint.complete(self.folder)
        ]
        for chunks, name in ((self.replay_chunks, "replay"), (self.visits.chunks, "visits")):
            chunks.keep({(start, end) for saved in kept for start, end in saved[name]["spans"]})

    def load(self, path: Path) -> dict[str, Any]:
        """Continue from a checkpoint; environments that could not be saved begin a new episode, and
        their running one is dropped.

        Returns what the update carries.
        """
        state = checkpoint.load(path)
        restore(self.agent, state, self.out)
        self.replay.load(state["replay"], self.replay_chunks)
        self.visits.load(state["visits"])
        self.actor.load_state(state["actor"])
        restore_generator(self.generator, state["generator"])
        restore_generator(self.sampler, state["sampler"])
        if self.adaptation:
            self.adaptation.load_state(state["adaptation"])
        if self.coverage.grid is not None:
            self.coverage.visited = state["visited"].copy()
        self.finished.extend(state["finished"])
        self.returns, self.succeeded = state["returns"].copy(), state["succeeded"].copy()
        self.step, self.episodes, self.wall_before = (
            state["step"],
            state["episodes"],
            state["wall_s"],
        )
        self.dropped_episodes = state["dropped_episodes"]
        restarted = self.envs.set_state(state["envs"])
        if restarted:
            rows = np.array(restarted)
            self.dropped_episodes += len(rows)
            self.returns[rows], self.succeeded[rows] = 0.0, False
            self.replay.begin(
                self._see_first({row: self.envs.obs[row] for row in restarted}),
                torch.from_numpy(rows),
            )
            tqdm.write(
                f"resume: {len(rows)} running episodes could not be saved and were dropped",
                file=sys.stderr,
            )
        libraries = state["libraries"]
        torch.set_rng_state(libraries["torch"])
        if len(libraries["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(libraries["cuda"])
        np.random.set_state(tuple(libraries["numpy"]))
        version, internal, gauss = libraries["python"]
        random.setstate((version, tuple(internal), gauss))
        learned = state["learned"]
        assert isinstance(learned, dict)
        return learned

    def finish(self, updates: int, wall_s: float) -> dict[str, Any]:
        """Write summary.json, with a random policy's coverage beside the agent's, at as many
        interactions with pretraining counted in."""
        summary: dict[str, Any] = {
            **self.standing(),
            "steps": self.step,
            "updates": updates,
            "wall_s": round(wall_s, 1),
        }
        summary["dropped_episodes"] = self.dropped_episodes
        if self.coverage.grid is not None:
            summary["pretraining_frames"] = self.agent.model.perception.pretraining_frames
            summary["random_coverage"] = random_coverage(
                self.config, self.step + summary["pretraining_frames"]
            )
        summary |= {
            "task": self.task.name,
            "obs": self.config.obs.kind,
            "agent": self.config.agent.name,
            "seed": self.config.seed,
        }
        clean = {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in summary.items()
        }
        (self.out / "summary.json").write_text(json.dumps(clean, indent=2) + "\n")
        self.close()
        return clean

    def close(self) -> None:
        self.logger.close()
        self.envs.close()


def may_begin(config: DictConfig, found: list[Path]) -> None:
    """Raise UserError where a run would overwrite another, or go on with other settings than those
    it was begun with."""
    if config.resume and found:
        check_resumable(config, load_whole_config(Path(config.out)))
    elif found:
        raise UserError(
            f"out={config.out}: a run with checkpoints is there already; add resume=true to "
            "continue it, or give another out"
        )


def random_coverage(config: DictConfig, steps: int) -> float:
    """Coverage of uniformly random actions at so many interactions, in environments that begin as
    the run's."""
    [envs] = make_vector_envs(config.task, "state", config.agent.envs, [config.seed])
    envs.reset()
    counter = CoverageCounter(envs.task)
    generator = np.random.default_rng(config.seed)
    shape = envs.action_space.shape
    assert shape is not None
    for _ in range(0, steps, len(envs)):
        counter.add(
            envs.step(generator.uniform(-1, 1, (len(envs), *shape)).astype(np.float32)).objects
        )
    envs.close()
    return counter.value


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
