"""The training loop, for one seed or several in one process: collect, learn, log, save.

To resume, run the same command with `resume=true`.
"""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vis_rpg import distributed
from vis_rpg.agent.rnd import ObjectRND
from vis_rpg.agent.rpg import Agent
from vis_rpg.baselines.make import make_agent
from vis_rpg.checks import SHARED, check, device, lacks_compiler
from vis_rpg.envs.make import observed_task
from vis_rpg.envs.rendering.frames import render_on
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.sync import StepResult, step_vector_envs
from vis_rpg.errors import RunStopped, UserError, WorkersFailed, require
from vis_rpg.training import checkpoint, runtime
from vis_rpg.training.learner import Learner
from vis_rpg.training.lock import LOST_S, lock
from vis_rpg.training.memory import prepare
from vis_rpg.training.preemption import checkpoint_on_signal
from vis_rpg.training.progress import count_rewarded
from vis_rpg.training.replay_buffer import (
    BatchSpec,
    ReplayBuffer,
    Storage,
    bytes_needed,
    choose_device,
    make_storage,
)
from vis_rpg.training.run import Run, check_can_start
from vis_rpg.training.sampler import BatchSampler

SHOWN = ("coverage", "success", "return", "updates_per_s")
SMALL_UPDATE = 200_000_000
"""Model parameters times segments, below which an update is faster on one core less."""
REPORTS = 10
"""Progress lines per run."""
REPORTED = {"success": "success of the last episodes", "return": "return", "coverage": "coverage"}


class Trainer:
    """One run in the folder `out`, or with `seeds` above 1 as many independent ones in out/seed-N.

    Of several processes each has an equal share of the run's environments, replay and batch; the
    first keeps its own in `out`, the others in out/rank-N. Interactions are those of all.

    Environments step, and frozen perception encodes their observations, while the update runs; only
    actions wait for the device.

    Args:
        config: The whole config.

    Raises:
        UserError: A setting, a folder or a checkpoint cannot be used.
        RunStopped: All first frames are the same and there are no random steps.
    """

    def __init__(self, config: DictConfig) -> None:
        check(config)
        self.config, self.device = config, device(config.device)
        self.share = process_share(config)
        prepare(self.device)
        render_on(self.device)
        for seed_library in (random.seed, np.random.seed, torch.manual_seed):
            seed_library(config.seed + distributed.rank())
        configs = seed_configs(config)
        self.locks: list[TextIO] = []
        try:
            with distributed.together():
                for own in configs:
                    self.locks.append(lock(Path(own.out), LOST_S if config.resume else 0.0))
                found = [checkpoint.complete(Path(own.out) / "checkpoints") for own in configs]
                for own, checkpoints in zip(configs, found, strict=True):
                    check_can_start(own, checkpoints)
            newest = _newest_in_all(found, config.out)
            with distributed.together():
                self.runs, sampler = self._make_runs(configs, newest)
            generators = [run.generator for run in self.runs]
            agents = [run.agent for run in self.runs]
            self.learner = Learner(agents, config.precision, sampler, generators)
            states = [run.learner_state for run in self.runs if run.learner_state is not None]
            if states:
                with checkpoint.must_fit(self.runs[0].out):
                    self.learner.load_state_dicts(states)
            for run in self.runs:
                run.learner_state = None  # the learner has its own copy of the moments
        except BaseException:
            self._unlock()
            raise
        self.step_count = self.runs[0].step
        self.runtime: str | None = None  # chosen when there is something to learn from
        self.waited = {"wait_env_s": 0.0, "wait_device_s": 0.0}
        self.threads = torch.get_num_threads()
        self.thread = ThreadPoolExecutor(1, "learner", self._prepare_learner)

    def _make_runs(
        self, configs: list[DictConfig], checkpoints: list[Path] | None
    ) -> tuple[list[Run], BatchSampler]:
        """Make the run of each seed, and the sampler of their batches."""
        config, settings = self.share, self.share.agent
        seeds = [own.seed for own in configs]
        vector_envs = make_vector_envs(
            observed_task(config),
            config.obs.kind,
            settings.envs,
            seeds,
            config.render.backend,
            config.collectors,
        )
        pairs = zip(configs, vector_envs, strict=True)
        agents = [make_agent(own, envs).to(self.device) for own, envs in pairs]
        learned_prior = settings.latent.prior == "learned" and agents[0].space.dim > 0
        length = vector_envs[0].task.episode_length
        storage, buffers = self._make_buffers(agents, length, learned_prior)
        runs = [
            Run(own, agent, envs, buffer, None if checkpoints is None else checkpoints[index])
            for index, (own, agent, envs, buffer) in enumerate(
                zip(configs, agents, vector_envs, buffers, strict=True)
            )
        ]
        spec = BatchSpec(
            settings.batch_size,
            settings.horizon,
            config.exploration.batch_size if isinstance(agents[0].rnd, ObjectRND) else 1,
            settings.batch_size if learned_prior else 0,
            settings.replay_recent,
            agents[0].redraws,
            round(settings.replay_leading * settings.batch_size),
        )
        generators = [run.batch_generator for run in runs]
        return runs, BatchSampler(buffers, storage, spec, generators, self.device)

    def _make_buffers(
        self, agents: list[Agent], episode_length: int, beginnings: bool
    ) -> tuple[Storage, list[ReplayBuffer]]:
        """Make the replay buffer of every agent, in one storage.

        Args:
            agents: Of each seed.
            episode_length: Steps of an episode.
            beginnings: Whether each buffer must hold an episode's beginning at all times.

        Raises:
            UserError: There is no room, or no beginning could be left in a full buffer.
        """
        config, settings, first = self.share, self.share.agent, agents[0]
        capacity, count = settings.replay_capacity, len(agents)
        sizes = capacity, first.storage, first.action_dim, first.space.dim
        times = f" x {count} seeds" if count > 1 else ""
        # One observation per step and one per episode start; episodes that terminate may be short.
        per_step = 2.0 if config.task.terminates else 1 + 1 / episode_length
        filled = min(1.0, (config.steps * per_step + settings.envs) / capacity)
        needed, wanted = count * bytes_needed(*sizes), settings.replay_device
        where, line = choose_device(needed, self.device, wanted, capacity, filled, f"replay{times}")
        tqdm.write(f"replay of {capacity:,} observations{times}: {line}", file=sys.stderr)
        storage = make_storage(*sizes, where, count=None if count == 1 else count)
        rows = [storage] if count == 1 else [storage.row(index) for index in range(count)]
        history = first.model.perception.history
        buffers = [ReplayBuffer(*sizes, history, settings.envs, where, own) for own in rows]
        least = settings.envs * (episode_length + 2) + buffers[0].margin
        require(
            not beginnings or filled < 1 or capacity >= least,
            f"agent.replay_capacity={capacity}: full, it may hold no episode's beginning, which "
            f"agent.latent.prior=learned needs; give at least {least}",
        )
        return storage, buffers

    def _prepare_learner(self) -> None:
        """Set up the thread of updates: all cores, or one less for an update that is too small."""
        prepare(self.device)
        size = self.learner.flat["model"].flat.numel() * self.share.agent.batch_size
        fewer = size < SMALL_UPDATE and self.device.type == "cpu"
        torch.set_num_threads(max(1, self.threads - 1) if fewer else self.threads)

    @contextmanager
    def acting_in_one_thread(self) -> Iterator[None]:
        """Act and encode in one thread: operators are small, and updates need the other cores.

        Measured on two cores of a Zen 4, ms a step from slots in the CPU preset: 37 with one thread
        here and one for updates, 50 with two here, 52 with two there (eager 70 and 105); from state
        at paper size 354 with one thread for updates and 193 with two.
        """
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    @property
    def active_runs(self) -> list[Run]:
        """The runs that have not failed."""
        return [run for run in self.runs if run.failure is None]

    # The loop -------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
        """Train to `steps` interactions: `train`, then `finish`.

        Args:
            stop: As of `train`.

        Returns:
            As of `finish`.

        Raises:
            RunStopped: A seed failed: at once if it was the last, else after the others are done.
        """
        self.train(stop)
        return self.finish()

    def train(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the last checkpoint.

        Args:
            stop: Asked after each step whether to end here, with a checkpoint to continue from.

        Raises:
            RunStopped: The last seed failed.
        """
        try:
            with self.acting_in_one_thread():
                self._train(stop)
        except BaseException:
            self._unlock()
            raise

    def finish(self) -> list[dict[str, Any]]:
        """Write the summaries, and close all.

        Returns:
            The contents of each seed's summary.json; nothing if stopped before the end.

        Raises:
            RunStopped: A seed failed.
        """
        summaries = []
        try:
            for run in self.active_runs:
                if self.step_count >= self.config.steps:
                    summaries.append(run.finish(self.learner.updates, self._wall(run)))
                else:
                    run.close()
            self.thread.shutdown()
            self._report_failures()
        finally:
            self._unlock()
        return summaries

    def _unlock(self) -> None:
        for file in self.locks:
            file.close()

    def _train(self, stop: Callable[[], bool]) -> None:
        config, name = self.config, self.runs[0].task.name
        self.began = time.perf_counter()
        self.last_log = (self.began, self.learner.updates, self.step_count)
        with tqdm(
            total=config.steps,
            initial=self.step_count,
            unit="step",
            desc=f"{name} {config.agent.name}{self._times()}",
            mininterval=1.0,
        ) as bar:
            while self.step_count < config.steps:
                before = self.step_count
                self.step()
                bar.update(self.step_count - before)
                if self._passed(config.logger.log_every, before):
                    lines = self.log()
                    means = {key: np.mean([line[key] for line in lines]) for key in SHOWN}
                    bar.set_postfix({key: f"{mean:.3g}" for key, mean in means.items()})
                if self._passed(max(1, config.steps // REPORTS), before):
                    tqdm.write(self._report(), file=sys.stderr)
                ends = self.step_count >= config.steps or stop()
                if ends or self._passed(config.logger.checkpoint_every, before):
                    self.save()
                if ends:
                    break

    def _report(self) -> str:
        """Describe the progress and results of training in words."""
        progress = [run.progress.metrics() for run in self.active_runs]
        means = {key: np.mean([one[key] for one in progress]) for key in REPORTED}
        reached = [f"{REPORTED[key]} {m:.2f}" for key, m in means.items() if np.isfinite(m)]
        minutes = (time.perf_counter() - self.began) / 60
        done = f"{self.step_count:,} of {self.config.steps:,} interactions after {minutes:.1f} min"
        return ": ".join([done, *([", ".join(reached)] if reached else [])])

    def _times(self) -> str:
        return f" x {len(self.runs)} seeds" if len(self.runs) > 1 else ""

    def step(self) -> None:
        """Step every environment into replay, and meanwhile update on what replay held before."""
        runs = self.active_runs
        begin = time.perf_counter()
        actions = [run.select_action() for run in runs]
        on_host = [action.cpu().numpy() for action in actions]
        acted = time.perf_counter()
        learning: Future[float] | None = None
        after = self.step_count + runs[0].stride
        if self.step_count > 0 and after > self.config.agent.seed_steps:
            learning = self.thread.submit(self.learn)
        results = step_vector_envs([run.envs for run in runs], on_host)
        encoded = {}
        if self.runtime is not None:  # while updates are captured the device is left to them
            encoded = {
                index: run.encode(result)
                for index, (run, result) in enumerate(zip(runs, results, strict=True))
                if run.encodes_ahead and isinstance(result, StepResult)
            }
        stepped = time.perf_counter()
        learned = learning.result() if learning else stepped
        self.waited["wait_device_s"] += acted - begin + max(0.0, time.perf_counter() - stepped)
        self.waited["wait_env_s"] += max(0.0, stepped - learned) if learning else stepped - acted
        # Handle failures only after the update: they read and save what it has learned.
        for index, (run, action, result) in enumerate(zip(runs, actions, results, strict=True)):
            if isinstance(result, StepResult):
                try:
                    run.record_step(action, result, encoded.get(index) or run.encode(result))
                except RunStopped as error:
                    self._fail(run, f"{error}")
            elif (name := self._not_finite(run)) is not None:
                # A loss that is not finite comes back as an action that is not: name the loss.
                self._fail(run, f"{name} is not finite")
            else:
                if isinstance(result, WorkersFailed):
                    self._save(run)
                self._fail(run, f"{result}")
        self.step_count = after

    def learn(self) -> float:
        """Make one update, in the learner's thread; metrics stay on the device until logged.

        Returns:
            The time at which it ended (`time.perf_counter`).
        """
        if self.runtime is None:
            self._start_updates()
        for run in self.runs:
            rewarded = count_rewarded(run.progress.returns, run.progress.finished)
            run.agent.follow_schedules(self.step_count, distributed.total(rewarded))
        self.learner.step()
        return time.perf_counter()

    def _start_updates(self) -> None:
        """Compile or capture updates as wanted; record the choice, which a resumed run repeats."""
        config, first = self.config, self.runs[0]
        wanted = config.runtime
        if wanted == "auto":
            wanted = first.recorded_runtime() or wanted
        lacking, where = lacks_compiler(config.device), f"updates{self._times()} on {self.device}"
        left = (config.steps - self.step_count) // first.stride
        waiting = (
            "" if lacking or wanted == "eager" else "; if they are compiled, this takes minutes"
        )
        tqdm.write(f"{where}: runtime={config.runtime}, getting ready{waiting}", file=sys.stderr)
        while_encoding = config.obs.kind == "pixels" and first.encodes_ahead and self.threads > 1
        self.runtime = runtime.start(self.learner, wanted, left, lacking, while_encoding)
        hint = ""
        if lacking and self.runtime == "eager":
            hint = f" (slower than need be: compiling needs {lacking})"
        tqdm.write(f"{where}: runtime={self.runtime}{hint}", file=sys.stderr)
        for run in self.runs:
            run.record_runtime(self.runtime)

    def _passed(self, every: int, before: int) -> bool:
        return before // every != self.step_count // every

    def _wall(self, run: Run) -> float:
        """Return the seconds that a run has taken, an equal share of runs side by side."""
        return run.wall_before + (time.perf_counter() - self.began) / len(self.runs)

    # Logs, checkpoints, failures ------------------------------------------------------------------

    def log(self) -> list[dict[str, float]]:
        """Write a line for each run: means of metrics since the last line, and progress.

        Returns:
            The lines.
        """
        self._fail_if_not_finite()
        now, learner = time.perf_counter(), self.learner
        then, updates, steps = self.last_log
        seconds = max(now - then, 1e-9)
        speed = {
            "updates_per_s": round((learner.updates - updates) / seconds, 3),
            "steps_per_s": round((self.step_count - steps) / seconds, 3),
            **{name: round(value, 3) for name, value in self.waited.items()},
        }
        sums, counts = learner.sums, learner.counts
        means = {k: distributed.mean(sums[k] / counts[k]).tolist() for k in sums if k in counts}
        lines = []
        for row, run in enumerate(self.runs):
            if run.failure is None:
                line: dict[str, float] = {
                    "step": run.step,
                    "updates": learner.updates,
                    "wall_s": round(self._wall(run), 3),
                    **run.progress.metrics(),
                    **speed,
                    **{name: values[row] for name, values in means.items()},
                }
                run.logger.write(line)
                lines.append(line)
        learner.clear_metrics()
        self.waited = dict.fromkeys(self.waited, 0.0)
        self.last_log = (now, learner.updates, self.step_count)
        return lines

    def save(self) -> None:
        """Write a checkpoint of every run."""
        self._fail_if_not_finite()
        for run in self.active_runs:
            self._save(run)

    def _save(self, run: Run) -> None:
        run.save(self.learner.state_dict(self.runs.index(run)), self._wall(run))

    def _not_finite(self, run: Run) -> str | None:
        """Return the first metric of a run's updates that is not finite, None if all are."""
        row = self.runs.index(run)
        sums = self.learner.sums.items()
        return next((name for name, value in sums if not torch.isfinite(value[row])), None)

    def _fail_if_not_finite(self) -> None:
        for run in self.active_runs:
            if (name := self._not_finite(run)) is not None:
                self._fail(run, f"{name} is not finite")

    def _fail(self, run: Run, why: str) -> None:
        """Leave a run as of its last checkpoint; the others go on.

        Raises:
            RunStopped: There are no others.
        """
        run.failure = (
            f"stopped at step {run.step}: {why}; the last checkpoint is kept in {run.folder}"
        )
        run.close()
        if self.active_runs:
            tqdm.write(f"seed {run.config.seed} {run.failure}; the others go on", file=sys.stderr)
        else:
            self._report_failures()

    def _report_failures(self) -> None:
        if failures := [run.failure for run in self.runs if run.failure]:
            raise RunStopped("; ".join(failures))


def seed_configs(config: DictConfig) -> list[DictConfig]:
    """Return the config of each seed as if it ran alone.

    With `seeds` above 1, these are seeds seed .. seed + seeds - 1 in out/seed-N. A process that is
    not the first has its only one in out/rank-N, and its own logs stay there.
    """
    if rank := distributed.rank():
        config = copy.deepcopy(config)
        config.out, config.logger.wandb = str(Path(config.out) / f"rank-{rank}"), None
    if config.seeds == 1:
        return [config]
    configs = []
    for seed in range(config.seed, config.seed + config.seeds):
        own = copy.deepcopy(config)
        own.seeds, own.seed, own.out = 1, seed, str(Path(config.out) / f"seed-{seed}")
        configs.append(own)
    return configs


def process_share(config: DictConfig) -> DictConfig:
    """Return the settings of this process's share of the run's environments, batch and replay."""
    if (processes := distributed.world_size()) == 1:
        return config
    share = copy.deepcopy(config)
    for key in (*SHARED, "steps", "agent.replay_capacity", "agent.replay_recent"):
        if (total := OmegaConf.select(config, key)) is not None:
            OmegaConf.update(share, key, -(-total // processes))
    return share


def _newest_in_all(found: list[list[Path]], out: str) -> list[Path] | None:
    """Return the newest checkpoint that all runs have, in all processes, None if no run has any.

    Raises:
        UserError: They have none in common.
    """
    own = [{path.name for path in checkpoints} for checkpoints in found]
    every = [names for process in distributed.gather_objects(own) for names in process]
    if not any(every):
        return None
    names = set.intersection(*every)
    if not names:
        way_out = "continue them one by one with seed=N out=.../seed-N"
        if distributed.world_size() > 1:
            way_out = "start as many processes as the run was begun with"
        raise UserError(
            f"resume=true: the runs in {out} have no checkpoint of the same step: {way_out}"
        )
    name = max(names)
    return [next(path for path in checkpoints if path.name == name) for checkpoints in found]


def main(config: DictConfig) -> None:
    """Train, and print where the summary of each run is.

    SIGTERM, as schedulers send it, is met by a checkpoint.

    Args:
        config: The whole config.
    """
    with distributed.process_group():
        trainer = Trainer(config)
        with checkpoint_on_signal(trainer.save) as stop:
            trainer.train(stop)
        summaries = trainer.finish()  # the last checkpoint is written: a signal may end it at once
    for one, summary in zip(trainer.runs, summaries, strict=True):
        shown = {key: summary[key] for key in ("steps", "return", "success", "coverage")}
        print(f"done: {one.out}/summary.json {shown}")
