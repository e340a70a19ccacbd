"""`vis-rpg doctor`: what it says of what works and of what does not."""

from __future__ import annotations

import sys

import pytest
from omegaconf import OmegaConf

from perception.ops.kernels import MULTIPLIES_BFLOAT16
from vis_rpg import doctor


def test_a_task_that_starts_lacks_nothing_and_one_that_does_not_says_why() -> None:
    assert doctor.lacks({"name": "maze"}, "state") is None
    why = doctor.lacks({"name": "bandit"}, "pixels")
    assert why == "obs=pixels for vis_rpg/Bandit-v0: it has no picture; use obs=state"


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        ("import os; os.kill(os.getpid(), 11)", "its process ended with signal 11"),
        ("import time; time.sleep(60)", "has not started within 2 s"),
        ("raise SystemExit(4)", "ended with 4"),
    ],
)
def test_what_breaks_a_process_is_one_line(
    probe: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PROBE", probe)
    monkeypatch.setattr(doctor, "SECONDS", 2)
    assert doctor.lacks({"name": "maze"}, "state") == says


def test_an_extra_without_all_of_its_packages_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ["torch", 'pytest>=1; extra == "dev"', "no-such-package>=2; extra == 'more'"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    missing = "no-such-package is missing: pip install 'vis-rpg[more]'"
    assert doctor.extras() == {"dev": None, "more": missing}


def test_each_finding_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "lacks", lambda task, obs: "a picture" if obs == "pixels" else None)
    doctor.main(OmegaConf.create())
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:36].strip(): line[36:41].strip() for line in lines}
    assert len(rows) == len(lines)
    assert rows["task=block_push obs=state"] == "yes"
    assert rows["task=cabinet_sparse obs=pixels"] == "no"
    assert rows["precision=bfloat16 on a CPU"] == ("yes" if MULTIPLIES_BFLOAT16 else "no")
    assert f"torch {sys.modules['torch'].__version__}" in lines[1]
