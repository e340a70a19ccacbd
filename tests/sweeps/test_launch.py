"""Jobs of a sweep run by Hydra's launcher plugins; none is lost with the machine that runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.runs import ROOT, comparable, differences, run_script, trained
from vis_rpg.training import checkpoint

WORDS = ("task=maze", "runtime=eager", "logger.checkpoint_every=50")
PATIENCE_S = 500
"""For a whole sweep on a busy machine."""


def needs(plugin: str, extra: str) -> pytest.MarkDecorator:
    lacking = find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None
    return pytest.mark.skipif(lacking, reason=f"{plugin}: pip install 'vis-rpg[{extra}]'")


needs_joblib = needs("hydra_joblib_launcher", "joblib")
needs_submitit = needs("hydra_submitit_launcher", "slurm")
needs_ray = needs("hydra_ray_launcher", "ray")


def words(folder: Path, launcher: str, *more: str) -> list[str]:
    """A sweep of which each job is a tiny run in folder/SEED."""
    return [
        "--multirun",
        f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={folder}/sweep",
        "preset=debug",
        "device=cpu",
        f"out='{folder}/${{seed}}'",
        *WORDS,
        *more,
    ]


def started(folder: Path, launcher: str, *more: str) -> subprocess.Popen[bytes]:
    """A sweep in a process of its own; folder/log is what it says."""
    return subprocess.Popen(
        [sys.executable, "scripts/train.py", *words(folder, launcher, *more)],
        cwd=ROOT,
        stdout=open(folder / "log", "wb"),  # noqa: SIM115 (the process has it)
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"},
    )


def wait_until(holds: Callable[[], Any], process: subprocess.Popen[bytes], folder: Path) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    return found


def trainer_in(run: Path) -> int | None:
    """The process that trains in a folder, once it has written a checkpoint, until it is done."""
    if not checkpoint.complete(run / "checkpoints") or (run / "summary.json").exists():
        return None
    found = re.match(r"process (\d+)", (run / ".lock").read_text())
    return int(found[1]) if found else None


@needs_joblib
def test_joblib_runs_jobs_in_processes_and_tells_which_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    (tmp_path / "1").write_text("a file where a run's folder should be")
    sweep = words(tmp_path, "joblib", "hydra.launcher.n_jobs=2", "steps=50", "seed=0,1,2")
    assert run_script(monkeypatch, "train", *sweep) == 2
    assert (tmp_path / "0" / "summary.json").exists() and (tmp_path / "2/summary.json").exists()
    holders = {re.match(r"process (\d+)", (tmp_path / s / ".lock").read_text())[1] for s in "02"}
    assert str(os.getpid()) not in holders
    [told] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert told.startswith(f"error: seed=1: out={tmp_path}/1: cannot be written")


@needs_joblib
def test_a_setting_that_a_launcher_does_not_have_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    sweep = words(tmp_path, "joblib", "hydra.launcher.jobs=2", "seed=0,1")
    assert run_script(monkeypatch, "train", *sweep) == 2
    said = capfd.readouterr().err
    assert re.match(r"error: hydra/launcher=joblib: .*hydra.launcher.jobs.*\n$", said), said


@needs_submitit
@pytest.mark.slow
def test_a_preempted_submitit_job_is_queued_again_and_equals_one_that_was_not(
    tmp_path: Path,
) -> None:
    sweep = started(tmp_path, "submitit_local", "steps=600", "seed=0,1", "resume=true")
    job = wait_until(lambda: trainer_in(tmp_path / "1"), sweep, tmp_path)
    os.kill(job, signal.SIGUSR2)
    assert sweep.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    logs = list(tmp_path.glob("sweep/.submitit/*/*_log.out"))
    assert sum("Requeued job" in log.read_text() for log in logs) == 1
    for seed in (0, 1):
        whole = trained(*WORDS, "steps=600", f"seed={seed}")
        assert differences(comparable(tmp_path / str(seed)), comparable(whole)) == []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without processors and two nodes with one each, as on three machines."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, **memory)
        yield made
    finally:
        made.shutdown()


@needs_ray
@pytest.mark.slow
def test_jobs_of_a_ray_node_that_dies_go_on_elsewhere_from_their_checkpoints(
    tmp_path: Path, cluster: Any
) -> None:
    more = ["steps=600", "seed=range(4)", "resume=true"]
    address = f"hydra.launcher.ray.init.address='{cluster.address}'"
    sweep = started(tmp_path, "ray", address, *more)
    lost = list(cluster.worker_nodes)[-1]
    [raylet] = [each.process.pid for each in lost.all_processes["raylet"]]

    def there() -> list[Path]:
        runs = [path for path in tmp_path.glob("[0-9]") if trainer_in(path)]
        return [run for run in runs if parent(trainer_in(run)) == raylet]

    [killed] = wait_until(there, sweep, tmp_path)
    cluster.remove_node(lost, allow_graceful=False)
    assert not (killed / "summary.json").exists()
    assert sweep.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    for seed in range(4):
        out = tmp_path / str(seed)
        assert log.count(f"no checkpoint in {out}: this run begins anew") == 1, "resumed"
        whole = trained(*WORDS, "steps=600", f"seed={seed}")
        assert differences(comparable(out), comparable(whole)) == []


def parent(process: int | None) -> int:
    """The id of a process's parent; 0 where the process has ended."""
    try:
        return int(re.search(r"PPid:\s*(\d+)", Path(f"/proc/{process}/status").read_text())[1])
    except OSError:
        return 0
