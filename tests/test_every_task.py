"""Every task trains from state and from pixels for 300 interactions, and evaluates to a video."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import av
import pytest

import vis_rpg
from tests.runs import lines, trained
from vis_rpg.analysis import video
from vis_rpg.analysis.evaluation import evaluate
from vis_rpg.envs import IDS

OBS = {"state": ("obs=state",), "pixels": ("obs=pixels", "perception=cnn", "agent.batch_size=4")}
QUICK = {
    ("block_push", "state"),
    *(
        (name, "pixels")
        for name in (
            "block_push",
            "cheetah_back",
            "metaworld_basketball",
            "adroit_hammer",
            "cabinet_sparse",
        )
    ),
}
"""One of each kind: `make test` takes these, `make nightly` the others too."""


def case(name: str, obs: str) -> Any:
    """A parameter with the marks that it needs."""
    marks = [] if (name, obs) in QUICK else [pytest.mark.slow]
    if name.startswith("cabinet"):  # whose videos SAPIEN draws
        marks.append(pytest.mark.vulkan)
    return pytest.param(name, OBS[obs], id=f"{name}-{obs}", marks=marks)


@pytest.mark.usefixtures("nothing_is_left_of_a_test")
@pytest.mark.parametrize(
    ("name", "obs"), [case(name, obs) for name in IDS if name != "bandit" for obs in OBS]
)  # it has its own learner
def test_it_trains_and_evaluates_to_a_video(
    name: str, obs: tuple[str, ...], tmp_path: Path
) -> None:
    run = trained(f"task={name}", *obs, "steps=300")
    written = lines(run)
    losses = [value for line in written for key, value in line.items() if "loss" in key]
    assert written[-1]["step"] == 300
    assert losses and all(math.isfinite(value) for value in losses)

    actor, env = vis_rpg.load(run)
    assert math.isfinite(evaluate(actor, env, 1).eval_return)
    video.write_mp4(
        tmp_path / "rollout.mp4", video.mosaic(video.rollout_rows(actor, env, rows=1, columns=1))
    )
    env.close()
    with av.open(str(tmp_path / "rollout.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) > 1
    assert any((frame != frames[0]).any() for frame in frames[1:])
