"""One process at a time trains in a folder, and a process that dies gives the folder back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer

import pytest

from tests.small import config
from vis_rpg.errors import UserError
from vis_rpg.training import trainer
from vis_rpg.training.lock import lock
from vis_rpg.training.trainer import Trainer


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[int]:
    """Another process, whose id is given, holds the folder."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        file = lock(folder)
        os.write(tells, b"held")
        signal.pause()
        file.close()
    try:
        assert os.read(told, 4) == b"held"
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "words", [(), ("resume=true",), ("seeds=2",)], ids=["new", "resume", "seeds"]
)
def test_a_folder_in_use_is_refused_in_one_line_until_its_process_dies(
    tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOST_S", 0.5)
    settings = config("task=maze", f"out={tmp_path / 'run'}", *words)
    folder = tmp_path / "run" / "seed-1" if "seeds=2" in words else tmp_path / "run"
    with held_elsewhere(folder) as process:
        with pytest.raises(
            UserError,
            match=rf"out={folder}: process {process} on .* is training there: wait until it ends",
        ) as error:
            Trainer(settings)
        assert "\n" not in str(error.value)
        assert not list(tmp_path.rglob("metrics.jsonl")) and not list(
            tmp_path.rglob("config.yaml")
        ), "nothing is touched"
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        Trainer(settings)


def test_who_can_wait_gets_the_folder_of_a_process_that_dies(tmp_path: Path, capfd) -> None:
    with held_elsewhere(tmp_path) as process:
        Timer(1.0, os.kill, (process, signal.SIGKILL)).start()
        lock(tmp_path, patience=60).close()
        assert f"process {process} on" in capfd.readouterr().err
        os.waitpid(process, 0)


def test_a_run_that_ends_or_cannot_begin_gives_its_folder_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too small"):
        Trainer(config("task=maze", f"out={tmp_path}", "agent.replay_capacity=10"))
    trainer = Trainer(config("task=maze", f"out={tmp_path}", "steps=50"))
    with pytest.raises(UserError, match="is training there"):
        lock(tmp_path)
    trainer.run()
    lock(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match="file/run: cannot be written .*Not a directory.*; give another out"
    ):
        lock(tmp_path / "file" / "run")
