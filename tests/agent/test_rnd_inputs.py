"""Bonuses to compare: what they read is another, what the agent sees is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from perception.encoders.cnn import CnnPerception
from perception.encoders.state import StatePerception
from tests.runs import comparable, differences
from tests.small import config
from vis_rpg.agent.rnd import ObjectRND
from vis_rpg.agent.rnd_inputs import FrameEmbedding, OraclePositions
from vis_rpg.checks import check
from vis_rpg.envs.tasks.block_push import LIMIT, make_task
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError
from vis_rpg.training.trainer import Trainer

PUSH = ("task=block_push", "task.blocks=2", "obs=pixels")
SMALL = (
    "agent.envs=2",
    "steps=40",
    "agent.seed_steps=32",
    "agent.batch_size=4",
    "exploration.batch_size=4",
    "exploration.warmup_updates=1",
)


def test_true_positions_from_pixels_are_as_novel_as_the_coordinates_of_the_state() -> None:
    task, generator = make_task(2), np.random.default_rng(0)
    positions = generator.uniform(-LIMIT, LIMIT, (5, 3, 2))
    state = torch.from_numpy(positions).float().flatten(1)
    of_state = StatePerception(6, task.object_coordinates)
    novelty = OraclePositions(task)
    assert novelty.spec.shape == (of_state.rnd_input_dim,)
    torch.testing.assert_close(
        novelty(state, torch.from_numpy(positions)),
        of_state.rnd_input({"state": state[None]})[0],
        rtol=0,
        atol=1e-4,
    )


def test_a_task_without_a_plane_has_no_true_novelty() -> None:
    with pytest.raises(
        UserError, match="exploration.rnd_input=oracle_positions: task=gym declares no plane"
    ):
        OraclePositions(Task("gym", ()))


def test_the_global_novelty_is_that_of_the_agent_that_sees_by_a_cnn() -> None:
    frames = torch.randint(
        0, 256, (3, 2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    novelty = FrameEmbedding(seed=3)(frames, torch.zeros(3, 0, 2))
    torch.testing.assert_close(
        novelty, CnnPerception(seed=3).rnd_input({"frame": frames.transpose(0, 1)})[0]
    )
    assert not torch.allclose(novelty, FrameEmbedding(seed=4)(frames, torch.zeros(3, 0, 2)))


def test_a_bonus_on_frames_is_convolutional_and_learns_what_pairs_have_been_seen() -> None:
    torch.manual_seed(0)
    rnd = ObjectRND(None, 0, warmup=100)
    assert [
        layer.kernel_size
        for net in (rnd.predictor, rnd.target)
        for layer in net.cnn
        if isinstance(layer, nn.Conv2d)
    ] == 8 * [(3, 3)]
    seen, new = torch.zeros(2, 2, 3, 64, 64, 3, dtype=torch.uint8)
    for i in range(3):  # a square beside the one that has been seen
        seen[:, i, 8 + 16 * i : 20 + 16 * i, 8:20] = new[:, i, 8 + 16 * i : 20 + 16 * i, 40:52] = (
            255
        )
    optimizer = torch.optim.Adam(rnd.predictor.parameters(), 1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        rnd.prediction_error(seen).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(rnd.prediction_error(seen).max()) < 0.9 * float(
            rnd.prediction_error(new).min()
        )
        assert rnd.prediction_error(torch.cat([seen, new])).shape == (3, 3), "one of each pair"


def test_runs_that_compare_novelties_differ_in_the_bonus_alone(tmp_path: Path) -> None:
    """While actions are random all runs see, do and store the same but the novelty, and begin from
    the same weights; then each learns."""
    words = {
        kind: (f"exploration.rnd_input={kind}",)
        for kind in ("slots", "moving_slots", "frame_embedding", "frames", "oracle_positions")
    }
    trainers = {
        name: Trainer(config(*PUSH, *SMALL, *own, f"out={tmp_path / name}"))
        for name, own in words.items()
    }
    starts = {
        name: {key: value.clone() for key, value in t.runs[0].agent.state_dict().items()}
        for name, t in trainers.items()
    }
    for trainer in trainers.values():
        assert trainer.run()[0]["updates"] == 4
        assert trainer.learner.sums["rnd_loss"].isfinite().all()
    objects = trainers["slots"].runs[0]
    before = slice(0, 30)
    for name, trainer in trainers.items():
        run = trainer.runs[0]
        for key, start in starts[name].items():
            assert key.startswith(("rnd.", "rnd_input.")) or torch.equal(
                start, starts["slots"][key]
            ), key
        columns, expected = (own.replay.storage.columns() for own in (run, objects))
        for key in ("obs.slots", "obs.coordinates", "action"):
            assert torch.equal(columns[key][before], expected[key][before])
        own = name in ("frame_embedding", "oracle_positions")
        assert not columns["obs.rnd_input"][0].any() if own else "obs.rnd_input" not in columns
        assert columns["obs.frame"][0].any() if name == "frames" else "obs.frame" not in columns
    truth = trainers["oracle_positions"].runs[0]
    visits = truth.visits.read()["positions"][: 2 * 10]
    stored = truth.replay.storage.obs["rnd_input"][2 : 2 + 2 * 10]
    torch.testing.assert_close(stored, OraclePositions(truth.task)(visits, visits))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("exploration.rnd_input=frame_embedding",),
            "exploration.rnd_input=frame_embedding reads frames",
        ),
        (("exploration.rnd_input=frames",), "exploration.rnd_input=frames reads frames"),
        (
            ("obs=pixels", "perception=cnn", "exploration.rnd_input=moving_slots"),
            "which perception=cnn does not see",
        ),
        (
            ("exploration.rnd_input=objects",),
            "exploration.rnd_input=objects: choose one of slots, moving_slots, moving_scene, "
            "displaced_slots, "
            "frame_embedding, frames, oracle_positions",
        ),
    ],
)
def test_a_bonus_that_cannot_be_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(config(*words))


@pytest.mark.parametrize("reads", ["frame_embedding", "displaced_slots"])
def test_a_run_with_another_novelty_resumes_exactly(tmp_path: Path, reads: str) -> None:
    """A frozen network, what replay stores for the bonus and where things began come back with the
    checkpoint."""
    words = (*PUSH, *SMALL, f"exploration.rnd_input={reads}", "logger.checkpoint_every=20")
    Trainer(config(*words, "steps=60", f"out={tmp_path / 'whole'}")).run()
    for steps, resume in ((46, "false"), (60, "true")):
        Trainer(
            config(*words, f"steps={steps}", f"resume={resume}", f"out={tmp_path / 'parts'}")
        ).run()
    first, second = comparable(tmp_path / "parts"), comparable(tmp_path / "whole")
    assert differences(first, second) == []
    assert second["replay"]
    if reads == "frame_embedding":
        assert any("rnd_input" in name for name in second["agent"])
