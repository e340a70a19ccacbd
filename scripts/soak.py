"""Train tasks in turn while faults happen: soak.py OUT MINUTES [SEED [TASK,TASK...]].

Every few seconds a worker or the run itself is killed, the run gets SIGTERM, its clock jumps, or
its disk is full for a while: the last where OUT is a small file system of its own, as by `mount -t
tmpfs -o size=200m tmpfs OUT`. What ends is started again with resume=true. OUT gets soak.csv
(memory, open files and threads of each process over time), soak.png and the runs; the table is
printed, and the exit code is 1 if anything was lost, grew, or ended with a traceback. Linux only.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

TASKS = {
    "maze": ["task=maze"],
    "block_push": ["task=block_push"],
    "block_push pixels": ["task=block_push", "obs=pixels"],
    "adroit_door": ["task=adroit_door"],
    "adroit_hammer": ["task=adroit_hammer"],
    "metaworld_stick_pull": ["task=metaworld_stick_pull"],
    "metaworld_basketball": ["task=metaworld_basketball"],
    "cabinet_sparse": ["task=cabinet_sparse"],
    "cabinet_dense": ["task=cabinet_dense"],
    "ant_push": ["task=ant_push"],
    "cheetah_back": ["task=cheetah_back"],
    "half_cheetah": ["task=half_cheetah"],
    "humanoid": ["task=humanoid"],
    "gym": ["task=gym", "task.id=Pendulum-v1"],
}
CHECKPOINT = 150
WORDS = ["preset=debug", "steps=100000000", "runtime=eager", "device=cpu", "resume=true"]
WORDS += ["logger.log_every=50", f"logger.checkpoint_every={CHECKPOINT}"]
EVERY = 15.0
"""Seconds between faults, on the mean."""
FULL = 10.0
"""Seconds that a disk stays full."""
PATIENCE = 120.0
"""Seconds in which a run must have made a step."""
SMALL = 2**30
"""Bytes of a file system that may be filled."""
SETTLED = 0.5
"""Share of a process's life after which it must not grow."""
GROWTH = 1.05
"""Largest accepted ratio of memory, open files or threads after that."""
CLOCK = """
import os, time
own = time.time
def shifted():
    with open(os.environ["SOAK_CLOCK"]) as file:
        return own() + float(file.read() or 0)
time.time = shifted
"""


def family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if words[0] != "Z":
            parents.setdefault(int(words[1]), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def sample(pid: int) -> tuple[float, int, int]:
    """Memory in MB, open files and threads of a process and all below it."""
    memory, files, threads = 0.0, 0, 0
    for each in family(pid):
        folder = Path(f"/proc/{each}")
        try:
            memory += int((folder / "statm").read_text().split()[1]) * 4096 / 1e6
            files += len(list((folder / "fd").iterdir()))
            threads += len(list((folder / "task").iterdir()))
        except OSError:
            continue
    return memory, files, threads


class Soak:
    """One task's turn."""

    def __init__(self, name: str, out: Path, rng: random.Random) -> None:
        self.name, self.rng, self.root = name, rng, out
        self.out, self.log = out / name.replace(" ", "-"), out / f"{name.replace(' ', '-')}.log"
        self.clock = out / "clock"
        self.faults: Counter[str] = Counter()
        self.samples: list[tuple[int, float, float, int, int]] = []
        self.wrong: list[str] = []
        self.lives, self.last_fault = 0, "its start"
        self.start()

    def start(self) -> None:
        """Start the run, or go on with it."""
        train = Path(__file__).with_name("train.py")
        env = os.environ | {"SOAK_CLOCK": str(self.clock)}
        env["PYTHONPATH"] = f"{self.root / 'site'}:{os.environ.get('PYTHONPATH', '')}"
        words = [sys.executable, str(train), *TASKS[self.name], *WORDS, f"out={self.out}"]
        self.mark = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as log:
            self.process = subprocess.Popen(words, env=env, stdout=log, stderr=log)
        self.lives, self.began, self.last = self.lives + 1, time.monotonic(), self.step()

    def step(self) -> int:
        """Of the newest line of metrics; -1 where there is none."""
        lines = self.metrics()
        return int(lines[-1]["step"]) if lines else -1

    def metrics(self) -> list[dict[str, float]]:
        """All lines of metrics that are whole."""
        path = self.out / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait(self, seconds: float) -> None:
        """Let the run go on; start it again if it ends."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                self.ended()
                self.start()
            alive = time.monotonic() - self.began
            self.samples.append((self.lives, alive, *sample(self.process.pid)))
            time.sleep(1.0)

    def ended(self) -> None:
        """Look at what it said."""
        said = self.log.read_bytes()[self.mark :].decode(errors="replace")
        if "Traceback" in said:
            self.wrong.append(f"life {self.lives} ended with a traceback")
        if self.last_fault != "disk" and self.process.returncode > 0:
            self.wrong.append(f"life {self.lives} ended with {self.process.returncode}")

    def moves(self) -> None:
        """Wait for a new line of metrics."""
        until, before = time.monotonic() + PATIENCE, self.step()
        while self.step() <= before and time.monotonic() < until:
            self.wait(1.0)
        if self.step() <= before:
            self.wrong.append(f"no step in {PATIENCE:.0f} s after {self.last_fault}")

    def fault(self) -> None:
        """Let one happen."""
        workers = family(self.process.pid)[
            3:
        ]  # after the run, its resource tracker and fork server
        usage = os.statvfs(self.root)
        small = usage.f_blocks * usage.f_frsize <= SMALL
        kinds = ["kill", "term", *["clock"] * 2, *["worker"] * 3 * bool(workers)]
        kinds += ["disk"] * 2 * small
        kind = self.last_fault = self.rng.choice(kinds)
        self.faults[kind] += 1
        if kind == "kill":
            self.process.kill()
            self.process.wait()
        elif kind == "term":
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.wrong.append(f"SIGTERM was not met in {PATIENCE:.0f} s")
                self.process.kill()
        elif kind == "worker":
            try:
                os.kill(self.rng.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                self.faults[kind] -= 1
        elif kind == "clock":
            self.clock.write_text(str(self.rng.uniform(-1e6, 1e6)))
        else:
            filler = self.root / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(2**16)):
                        pass
                except OSError:
                    pass
            self.wait(FULL)
            filler.unlink()
        self.moves()

    def finish(self) -> list[str]:
        """End the run; a row of the table."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.wrong.append("the last SIGTERM was not met")
            self.process.kill()
        self.ended()
        steps = [int(line["step"]) for line in self.metrics()]
        if steps != sorted(set(steps)):
            self.wrong.append("lines of metrics twice")
        every = min((b - a for a, b in zip(steps, steps[1:], strict=False)), default=0)
        if steps and steps[-1] // max(every, 1) != len(steps):
            self.wrong.append("lines of metrics missing")
        for life in range(1, self.lives + 1):
            own = [row for row in self.samples if row[0] == life]
            if len(own) < 60:
                continue
            half = own[int(SETTLED * len(own)) :]
            third = len(half) // 3
            for column, what in ((2, "memory"), (3, "open files"), (4, "threads")):
                first = max(row[column] for row in half[:third])
                last = min(row[column] for row in half[-third:])
                if last > GROWTH * first:
                    self.wrong.append(f"{what} of life {life}: {first:.0f} to {last:.0f}")
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        peak = max(row[2] for row in self.samples)
        return [self.name, str(self.step()), faults, f"{peak:.0f}", "; ".join(self.wrong) or "-"]


def draw(rows: list[tuple[str, int, float, float, int, int]], path: Path) -> None:
    """Memory, open files and threads over the seconds of each process's life."""
    _, panels = plt.subplots(3, 1, figsize=(8, 8), sharex=True, layout="constrained")
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == name]
        for column, panel in enumerate(panels, 3):
            panel.plot([row[column] for row in own], label=name, linewidth=0.8)
    for panel, what in zip(panels, ("memory, MB", "open files", "threads"), strict=True):
        panel.set_ylabel(what)
    panels[0].legend(fontsize=6, ncols=2)
    panels[-1].set_xlabel("seconds of the task's turn")
    plt.savefig(path, dpi=120)


def main() -> None:
    """Give every task an equal share of the time."""
    out, minutes = Path(sys.argv[1]).resolve(), float(sys.argv[2])
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    (out / "site").mkdir(parents=True, exist_ok=True)
    (out / "site" / "sitecustomize.py").write_text(CLOCK)
    (out / "clock").write_text("0")
    names = sys.argv[4].split(",") if len(sys.argv) > 4 else list(TASKS)
    share, rows, bad = 60 * minutes / len(names), [], False
    print("| task | step | faults | peak memory, MB | wrong |\n| --- | --- | --- | --- | --- |")
    for name in names:
        until = time.monotonic() + share
        soak = Soak(name, out, rng)
        soak.moves()
        while time.monotonic() < until:
            soak.wait(rng.expovariate(1 / EVERY))
            soak.fault()
        row = soak.finish()
        bad |= row[-1] != "-"
        print("| " + " | ".join(row) + " |", flush=True)
        rows += [(name, *each) for each in soak.samples]
    with (out / "soak.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "life", "second", "memory_mb", "open_files", "threads"])
        writer.writerows([[*row[:2], *(round(value, 1) for value in row[2:])] for row in rows])
    draw(rows, out / "soak.png")
    sys.exit(bad)


if __name__ == "__main__":
    main()
