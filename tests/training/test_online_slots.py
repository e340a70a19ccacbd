"""Perception that goes on learning: what is stored follows it, and its drift is no novelty."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from perception.slots.model import SlotConfig, SlotModel
from perception.slots.perception import SlotPerception
from tests.runs import comparable, differences, facts, final
from tests.small import changed, config, weights
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.make import make_agent
from vis_rpg.config import check
from vis_rpg.envs.make import make_env
from vis_rpg.errors import UserError
from vis_rpg.training import online_slots as module
from vis_rpg.training.online_slots import DISCOVERY_STEPS, ROWS, OnlineSlotTraining
from vis_rpg.training.replay_buffer import ReplayBuffer, bytes_needed
from vis_rpg.training.trainer import Trainer

ENVS = 3
PUSH = (
    "task=block_push",
    "task.blocks=1",
    "obs=pixels",
    f"agent.envs={ENVS}",
    "perception.learn_every=1",
)
SMALL = ("agent.batch_size=4", "exploration.batch_size=4")


class Counting:
    """Stands for a slot model: the slots of a frame say the how manieth of its episode it is, and
    the frame's own mark."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, frames: Tensor, previous: Tensor, is_first: Tensor) -> Any:
        self.read += len(frames)
        place = torch.where(is_first, 0.0, previous[:, 0, 0] + 1)
        slots = torch.stack([place, frames[:, 0, 0, 0].float()], 1)[:, None]
        count, width = previous.shape[1:]
        return SimpleNamespace(
            slots=slots.expand(-1, count, 2).repeat(1, 1, width // 2),
            coordinates=place[:, None, None].expand(-1, count, 4),
        )


def by_hand(capacity: int = 2000) -> tuple[OnlineSlotTraining, Any]:
    """An adaptation of an agent that sees BlockPush, and a function that puts a step of every
    environment into its replay: frames are black but for the first number, the how manieth of its
    episode it is (from 1); episodes have lengths of their own."""
    settings = config(*PUSH, *SMALL)
    agent = make_agent(settings, make_env(settings.task, "state"))
    perception = agent.model.perception
    replay = ReplayBuffer(
        capacity,
        agent.storage,
        agent.action_dim,
        agent.space.dim,
        perception.history,
        ENVS,
        torch.device("cpu"),
    )
    adaptation = OnlineSlotTraining(agent, Actor(agent, ENVS), replay, 1, ENVS, seed=0)
    ages = torch.zeros(ENVS, dtype=torch.int64)

    def seen(which: Tensor) -> dict[str, Tensor]:
        frame = torch.zeros(len(which), 64, 64, 3, dtype=torch.uint8)
        frame[:, 0, 0, 0] = (ages[which] + 1).to(torch.uint8)
        blank = {
            name: torch.zeros(
                len(which), *agent.storage[name].shape, dtype=agent.storage[name].dtype
            )
            for name in ("slots", "coordinates")
        }
        return blank | {"frame": frame}

    def step() -> None:
        everywhere = torch.arange(ENVS)
        if replay.write_ptr == 0:
            replay.begin(seen(everywhere), everywhere)
        ages.add_(1)
        nothing = torch.zeros(ENVS)
        replay.add(
            torch.zeros(ENVS, agent.action_dim),
            nothing,
            nothing,
            torch.zeros(ENVS, agent.space.dim),
            seen(everywhere),
        )
        over = (ages >= torch.tensor([5, 11, 40])).nonzero()[:, 0]
        if len(over):
            ages[over] = 0
            replay.begin(seen(over), over)

    return adaptation, step


def read_through(adaptation: OnlineSlotTraining, step: Any, stepping: bool) -> int:
    """Turns until all of replay has been read again, with steps between."""
    adaptation.learner.model = Counting()
    adaptation.learned = DISCOVERY_STEPS
    adaptation.start = adaptation.cursor = adaptation.replay.first_held
    for turn in range(1, 1000):
        before = adaptation.learner.model.read
        done = adaptation._encode_again()
        assert adaptation.learner.model.read - before <= ROWS, "a bounded share"
        if done:
            return turn
        if stepping:
            step()
    raise AssertionError("never done")


@pytest.mark.parametrize("stepping", [False, True])
def test_every_stored_frame_is_encode_again_in_the_order_of_its_episode(stepping: bool) -> None:
    adaptation, step = by_hand()
    for _ in range(100):
        step()
    assert read_through(adaptation, step, stepping) > 5
    rows, head = adaptation.replay.storage.obs, adaptation.replay.write_ptr
    read = rows["next_slots"][:head, 0]
    assert torch.equal(read[:, 0] + 1, read[:, 1]), (
        "its place in the episode, counted through slots that are carried"
    )
    assert not rows["slots"].any(), "nothing is used before all is read"


def test_learning_never_begins_from_slots_of_an_overwritten_row() -> None:
    adaptation, step = by_hand(capacity=40)
    for _ in range(50):
        step()
    rows = adaptation.replay.storage.obs
    marks = rows["frame"][:, 0, 0, 0]
    rows["slots"].copy_(marks.view(-1, 1, 1).expand_as(rows["slots"]))
    later = 0

    def learn(frames: Tensor, previous: Tensor, is_first: Tensor) -> None:
        nonlocal later
        assert (previous[~is_first, 0, 0] == frames[~is_first, 0, 0, 0].float() - 1).all()
        later += int((~is_first).sum())

    adaptation.learner.learn = learn  # type: ignore[method-assign, assignment]
    for _ in range(50):
        adaptation._discover()
    assert later > 0


def test_a_round_that_went_wrong_is_thrown_away() -> None:
    adaptation, step = by_hand()
    for _ in range(100):
        step()
    adaptation.learned = DISCOVERY_STEPS - 1
    with torch.no_grad():
        next(adaptation.learner.model.parameters()).fill_(float("nan"))
    adaptation.since = adaptation.every
    adaptation.step()
    assert adaptation.learned == 0 and all(
        value.isfinite().all() for value in adaptation.learner.model.parameters()
    )


def test_what_is_overwritten_meanwhile_is_left_out_and_what_is_left_of_an_episode_begins_anew() -> (
    None
):
    adaptation, step = by_hand(capacity=120)
    for _ in range(100):
        step()
    read_through(adaptation, step, stepping=True)
    replay = adaptation.replay
    at = torch.arange(replay.first_held, replay.write_ptr) % replay.capacity
    read, marks = (
        replay.storage.obs["next_slots"][at, 0, 0],
        replay.storage.obs["frame"][at, 0, 0, 0].float(),
    )
    assert ((marks - 1 - read) >= 0).all()
    begins = replay.storage.prev[at] == at
    assert not read[begins].any()
    parents = replay.storage.prev[at[~begins]]
    followed = replay.storage.obs["next_slots"][parents, 0, 0] + 1 == read[~begins]
    assert followed[ENVS * 5 :].all() and followed.float().mean() > 0.9


# With frames of the task --------------------------------------------------------------------------


def disturb(model: SlotModel, amount: float = 0.2) -> None:
    """Each thing goes to another slot, and all weights are a little different."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + amount * torch.randn(parameter.shape, generator=generator))
        model.attention.queries.copy_(model.attention.queries.roll(1, dims=0))


def trainer(out: Path, *words: str) -> Trainer:
    made = Trainer(config(*PUSH, *SMALL, *words, f"out={out}"))
    made.began, made.last_log = 0.0, (0.0, 0, 0)
    return made


def learn_novelty(
    agent: Any, novelty: Tensor, updates: int, seed: int, optimizer: dict[str, Any] | None = None
) -> dict[str, Any]:
    adam = torch.optim.Adam(agent.rnd.predictor.parameters(), 1e-3)
    if optimizer:
        adam.load_state_dict(copy.deepcopy(optimizer))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        error = agent.rnd.prediction_error(
            novelty[torch.randint(len(novelty), (64,), generator=generator)]
        )
        adam.zero_grad()
        error.mean().backward()
        adam.step()
        agent.rnd.update_stats(error)
    return adam.state_dict()


def test_an_encoder_that_changes_makes_no_unchanged_scene_new_and_all_follow_it(
    tmp_path: Path,
) -> None:
    """The mean of the normalised bonus on unchanged scenes moves by less than 0.1, at once and 100
    updates later; unfollowed, by more."""
    run_of = trainer(tmp_path, "agent.seed_steps=10000", "exploration.width=128")
    [run] = run_of.runs
    for _ in range(62):
        run_of.step()
    agent, replay, adaptation = run.agent, run.replay, run.online_slots
    assert adaptation is not None
    at = torch.arange(replay.write_ptr)

    def bonus() -> tuple[Tensor, Tensor]:
        rnd_input = adaptation._rnd_input(at)
        return agent.rnd.bonus(rnd_input), rnd_input

    optimizer = learn_novelty(agent, bonus()[1], 300, seed=0)
    before, old = bonus()
    control = copy.deepcopy(agent)
    learn_novelty(control, old, 100, 1, optimizer)
    expected_later = control.rnd.bonus(old).mean()

    disturb(adaptation.learner.model)
    adaptation.learned, adaptation.cursor = DISCOVERY_STEPS, 0
    stored = weights(run.agent.model.perception)
    turns = 0
    while not adaptation.step():
        turns += 1
    assert turns > module.FIT_STEPS
    after, new = bonus()
    unfollowed = control.rnd.bonus(new).mean() - expected_later
    assert unfollowed > 0.3, f"the test must be able to fail: {unfollowed}"
    assert abs(float(after.mean() - before.mean())) < 0.1
    learn_novelty(agent, new, 100, 1, optimizer)
    assert abs(float(bonus()[0].mean() - expected_later)) < 0.1
    assert float(torch.corrcoef(torch.stack([before, after]))[0, 1]) > 0.75, (
        "which scenes are newer than others follows too"
    )

    # the model, the stored slots and what acting carries are one
    assert changed(stored, agent.model.perception)
    assert changed(weights(adaptation.learner.model), agent.model.perception.model) == set()
    episode = at[0::ENVS][:61]
    sights = adaptation.learner.model.encode_video(replay.storage.obs["frame"][episode][:, None])
    read = torch.stack([sight.coordinates for sight in sights])[:, 0]
    torch.testing.assert_close(
        replay.storage.obs["coordinates"][episode][..., :3], read[..., :3], rtol=0, atol=0.02
    )
    newest = replay.cursor % replay.capacity
    assert torch.equal(run.actor.state.hidden["slots"], replay.storage.obs["slots"][newest].float())
    assert torch.equal(
        run.actor.state.previous["coordinates"], replay.storage.obs["coordinates"][newest]
    )


FAST = {"DISCOVERY_STEPS": 2, "ROWS": 24, "FIT_STEPS": 3, "SAMPLE": 64}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of a few turns."""
    for name, value in FAST.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("fast")
def test_a_run_whose_perception_learns_resumes_exactly_amid_a_round(tmp_path: Path) -> None:
    words = (
        *PUSH,
        *SMALL,
        "agent.seed_steps=30",
        "logger.checkpoint_every=30",
        "logger.log_every=15",
    )
    Trainer(config(*words, "steps=93", f"out={tmp_path / 'whole'}")).run()
    for steps, resume in ((66, "false"), (93, "true")):
        part = Trainer(
            config(*words, f"steps={steps}", f"resume={resume}", f"out={tmp_path / 'parts'}")
        )
        part.run()
    first, second = comparable(tmp_path / "parts"), comparable(tmp_path / "whole")
    assert differences(first, second) == []
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")
    last = facts(tmp_path / "whole")[-1]
    assert last["perception_rounds"] >= 2 and 0 < last["perception_loss"] < 10
    kept = final(tmp_path / "whole")["replay"]
    assert kept["rewritten"]["obs.slots"].shape[0] == part.runs[0].replay.write_ptr


@pytest.mark.usefixtures("fast")
def test_seeds_learn_to_see_each_on_its_own(tmp_path: Path) -> None:
    words = ("agent.seed_steps=12", "task.blocks=2")
    both, lone = (
        trainer(tmp_path / "both", *words, "seeds=2"),
        trainer(tmp_path / "lone", *words, "seed=1"),
    )
    for of in (both, lone):
        for _ in range(16):
            of.step()
    assert {run.online_slots.rounds for run in (*both.runs, *lone.runs)} == {2}
    models = [weights(run.agent.model.perception.model) for run in (*both.runs, *lone.runs)]
    torch.testing.assert_close(models[1], models[2], rtol=0, atol=1e-5)
    assert any((models[0][name] - value).abs().max() > 1e-5 for name, value in models[1].items())


def test_the_agents_losses_reach_no_pixel_and_no_weight_of_the_slot_model(tmp_path: Path) -> None:
    run_of = trainer(tmp_path, "agent.seed_steps=12")
    [run] = run_of.runs
    before, student = weights(run.agent.model.perception), weights(run.online_slots.learner.model)
    for _ in range(8):
        run_of.step()
    assert run_of.learner.updates > 2
    batch = run_of.learner.sampler.draw()
    assert set(batch.obs_sequence) == set(batch.rnd_obs) == {"slots", "coordinates"}
    assert changed(before, run.agent.model.perception) == set(), (
        "what acts and is stored stays until all has been read again"
    )
    assert changed(student, run.online_slots.learner.model)
    assert not any(parameter.requires_grad for parameter in run.agent.model.perception.parameters())


def test_a_pace_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="perception.learn_every=0: must be above 0"):
        check(config("task=block_push", "obs=pixels", "perception.learn_every=0"))


@pytest.mark.parametrize("slots", [4, 7])
def test_a_million_frames_fit_into_14_gigabytes_and_into_one_without_frames(
    slots: int, tmp_path: Path
) -> None:
    SlotModel(SlotConfig(slots=slots)).save(tmp_path / "model.safetensors", {})
    frozen, learning = (
        SlotPerception(tmp_path / "model.safetensors", online=online).storage
        for online in (False, True)
    )
    actions, z = 28, 12  # Adroit's hand; Table 1
    assert bytes_needed(10**6, frozen, actions, z) <= 1e9
    assert 64 * 64 * 3 * 10**6 < bytes_needed(10**6, learning, actions, z) <= 14e9
