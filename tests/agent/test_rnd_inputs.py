"""Bonuses to compare: what they read is another, what the agent sees is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perception.encoders.cnn import CnnPerception
from perception.encoders.state import StatePerception
from tests.runs import comparable, differences
from tests.small import Seen, agent, batch, config
from vis_rpg.agent.make import make_agent
from vis_rpg.agent.rnd import ObjectRND, make_rnd
from vis_rpg.agent.rnd_inputs import FrameNovelty, GlobalNovelty, TrueNovelty
from vis_rpg.config import check
from vis_rpg.envs.make import make_env
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
    novelty = TrueNovelty(task)
    assert (novelty.novelty_dim, novelty.object_count) == (
        of_state.novelty_dim,
        of_state.object_count,
    )
    torch.testing.assert_close(
        novelty(state, torch.from_numpy(positions)),
        of_state.novelty({"state": state[None]})[0],
        rtol=0,
        atol=1e-4,
    )


def test_a_task_without_a_plane_has_no_true_novelty() -> None:
    with pytest.raises(
        UserError, match="exploration.rnd_input=oracle_positions: task=gym declares no plane"
    ):
        TrueNovelty(Task("gym", ()))


def test_the_global_novelty_is_that_of_the_agent_that_sees_by_a_cnn() -> None:
    frames = torch.randint(
        0, 256, (3, 2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    novelty = GlobalNovelty(seed=3)(frames, torch.zeros(3, 0, 2))
    torch.testing.assert_close(
        novelty, CnnPerception(seed=3).novelty({"frame": frames.transpose(0, 1)})[0]
    )
    assert not torch.allclose(novelty, GlobalNovelty(seed=4)(frames, torch.zeros(3, 0, 2)))


def test_a_bonus_on_frames_is_convolutional_and_learns_what_pairs_have_been_seen() -> None:
    torch.manual_seed(0)
    settings = config("obs=pixels", "perception=cnn", "exploration.rnd_input=frames").exploration
    rnd = make_rnd(FrameNovelty(), settings)
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
        rnd.error(seen).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(rnd.error(seen).max()) < 0.9 * float(rnd.error(new).min())
        assert rnd.error(torch.cat([seen, new])).shape == (3, 3), "one of each pair"


def three_objects(per_object: int = 5) -> tuple[ObjectRND, Tensor]:
    torch.manual_seed(0)
    return ObjectRND(3 * per_object, 16, 0, objects=3), torch.randn(7, 3 * per_object)


def test_objects_scored_alone_sum_up_and_only_those_present_count() -> None:
    rnd, novelty = three_objects()
    alone = torch.stack([rnd.error(novelty, torch.eye(3)[i].expand(7, -1)) for i in range(3)])
    torch.testing.assert_close(rnd.error(novelty), alone.sum(0))
    gone = torch.tensor([1.0, 0.0, 1.0]).expand(7, -1)
    moved = novelty.clone()
    moved[:, 5:10] += 3
    torch.testing.assert_close(rnd.error(moved, gone), alone[0] + alone[2])
    assert not rnd.error(novelty, torch.zeros(7, 3)).any()


def test_one_network_scores_all_objects_and_knows_which_is_which() -> None:
    rnd, novelty = three_objects()
    assert rnd.predictor[0].in_features == 5 + 3
    same = novelty[:, :5].repeat(1, 3)
    errors = torch.stack([rnd.error(same, torch.eye(3)[i].expand(7, -1)) for i in range(3)])
    assert (errors[0] - errors[1]).abs().min() > 1e-4


def test_the_bonus_of_an_absent_slot_is_that_of_no_slot() -> None:
    class Slots(Seen):
        """Three numbers of `x` are three objects' novelty; the last three their presence."""

        object_count = 3

        def objects(self, window: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return window["x"][..., :3, None], window["x"][..., 3:6]

    of = agent(
        "exploration.per_object=true", "exploration.warmup_updates=0", perception=Slots((6,))
    )
    data = batch(of)
    data.window["x"][..., 3:6] = torch.tensor([1.0, 0.0, 1.0])
    novelty, presence = of.novelty_of(data.window)
    error = of.rnd.error(novelty, presence)
    data.window["x"][..., 1] += 5
    torch.testing.assert_close(of.rnd.error(*of.novelty_of(data.window)), error)
    data.window["x"][..., 4] = 1
    assert (of.rnd.error(*of.novelty_of(data.window)) > error).all()


def test_runs_that_compare_novelties_differ_in_the_bonus_alone(tmp_path: Path) -> None:
    """While actions are random all runs see, do and store the same but the novelty, and begin from
    the same weights; then each learns."""
    words = {
        kind: (f"exploration.rnd_input={kind}",)
        for kind in ("slots", "moving_slots", "frame_embedding", "frames", "oracle_positions")
    }
    words["sum"] = ("exploration.per_object=true",)
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
        assert trainer.learning.sums["rnd_loss"].isfinite().all()
    objects = trainers["slots"].runs[0]
    before = slice(0, 30)
    for name, trainer in trainers.items():
        run = trainer.runs[0]
        for key, start in starts[name].items():
            assert key.startswith(("rnd.", "novelty.")) or torch.equal(
                start, starts["slots"][key]
            ), key
        for key in ("obs.slots", "obs.coordinates", "action"):
            assert torch.equal(run.replay.rows[key][before], objects.replay.rows[key][before])
        rows = run.replay.rows
        assert (
            not rows["obs.novelty"][0].any()
            if name in ("frame_embedding", "oracle_positions")
            else "obs.novelty" not in rows
        )
        assert rows["obs.frame"][0].any() if name == "frames" else "obs.frame" not in rows
    truth = trainers["oracle_positions"].runs[0]
    visits = truth.visits.read()["positions"][: 2 * 10]
    stored = truth.replay.rows["obs.novelty"][2 : 2 + 2 * 10]
    torch.testing.assert_close(stored, TrueNovelty(truth.task)(visits, visits))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("exploration.rnd_input=frame_embedding",),
            "exploration.rnd_input=frame_embedding reads frames",
        ),
        (("exploration.rnd_input=frames",), "exploration.rnd_input=frames reads frames"),
        (
            ("exploration.rnd_input=moving_slots",),
            "exploration.rnd_input=moving_slots reads slots, which perception=state does not see",
        ),
        (
            ("obs=pixels", "perception=cnn", "exploration.rnd_input=moving_slots"),
            "which perception=cnn does not see",
        ),
        (
            ("exploration.rnd_input=objects",),
            "exploration.rnd_input=objects: choose one of slots, moving_slots, frame_embedding, "
            "frames, oracle_positions",
        ),
    ],
)
def test_a_bonus_that_cannot_be_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(config(*words))


@pytest.mark.parametrize(
    "words", [("obs=pixels", "exploration.rnd_input=frames"), ("obs=pixels", "perception=cnn")]
)
def test_without_objects_none_can_be_scored_alone(words: tuple[str, ...]) -> None:
    settings = config("task=block_push", *words, "exploration.per_object=true")
    env = make_env(settings.task, "state")
    with pytest.raises(
        UserError, match="exploration.per_object=true: the novelty here knows no objects"
    ):
        make_agent(settings, env)


def test_a_run_with_another_novelty_resumes_exactly(tmp_path: Path) -> None:
    """The frozen network and what replay stores of the novelty come back with the checkpoint."""
    words = (*PUSH, *SMALL, "exploration.rnd_input=frame_embedding", "logger.checkpoint_every=20")
    Trainer(config(*words, "steps=60", f"out={tmp_path / 'whole'}")).run()
    for steps, resume in ((46, "false"), (60, "true")):
        Trainer(
            config(*words, f"steps={steps}", f"resume={resume}", f"out={tmp_path / 'parts'}")
        ).run()
    first, second = comparable(tmp_path / "parts"), comparable(tmp_path / "whole")
    assert differences(first, second) == []
    assert second["replay"] and any("novelty" in name for name in second["agent"])
