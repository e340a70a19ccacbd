"""The training loop: collect, learn, log, save; for one seed or several in one process. Resuming is
the same command and `resume=true`."""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from vis_rpg.config import check, device, lacks_compiler
from vis_rpg.envs.rendering.frames import render_on
from vis_rpg.envs.vector.make import make_vector_envs
from vis_rpg.envs.vector.sync import StepResult, step_vector_envs
from vis_rpg.errors import RunStopped, UserError, WorkersFailed, one_line
from vis_rpg.training import checkpoint, runtime
from vis_rpg.training.learner import Learner
from vis_rpg.training.learning import Learning
from vis_rpg.training.lock import lock
from vis_rpg.training.memory import prepare
from vis_rpg.training.replay_buffer import (
    Replay,
    Request,
    Tables,
    bytes_needed,
    choose_device,
    make_tables,
)
from vis_rpg.training.run import Run, may_begin

SHOWN = ("coverage", "success", "return", "updates_per_s")
SMALL_UPDATE = 200_000_000
"""Parameters of the model times segments, below which an update is faster on one core less."""
REPORTS = 10
"""Lines of progress in a whole run."""
REPORTED = {"success": "success of the last episodes", "return": "return", "coverage": "coverage"}


class Trainer:
    """One run in the folder `out`, or with `seeds` above 1 as many independent ones in out/seed-N,
    which learn side by side.

    Environments are stepped, and frozen perception sees what comes, while the update runs; only
    actions wait for the device.
    """

    def __init__(self, config: DictConfig) -> None:
        check(config)
        self.config, self.device = config, device(config)
        prepare(self.device)
        render_on(self.device)
        for seed_library in (random.seed, np.random.seed, torch.manual_seed):
            seed_library(config.seed)
        configs = seed_configs(config)
        self.locks: list[TextIO] = []
        try:
            for own in configs:
                self.locks.append(lock(Path(own.out)))
            self._make_runs(configs)
        except BaseException:
            self._unlock()
            raise

    def _make_runs(self, configs: list[DictConfig]) -> None:
        config = self.config
        found = [checkpoint.complete(Path(own.out) / "checkpoints") for own in configs]
        for own, checkpoints in zip(configs, found, strict=True):
            may_begin(own, checkpoints)
        vector_envs = make_vector_envs(
            config.task,
            config.obs.kind,
            config.agent.envs,
            [own.seed for own in configs],
            config.render.backend,
        )
        self.runs = [
            Run(own, self.device, envs) for own, envs in zip(configs, vector_envs, strict=True)
        ]
        for run in self.runs:
            run.prepare_folder()
        self.learner = Learner([run.agent for run in self.runs], config.precision)
        self.learning = self._make_learning()
        resume_from = _newest_in_all(found)
        if resume_from is None:
            for run in self.runs:
                run.start()
        else:
            self._load(resume_from)
        for run in self.runs:
            run.open_log(resume_from is not None)
        self.step = self.runs[0].step
        self.runtime: str | None = None  # decided when there is something to learn from
        self.waited = {"wait_env_s": 0.0, "wait_device_s": 0.0}
        self.threads = torch.get_num_threads()
        self.thread = ThreadPoolExecutor(1, "learner", self._prepare_learner)

    def _make_learning(self) -> Learning:
        config, settings, first = self.config, self.config.agent, self.runs[0]
        perception = first.agent.model.perception
        sizes = (
            settings.replay_capacity,
            first.agent.stored,
            first.agent.action_dim,
            first.agent.space.dim,
        )
        needed, what = len(self.runs) * bytes_needed(*sizes), f"replay{self._times()}"
        # An observation for each step and each episode's beginning; episodes that end by themselves
        # may be short.
        rows = (
            config.steps * (2.0 if config.task.terminates else 1 + 1 / first.task.episode_length)
            + settings.envs
        )
        filled = min(1.0, rows / settings.replay_capacity)
        where, line = choose_device(
            needed, self.device, settings.replay_device, settings.replay_capacity, filled, what
        )
        tqdm.write(
            f"replay of {settings.replay_capacity:,} observations{self._times()}: {line}",
            file=sys.stderr,
        )
        tables = make_tables(*sizes, where, count=None if len(self.runs) == 1 else len(self.runs))
        for index, run in enumerate(self.runs):
            own: Tables = (
                tables
                if len(self.runs) == 1
                else {name: table[index] for name, table in tables.items()}
            )
            run.keep_in(Replay(*sizes, perception.history, settings.envs, where, own))
        learned_prior = settings.latent.prior == "learned" and first.agent.space.dim > 0
        request = Request(
            settings.batch_size,
            settings.horizon,
            self.config.exploration.batch_size if first.agent.rnd is not None else 1,
            settings.batch_size if learned_prior else 0,
        )
        return Learning(
            self.learner,
            [run.replay for run in self.runs],
            tables,
            request,
            [run.generator for run in self.runs],
            [run.sampler for run in self.runs],
            "eager" if config.runtime == "auto" else config.runtime,
        )

    def _prepare_learner(self) -> None:
        """In the thread that updates: all cores, or all but one where an update is too small to
        gain by the last."""
        prepare(self.device)
        small = (
            self.learner.rows["model"].flat.numel() * self.config.agent.batch_size < SMALL_UPDATE
        )
        torch.set_num_threads(
            max(1, self.threads - 1) if small and self.device.type == "cpu" else self.threads
        )

    @contextmanager
    def one_thread_beside_updates(self) -> Iterator[None]:
        """Act and see in one thread, as the operators are small and updates need the other cores.

        Measured on two cores of a Zen 4, ms a step from slots in the CPU preset: 37 with one thread
        here and one for updates, 50 with two here, 52 with two there (eager 70 and 105); from state
        at paper size 354 with one thread for updates and 193 with two.
        """
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def _times(self) -> str:
        return f" x {len(self.runs)} seeds" if len(self.runs) > 1 else ""

    @property
    def going(self) -> list[Run]:
        """The runs that have not failed."""
        return [run for run in self.runs if run.failure is None]

    # The loop -------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, Any]]:
        """Train to `steps` interactions; returns what each seed's summary.json says.

        Raises RunStopped where a seed failed: at once if it was the last, else after the others are
        done.
        """
        try:
            with self.one_thread_beside_updates():
                return self._train()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        for file in self.locks:
            file.close()

    def _train(self) -> list[dict[str, Any]]:
        config, name = self.config, self.runs[0].task.name
        self.began = time.perf_counter()
        self.last_log = (self.began, self.learner.updates, self.step)
        with tqdm(
            total=config.steps,
            initial=self.step,
            unit="step",
            desc=f"{name} {config.agent.name}{self._times()}",
            mininterval=1.0,
        ) as bar:
            while self.step < config.steps:
                before = self.step
                self.advance()
                bar.update(self.step - before)
                if self._passed(config.logger.log_every, before):
                    lines = self.log()
                    bar.set_postfix(
                        {key: f"{np.mean([line[key] for line in lines]):.3g}" for key in SHOWN}
                    )
                if self._passed(max(1, config.steps // REPORTS), before):
                    tqdm.write(self._report(), file=sys.stderr)
                if (
                    self._passed(config.logger.checkpoint_every, before)
                    or self.step >= config.steps
                ):
                    self.save()
        summaries = [run.finish(self.learner.updates, self._wall(run)) for run in self.going]
        self.thread.shutdown()
        self._report_failures()
        return summaries

    def _report(self) -> str:
        """How far training is and what it has reached, in words."""
        standing = [run.standing() for run in self.going]

        def mean(key: str) -> str:
            return f"{np.mean([one[key] for one in standing]):.2f}"

        reached = [
            f"{name} {mean(key)}" for key, name in REPORTED.items() if np.isfinite(standing[0][key])
        ]
        minutes = (time.perf_counter() - self.began) / 60
        return (
            f"{self.step:,} of {self.config.steps:,} interactions after {minutes:.1f} min: "
            f"{', '.join(reached)}"
        )

    def advance(self) -> None:
        """One step of every environment into replay, and one update beside it, on what replay held
        before."""
        runs = self.going
        begin = time.perf_counter()
        actions = [run.choose() for run in runs]
        on_host = [action.cpu().numpy() for action in actions]
        acted = time.perf_counter()
        learning: Future[float] | None = None
        if self.step > 0 and self.step + len(runs[0].envs) > self.config.agent.seed_steps:
            learning = self.thread.submit(self._timed_learn)
        # What has failed is looked at only when the update is over, for so is what has been
        # learned.
        results = step_vector_envs([run.envs for run in runs], on_host)
        ahead = {}
        if self.runtime is not None:  # while updates are captured the device is left to them
            ahead = {
                index: run.see(result)
                for index, (run, result) in enumerate(zip(runs, results, strict=True))
                if run.sees_ahead and isinstance(result, StepResult)
            }
        stepped = time.perf_counter()
        learned = learning.result() if learning else stepped
        self.waited["wait_device_s"] += acted - begin + max(0.0, time.perf_counter() - stepped)
        self.waited["wait_env_s"] += max(0.0, stepped - learned) if learning else stepped - acted
        for index, (run, action, result) in enumerate(zip(runs, actions, results, strict=True)):
            if isinstance(result, StepResult):
                try:
                    run.take(action, result, ahead[index] if index in ahead else run.see(result))
                except RunStopped as error:
                    self._fail(run, f"{error}")
            elif not self._not_finite(
                run
            ):  # a loss that is not finite comes back as an action that is not: name the loss
                if isinstance(result, WorkersFailed):
                    self._save(run)
                self._fail(run, f"{result}")
        self.step += len(runs[0].envs)

    def _timed_learn(self) -> float:
        self.learn()
        return time.perf_counter()

    def learn(self) -> None:
        """One update; metrics stay on the device until they are logged."""
        settings = self.config.agent
        if self.runtime is None:
            self._start_updates()
        if self.learning.request.first:
            start, end = settings.latent.entropy_decay
            left = min(1.0, max(0.0, (end - self.step) / (end - start)))
            for run in self.runs:
                run.agent.entropy_z.fill_(settings.latent.entropy * left)
        self.learning.step()
        replaced = [run.adaptation.step() for run in self.going if run.adaptation]
        if any(replaced):
            self.learning.redraw()

    def _start_updates(self) -> None:
        """Compile or capture what is to be, and keep the choice with the run: a resumed run goes on
        in the same way."""
        config, first = self.config, self.runs[0]
        wanted = config.runtime
        if wanted == "auto":
            wanted = first.recorded_runtime() or wanted
        lacking = lacks_compiler(config)
        left = (config.steps - self.step) // len(first.envs)
        tqdm.write(
            f"updates{self._times()} on {self.device}: runtime={config.runtime}, getting ready",
            file=sys.stderr,
        )
        beside_seeing = config.obs == "pixels" and first.sees_ahead and self.threads > 1
        self.runtime = runtime.start(self.learning, wanted, left, lacking, beside_seeing)
        hint = (
            f" (slower than need be: compiling needs {lacking})"
            if lacking and self.runtime == "eager"
            else ""
        )
        tqdm.write(
            f"updates{self._times()} on {self.device}: runtime={self.runtime}{hint}",
            file=sys.stderr,
        )
        for run in self.runs:
            run.record_runtime(self.runtime)

    def _passed(self, every: int, before: int) -> bool:
        return before // every != self.step // every

    def _wall(self, run: Run) -> float:
        return run.wall_before + time.perf_counter() - self.began

    # Logs, checkpoints, failures ------------------------------------------------------------------

    def log(self) -> list[dict[str, float]]:
        """One line for each run: means since the line before of what updates returned, and where
        the run stands."""
        for run in self.going:
            self._not_finite(run)
        now = time.perf_counter()
        seconds = max(now - self.last_log[0], 1e-9)
        speed = {
            "updates_per_s": round((self.learner.updates - self.last_log[1]) / seconds, 3),
            "steps_per_s": round((self.step - self.last_log[2]) / seconds, 3),
            **{name: round(value, 3) for name, value in self.waited.items()},
        }
        means = {
            name: (value / self.learning.counts[name]).tolist()
            for name, value in self.learning.sums.items()
            if name in self.learning.counts
        }
        lines = []
        for run in self.going:
            line: dict[str, float] = {
                "step": run.step,
                "updates": self.learner.updates,
                "wall_s": round(self._wall(run), 3),
            }
            line |= (
                run.standing()
                | speed
                | {name: values[self.runs.index(run)] for name, values in means.items()}
            )
            run.logger.write(line)
            lines.append(line)
        self.learning.clear()
        self.waited = dict.fromkeys(self.waited, 0.0)
        self.last_log = (now, self.learner.updates, self.step)
        return lines

    def save(self) -> None:
        """A checkpoint of every run."""
        for run in self.going:
            if not self._not_finite(run):
                self._save(run)

    def _save(self, run: Run) -> None:
        """A checkpoint of a run, with what the update carries for it beside the agent."""
        row = self.runs.index(run)
        learned = {
            "optimizers": self.learner.optimizer_state(row),
            "updates": self.learner.updates,
            "sums": {name: value[row] for name, value in self.learning.sums.items()},
            "counts": self.learning.counts,
        }
        run.save(learned, self._wall(run))

    def _load(self, paths: list[Path]) -> None:
        """Continue every run from its checkpoint. Raises UserError where one is broken or does not
        fit."""
        try:
            learned = [run.load(path) for run, path in zip(self.runs, paths, strict=True)]
            self.learner.updates = learned[0]["updates"]
            self.learner.load_optimizer_states([own["optimizers"] for own in learned])
            self.learning.counts = learned[0]["counts"]
            for name in learned[0]["sums"]:
                self.learning.sums[name] = torch.stack([own["sums"][name] for own in learned]).to(
                    self.device
                )
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{paths[0]}: the checkpoint does not fit this run ({one_line(error)}): give "
                "another out"
            ) from error

    def _not_finite(self, run: Run) -> bool:
        """Whether something that a run has learned from is not finite, in which case it
        has failed."""
        row = self.runs.index(run)
        for name, value in self.learning.sums.items():
            if not torch.isfinite(value[row]):
                self._fail(run, f"{name} is not finite")
                return True
        return False

    def _fail(self, run: Run, why: str) -> None:
        """Leave a run as its last checkpoint has it; the others go on. Raises RunStopped where
        there are none."""
        run.failure = (
            f"stopped at step {run.step}: {why}; the last checkpoint is kept in {run.folder}"
        )
        run.close()
        if self.going:
            tqdm.write(f"seed {run.config.seed} {run.failure}; the others go on", file=sys.stderr)
        else:
            self._report_failures()

    def _report_failures(self) -> None:
        failures = [run.failure for run in self.runs if run.failure]
        if failures:
            raise RunStopped("; ".join(failures))


def seed_configs(config: DictConfig) -> list[DictConfig]:
    """What each seed would have been given alone: with `seeds` above 1, seeds seed .. seed + seeds
    - 1 in out/seed-N."""
    if config.seeds == 1:
        return [config]
    configs = []
    for seed in range(config.seed, config.seed + config.seeds):
        own = copy.deepcopy(config)
        own.seeds, own.seed, own.out = 1, seed, str(Path(config.out) / f"seed-{seed}")
        configs.append(own)
    return configs


def _newest_in_all(found: list[list[Path]]) -> list[Path] | None:
    """The newest checkpoint that every run has, None where none has any; raises UserError where
    they have none in common."""
    if not any(found):
        return None
    names = set.intersection(*({path.name for path in checkpoints} for checkpoints in found))
    if not names:
        folder = next(checkpoints[0].parents[2] for checkpoints in found if checkpoints)
        raise UserError(
            f"resume=true: the runs in {folder} have no checkpoint of the same step: continue "
            "them one by one with seed=N out=.../seed-N"
        )
    name = max(names)
    return [next(path for path in checkpoints if path.name == name) for checkpoints in found]
