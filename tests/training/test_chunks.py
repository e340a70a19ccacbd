"""Chunks: files that are whole or not there, and no file that nothing refers to."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from vis_rpg.errors import UserError
from vis_rpg.training import chunks as module
from vis_rpg.training.chunks import Chunks, rows_of, write_tensors


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path / "new" / "folder", "replay")
    tensors = {
        "a": torch.arange(6).view(3, 2),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.zeros(3, 0),
    }
    chunks.append(tensors, 0, 3)
    assert chunks.end == 3
    read = chunks.read((0, 3))
    assert read.keys() == tensors.keys()
    assert all(
        torch.equal(read[key], tensors[key]) and read[key].dtype == tensors[key].dtype
        for key in tensors
    )


def test_only_files_that_are_referred_to_stay(tmp_path: Path) -> None:
    replay, visits = Chunks(tmp_path, "replay"), Chunks(tmp_path, "visits")
    for start in (0, 2, 4):
        replay.append({"a": torch.zeros(2)}, start, start + 2)
        visits.append({"a": torch.zeros(2)}, start, start + 2)
    (tmp_path / "replay-0000000006-0000000008.part").write_bytes(b"cut off by a kill")
    replay.keep({(2, 4), (4, 6)})
    assert sorted(path.name[:17] for path in tmp_path.iterdir()) == [
        "replay-0000000002",
        "replay-0000000004",
        "visits-0000000000",
        "visits-0000000002",
        "visits-0000000004",
    ]


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_tensors(path, {"a": torch.zeros(3)})
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_readable_for_whom_other_files_are(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)})
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_disk_that_is_truly_full_is_an_os_error(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import errno, sys, torch
        from pathlib import Path
        from vis_rpg.training.chunks import write_tensors
        try:
            write_tensors(Path(sys.argv[1]) / "x.safetensors", {"a": torch.zeros(1_000_000)})
        except OSError as error:
            left = list(Path(sys.argv[1]).iterdir())
            sys.exit(0 if error.errno == errno.ENOSPC and not left else 3)
        """
    )
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "disk").mkdir()
    mount = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=256k tmpfs {tmp_path}/disk"]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    mount[-1] += f" && exec {sys.executable} {tmp_path}/script.py {tmp_path}/disk"
    done = subprocess.run(mount, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "foreign"])
def test_a_broken_chunk_is_named_in_one_line(tmp_path: Path, harm: str) -> None:
    chunks = Chunks(tmp_path, "replay")
    chunks.append({"a": torch.zeros(100)}, 0, 100)
    path = chunks.path((0, 100))
    whole = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes({"truncated": whole[:-20], "empty": b"", "foreign": b"PK\3\4" * 50}[harm])
    with pytest.raises(
        UserError,
        match=r"replay-0000000000-0000000100.safetensors: needed by a checkpoint of this run",
    ) as error:
        chunks.read((0, 100))
    assert "\n" not in str(error.value)


def test_rows_are_picked_by_their_numbers() -> None:
    assert rows_of({"a": torch.arange(10)}, torch.tensor([7, 0, 7]))["a"].tolist() == [7, 0, 7]
