"""bash completes what `vis-rpg --completion` knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vis_rpg.cli import COMMANDS
from vis_rpg.completion import script
from vis_rpg.resources import CONFIG_DIR

ASK = """
source "$1"
COMP_LINE="$2" COMP_POINT=${#2} COMP_WORDS=($2)
_vis_rpg
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(script({name: config for name, (config, *_) in COMMANDS.items()}, CONFIG_DIR))
    return path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vis-rpg visualise-s", ["visualise-slots", "visualise-states"]),
        ("vis-rpg train task=block", ["block_push"]),  # bash keeps what stands before the =
        (
            "vis-rpg train agent.latent.kind=",
            ["gaussian", "categorical", "mixed", "sphere", "none"],
        ),
        ("vis-rpg train task=maze seed", ["seed=", "seeds="]),
        ("vis-rpg train resume=", ["true", "false"]),
        ("vis-rpg tune task=block", ["block_push"]),  # its trials are trained
        ("vis-rpg plot-curves agent.", [""]),
        ("vis-rpg train out=/t", [""]),  # then bash completes files
        ("vis-rpg trian se", [""]),
    ],
)
def test_bash_completes(written: Path, line: str, expected: list[str]) -> None:
    words = ["bash", "-c", ASK, "bash", str(written), line]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "error" not in done.stderr
    assert done.stdout.splitlines() == expected


def test_every_command_is_completed(written: Path) -> None:
    words = ["bash", "-c", ASK, "bash", str(written), "vis-rpg "]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert found == [*COMMANDS, "--help", "--version", "--completion"]
