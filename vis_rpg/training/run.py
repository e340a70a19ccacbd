"""One seed's run in one folder: environments, replay, logs and checkpoints."""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from perception.base import StoredObs
from vis_rpg import distributed
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.rpg import Agent
from vis_rpg.checks import check_resumable
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.sync import StepResult, VectorEnv
from vis_rpg.errors import RunStopped, UserError, require
from vis_rpg.origin import commit, hardware
from vis_rpg.seeding import restore_generator, stream
from vis_rpg.training import checkpoint, runtime
from vis_rpg.training.chunks import Chunks
from vis_rpg.training.coverage import CoverageCounter, VisitRecord
from vis_rpg.training.episodes import EpisodeRecorder
from vis_rpg.training.load import load_whole_config, restore, runtime_record
from vis_rpg.training.logger import Logger, without_nan
from vis_rpg.training.progress import Progress
from vis_rpg.training.replay_buffer import ReplayBuffer


class Run:
    """One seed's run in one folder.

    The folder holds config.yaml, metrics.jsonl, TensorBoard events, checkpoints, replay, visits,
    and at the end summary.json. A `Learner` updates the agent, alone or together with those of
    other runs.

    Args:
        config: Of this seed.
        agent: On its device.
        envs: Its environments.
        replay: Its empty buffer.
        resume_from: The checkpoint to continue from, None for a new run.

    Raises:
        UserError: The folder cannot be made, or the checkpoint cannot be used.
        RunStopped: All first frames are the same and there are no random steps.
    """

    def __init__(
        self,
        config: DictConfig,
        agent: Agent,
        envs: VectorEnv,
        replay: ReplayBuffer,
        resume_from: Path | None,
    ) -> None:
        self.config, self.out, self.device = config, Path(config.out), agent.log_alpha.device
        self.folder = self.out / "checkpoints"
        self.agent, self.envs, self.replay, self.task = agent, envs, replay, envs.task
        count, seed = len(envs), config.seed
        self.actor = Actor(agent, count, stream(seed, 1), measure_z=True)
        self.generator = torch.Generator(self.device).manual_seed(stream(seed, 2))
        self.batch_generator = torch.Generator(replay.device).manual_seed(stream(seed, 3))
        self.replay_chunks = Chunks(self.out / "replay", "replay")
        self.visits = VisitRecord(self.out / "visits")
        self.episodes = EpisodeRecorder(config.logger.episodes, count)
        more = ["z_information"] * self.actor.measure_z
        self.progress = Progress(self.task, count, more)
        self.stride = count * distributed.world_size()
        """Interactions of one step of all environments, those of other processes included."""
        self.step = self.dropped_episodes = 0
        self.wall_before = 0.0
        self.failure: str | None = None
        self.learner_state: dict[str, Any] | None = None
        """State that the learner continues from."""
        self._only_frame: np.ndarray | None = None
        """The frame of all random steps so far; None once another has been seen."""
        self._make_folders()
        if resume_from is None:
            self._begin()
        else:
            self._load(resume_from)
        settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        step = None if resume_from is None else self.step
        self.logger = Logger(self.out, config.logger.wandb, settings, step)

    # Interaction ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin the first episodes."""
        obs = self.envs.reset()
        if self.config.obs.kind == "pixels" and self.config.agent.seed_steps > 0:
            self._only_frame = obs[0, -1]
            self._check_frames(obs)
        self.replay.begin(self._encode_first(dict(enumerate(obs))), torch.arange(len(obs)))
        self._record_starts(range(len(obs)))

    def _record_starts(self, rows: Sequence[int]) -> None:
        """Begin to record the episodes that have begun in these environments."""
        if self.config.logger.episodes:
            for row, state in self.envs.env_states(rows).items():
                self.episodes.begin(row, self.step, state, self.envs.obs[row])

    def _check_frames(self, obs: np.ndarray) -> None:
        """Raise RunStopped if all frames (N, 2, 64, 64, 3) of the random steps were the same."""
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

    def select_action(self) -> Tensor:
        """Return the next action of every environment, (envs, A) on the device.

        It is uniformly random during the seed steps.
        """
        uniform = None
        if self.step < self.config.agent.seed_steps:
            shape = len(self.envs), self.agent.action_dim
            uniform = 2 * torch.rand(shape, generator=self.generator, device=self.device) - 1
        return self.actor.select_action(explore=True, instead=uniform)

    @property
    def encodes_ahead(self) -> bool:
        """Whether encoding depends on nothing that updates change, so that both can overlap."""
        return not any(p.requires_grad for p in self.agent.model.perception.parameters())

    def encode(self, result: StepResult) -> list[StoredObs]:
        """Encode the results of a step and the starts of new episodes, for `record_step`."""
        encoded = [self._encode(result.obs, result.objects)]
        if result.first_obs:
            first = {row: result.first_obs[row] for row in sorted(result.first_obs)}
            encoded.append(self._encode_first(first))
        return encoded

    def record_step(self, action: Tensor, result: StepResult, encoded: list[StoredObs]) -> None:
        """Record one step of all environments in replay, coverage, visits and statistics.

        Args:
            action: (envs, A).
            result: What it led to.
            encoded: From `encode`.

        Raises:
            RunStopped: All frames of the random steps were the same.
        """
        reward, terminated = torch.from_numpy(result.reward), torch.from_numpy(result.terminated)
        objects, z, next_obs, rows = result.objects, self.actor.z, encoded[0], None
        left = self.actor.left if self.agent.redraws else None
        if result.dropped:
            rows = torch.from_numpy(result.kept)
            action, reward, terminated, z = action[rows], reward[rows], terminated[rows], z[rows]
            objects, left = objects[result.kept], None if left is None else left[rows]
            next_obs = {name: value[rows] for name, value in next_obs.items()}
        self.replay.add(action, reward, terminated, z, next_obs, rows, left)
        self.step += self.stride
        self._check_frames(result.obs)
        kept = result.kept
        self.progress.add(kept, result.reward[kept], result.success[kept], objects)
        z = z.cpu()  # once, for both
        self.visits.add(self.step, objects, z)
        if self.config.logger.episodes:
            self.episodes.add(kept, action.cpu().numpy(), z.numpy(), result.reward[kept])
        for row in result.first_obs:
            if row in result.dropped:
                self.dropped_episodes += 1
                self.progress.forget([row])
                self.episodes.forget([row])
            else:
                more = [self.actor.z_information(row)] * self.actor.measure_z
                success = bool(result.success[row])
                self.progress.end(row, success, result.criteria[row], more)
                self.episodes.end(row, self.step, success)
        if result.first_obs:
            rows_begun = sorted(result.first_obs)
            self.replay.begin(encoded[1], torch.tensor(rows_begun))
            self._record_starts(rows_begun)

    def _encode_first(self, obs: Mapping[int, np.ndarray]) -> StoredObs:
        """Encode the first observations of new episodes in these environments."""
        rows = np.array(list(obs))
        self.actor.on_reset(rows)
        return self._encode(np.stack(list(obs.values())), None, rows)

    def _encode(
        self, obs: np.ndarray, positions: np.ndarray | None, rows: np.ndarray | None = None
    ) -> StoredObs:
        """Encode observations for replay."""
        return self.agent.with_rnd_input(self.actor.observe(obs, rows), obs, positions)

    # Checkpoints ----------------------------------------------------------------------------------

    def _make_folders(self) -> None:
        """Make the run's folders and write the config."""
        folders = self.replay_chunks.folder, self.visits.chunks.folder
        for folder in (self.folder, *folders, self.out / "tensorboard"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{folder}: cannot be a folder ({error.strerror}); remove what is there, or "
                    "give another out"
                ) from None
        OmegaConf.save(self.config, self.out / "config.yaml.part")
        os.replace(self.out / "config.yaml.part", self.out / "config.yaml")

    def record_runtime(self, chosen: str) -> None:
        """Write down how updates run, for `recorded_runtime`, on what and by which commit.

        Args:
            chosen: The runtime.
        """
        made = {"processor": hardware(self.device), "commit": commit()}
        kept = {"runtime": chosen, "device": self.device.type, **made}
        (self.out / "runtime.json").write_text(json.dumps(kept) + "\n")

    def recorded_runtime(self) -> str | None:
        """Return how updates ran before a resume on the same kind of device, None otherwise."""
        if not self.config.resume:
            return None
        kept = runtime_record(self.out)
        same = kept.get("device") == self.device.type
        return kept["runtime"] if same and kept.get("runtime") in runtime.FASTEST_FIRST else None

    def save(self, learner_state: dict[str, Any], wall_s: float) -> None:
        """Write a checkpoint from which the run continues exactly as if it had never stopped.

        Args:
            learner_state: From `Learner.state_dict`.
            wall_s: Seconds that the run has taken, its share of those of seeds side by side.

        Raises:
            OSError: The disk is full.
        """
        replay, visits = self.replay.save(self.replay_chunks), self.visits.save()
        state = {
            "agent": self.agent.state_dict(),
            "learner": learner_state,
            "actor": self.actor.state_dict(),
            "replay": replay,
            "visits": visits,
            "envs": self.envs.get_state(),
            "generator": self.generator.get_state(),
            "batch_generator": self.batch_generator.get_state(),
            "libraries": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "numpy": list(np.random.get_state(legacy=True)),
                "python": random.getstate(),
            },
            "progress": self.progress.state_dict(),
            "episodes": self.episodes.state_dict(),
            "wall_s": wall_s,
            "processes": distributed.world_size(),
            **{name: getattr(self, name) for name in COUNTS},
        }
        checkpoint.save(self.folder, self.step, state)
        found = [path / "state.json" for path in checkpoint.complete(self.folder)]
        kept = [json.loads(path.read_text())["state"] for path in found]
        for chunks, name in ((self.replay_chunks, "replay"), (self.visits.chunks, "visits")):
            chunks.keep({(start, end) for saved in kept for start, end in saved[name]["spans"]})

    def _load(self, path: Path) -> None:
        """Continue from a checkpoint; drop running episodes that could not be saved."""
        state = checkpoint.load(path)
        begun = state.get("processes", 1)  # not of a run from before there could be several
        require(
            begun == distributed.world_size(),
            f"resume=true: the run in {self.out} is of {begun} processes: start as many "
            f"(torchrun --nproc-per-node={begun})",
        )
        with checkpoint.must_fit(path):
            restore(self.agent, state, self.out)
            self.replay.load(state["replay"], self.replay_chunks)
            self.visits.load(state["visits"])
            self.actor.load_state_dict(state["actor"])
            restore_generator(self.generator, state["generator"])
            restore_generator(self.batch_generator, state["batch_generator"])
            self.progress.load_state_dict(state["progress"])
            if "episodes" in state:  # not of a run that began before episodes were recorded
                self.episodes.load_state_dict(state["episodes"])
            for name in COUNTS:
                setattr(self, name, copy.copy(state[name]))
            self.wall_before = state["wall_s"]
            self.learner_state = state["learner"]
            self._restart(self.envs.set_state(state["envs"]))
            libraries = state["libraries"]
            torch.set_rng_state(libraries["torch"])
            if len(libraries["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(libraries["cuda"])
            np.random.set_state(tuple(libraries["numpy"]))
            version, internal, gauss = libraries["python"]
            random.setstate((version, tuple(internal), gauss))

    def _restart(self, rows: list[int]) -> None:
        """Begin new episodes in environments whose running ones could not be saved."""
        if rows:
            self.dropped_episodes += len(rows)
            self.progress.forget(rows)
            self.episodes.forget(rows)
            self._record_starts(rows)
            first = self._encode_first({row: self.envs.obs[row] for row in rows})
            self.replay.begin(first, torch.tensor(rows))
            line = f"resume: {len(rows)} running episodes could not be saved and were dropped"
            tqdm.write(line, file=sys.stderr)

    def finish(self, updates: int, wall_s: float) -> dict[str, Any]:
        """Write and return summary.json.

        It includes a random policy's coverage after as many interactions, pretraining included.

        Args:
            updates: Updates made.
            wall_s: Seconds that the run has taken, its share of those of seeds side by side.
        """
        summary: dict[str, Any] = {
            **self.progress.metrics(),
            "steps": self.step,
            "updates": updates,
            "wall_s": round(wall_s, 1),
            "dropped_episodes": self.dropped_episodes,
        }
        if self.progress.coverage.grid is not None:
            frames = self.agent.model.perception.pretraining_frames
            summary["pretraining_frames"] = frames
            if distributed.rank() == 0:  # minutes, where environments are slow
                summary["random_coverage"] = random_coverage(self.config, self.step + frames)
        summary |= {
            "task": self.task.name,
            "obs": self.config.obs.kind,
            "agent": self.config.agent.name,
            "seed": self.config.seed,
        }
        clean: dict[str, Any] = without_nan(summary)
        (self.out / "summary.json").write_text(json.dumps(clean, indent=2) + "\n")
        self.close()
        return clean

    def close(self) -> None:
        """Close logs and environments."""
        self.logger.close()
        self.envs.close()


COUNTS = ("step", "dropped_episodes")
"""Attributes that a checkpoint holds under the same name."""


def check_can_start(config: DictConfig, found: list[Path]) -> None:
    """Check that a run neither overwrites another nor continues with other settings.

    A line says if there is nothing to continue.

    Args:
        config: The config of one seed.
        found: Checkpoints in its folder.

    Raises:
        UserError: It would.
    """
    if config.resume and found:
        check_resumable(config, load_whole_config(Path(config.out)))
    elif config.resume:
        line = f"resume=true: no checkpoint in {config.out}: this run begins anew"
        tqdm.write(line, file=sys.stderr)
    elif found:
        raise UserError(
            f"out={config.out}: a run with checkpoints is there already; add resume=true to "
            "continue it, or give another out"
        )


def random_coverage(config: DictConfig, steps: int) -> float:
    """Return the coverage of uniformly random actions in environments with the run's seed.

    Args:
        config: Of the run.
        steps: Interactions.
    """
    [envs] = make_vector_envs(config.task, "state", config.agent.envs, [config.seed])
    envs.reset()
    counter = CoverageCounter(envs.task)
    generator = np.random.default_rng(config.seed)
    # Minutes where environments are slow: it says so after some seconds.
    told = "the coverage of random actions, to compare with"
    for _ in tqdm(range(0, steps, len(envs)), told, unit_scale=len(envs), leave=False, delay=5):
        actions = generator.uniform(-1, 1, (len(envs), *envs.action_space.shape)).astype(np.float32)
        counter.add(envs.step(actions).objects)
    envs.close()
    return counter.value
