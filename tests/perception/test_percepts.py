"""What every kind of perception promises the agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perception.base import Memory, Perception
from perception.encoders.cnn import CnnPerception
from perception.encoders.state import StatePerception
from perception.slots.model import SlotConfig, SlotModel
from perception.slots.perception import MOVED, SlotPerception

BATCH, STEPS = 3, 4
Make = Callable[[], Perception]


def pairs(state: Tensor) -> Tensor:
    return state.unflatten(-1, (-1, 2)) / 2


def no_objects(state: Tensor) -> Tensor:
    return state.new_zeros(*state.shape[:-1], 0, 1)


@pytest.fixture(scope="module")
def slot_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slots") / "model.safetensors"
    torch.manual_seed(0)
    SlotModel(SlotConfig(slots=3, width=8, channels=8, frequencies=2)).save(path, {"task": "test"})
    return path


@pytest.fixture(
    params=[
        "state",
        "bare state",
        "cnn",
        "slots",
        "moving slots",
        "slots trained on",
        "slots and a token",
        "both trained on",
    ]
)
def perception(request: pytest.FixtureRequest, slot_file: Path) -> Perception:
    makers: dict[str, Make] = {
        "state": lambda: StatePerception(6, pairs, 0.1),
        "bare state": lambda: StatePerception(6, no_objects, 0.1),
        "cnn": CnnPerception,
        "slots": lambda: SlotPerception(slot_file),
        "moving slots": lambda: SlotPerception(slot_file, moving=True),
        "slots trained on": lambda: SlotPerception(slot_file, train=True),
        "slots and a token": lambda: SlotPerception(slot_file, token=True),
        "both trained on": lambda: SlotPerception(slot_file, token=True, train=True),
    }
    return makers[request.param]()


def observations(perception: Perception) -> Tensor:
    """(T, B, ...) as the environment would give them; the two newest frames overlap."""
    generator = torch.Generator().manual_seed(0)
    if "state" in perception.stored:
        return torch.randn(STEPS, BATCH, 6, generator=generator)
    frames = torch.randint(
        0, 256, (STEPS + 1, BATCH, 64, 64, 3), generator=generator, dtype=torch.uint8
    )
    frames[0] = frames[1]
    return torch.stack([frames[:-1], frames[1:]], dim=2)


def act_through(perception: Perception, obs: Tensor) -> tuple[list, list]:
    memory: Memory = {}
    percepts, stored = [], []
    for t in range(STEPS):
        percept, seen, memory = perception.perceive(
            obs[t], torch.zeros(BATCH, 2), torch.full((BATCH,), t == 0), memory
        )
        percepts.append(percept)
        stored.append(seen)
    return percepts, stored


def test_shapes_are_those_declared(perception: Perception) -> None:
    percepts, stored = act_through(perception, observations(perception))
    for name, (shape, dtype) in perception.stored.items():
        assert stored[0][name].shape == (BATCH, *shape) and stored[0][name].dtype == dtype
    assert percepts[0].features.shape == (BATCH, *perception.feature_shape)
    assert percepts[0].novelty.shape == (BATCH, perception.novelty_dim)
    assert percepts[0].objects.shape[:-1] == percepts[0].presence.shape


def test_a_stored_window_reads_as_it_was_seen_while_acting(perception: Perception) -> None:
    percepts, stored = act_through(perception, observations(perception))
    window = {name: torch.stack([seen[name] for seen in stored]) for name in stored[0]}
    window = {
        name: torch.cat([value[:1]] * (perception.history - 1) + [value])
        for name, value in window.items()
    }
    features, novelty = perception.features(window), perception.novelty(window)
    objects, presence = perception.objects(window)
    assert features.shape[0] == novelty.shape[0] == objects.shape[0] == presence.shape[0] == STEPS
    recurrent = isinstance(perception, SlotPerception) and perception.train_model
    for t in range(
        1 if recurrent else STEPS
    ):  # trained on, slots are filtered from the window's start: only there both agree
        torch.testing.assert_close(features[t], percepts[t].features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(novelty[t], percepts[t].novelty, rtol=1e-4, atol=1e-4)


def test_an_episodes_first_step_forgets_the_one_before(perception: Perception) -> None:
    obs = observations(perception)
    _, _, memory = perception.perceive(
        obs[0], torch.zeros(BATCH, 2), torch.ones(BATCH, dtype=torch.bool), {}
    )
    fresh, _, _ = perception.perceive(
        obs[1], torch.zeros(BATCH, 2), torch.ones(BATCH, dtype=torch.bool), {}
    )
    row = torch.tensor([True, False, True])
    again, _, _ = perception.perceive(obs[1], torch.zeros(BATCH, 2), row, memory)
    torch.testing.assert_close(again.features[row], fresh.features[row])
    torch.testing.assert_close(again.novelty[row], fresh.novelty[row])


def test_novelty_carries_no_gradient_and_features_do_only_where_something_is_trained(
    perception: Perception,
) -> None:
    _, stored = act_through(perception, observations(perception))
    window = {name: torch.stack([seen[name] for seen in stored]) for name in stored[0]}
    assert not perception.novelty(window).requires_grad
    trained = [p for p in perception.parameters() if p.requires_grad]
    features = perception.features(window)
    assert features.requires_grad == bool(trained)
    if trained:
        features.square().sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_state_features_hold_the_scaled_state_and_novelty_only_the_objects() -> None:
    seeing = StatePerception(6, pairs, 0.1)
    state = torch.randn(1, BATCH, 6)
    assert torch.equal(seeing.features({"state": state})[..., :6], state * 0.1)
    assert torch.equal(seeing.features({"state": state})[..., 6:], seeing.novelty({"state": state}))
    bare = StatePerception(6, no_objects, 0.1)
    assert torch.equal(bare.novelty({"state": state}), state * 0.1)


def test_the_frozen_cnn_is_the_same_for_the_same_seed_and_survives_saving() -> None:
    torch.manual_seed(1)
    one = CnnPerception(seed=3)
    torch.manual_seed(2)
    two, other = CnnPerception(seed=3), CnnPerception(seed=4)
    window = {"frame": torch.randint(0, 256, (2, BATCH, 64, 64, 3), dtype=torch.uint8)}
    assert torch.equal(one.novelty(window), two.novelty(window))
    assert not torch.equal(one.novelty(window), other.novelty(window))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.novelty(window), other.novelty(window))


def test_a_random_cnn_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        CnnPerception(seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_cnn_features_depend_on_both_frames() -> None:
    seeing = CnnPerception()
    frames = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    still = seeing.features({"frame": frames[1:].expand(2, -1, -1, -1, -1)})
    assert not torch.allclose(seeing.features({"frame": frames}), still)


def test_an_absent_slot_has_no_code(slot_file: Path) -> None:
    coordinates = torch.tensor([[0.5, -0.5, 1.0, 1.0], [0.5, -0.5, 1.0, 0.0]])
    window = {"slots": torch.zeros(2, 1, 2, 8), "coordinates": coordinates.expand(2, 1, 2, 4)}
    present, absent = SlotPerception(slot_file).novelty(window)[0, 0].chunk(2)
    assert present.abs().sum() > 0 and absent.abs().sum() == 0


def test_what_rests_is_not_new_where_only_what_moves_is(slot_file: Path) -> None:
    """Slots that go 0, half of MOVED and twice MOVED from their place in the frame before, and one
    that is absent."""
    before = torch.tensor([[0.5, -0.5, 1.0, 1.0]] * 3 + [[0.5, -0.5, 1.0, 0.0]])
    after = before.clone()
    after[:, :2] += MOVED * torch.tensor([[0.0, 0.0], [0.3, 0.4], [1.2, -1.6], [1.0, 0.0]])
    window = {
        "slots": torch.zeros(2, 1, 4, 8),
        "coordinates": torch.stack([before, after])[:, None],
    }
    moving, always = (
        SlotPerception(slot_file, moving=kind).novelty(window)[0, 0].unflatten(0, (4, -1))
        for kind in (True, False)
    )
    torch.testing.assert_close(moving, always * torch.tensor([[0.0], [0.5], [1.0], [1.0]]))
    assert (always[:3].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("backbone", ["conv5", "timm:no_such_model"])
def test_an_unknown_backbone_is_named(backbone: str) -> None:
    with pytest.raises(ValueError, match=backbone.removeprefix("timm:")):
        CnnPerception(backbone=backbone)


def test_conv4_takes_no_weights() -> None:
    with pytest.raises(ValueError, match="x.safetensors"):
        CnnPerception(weights="x.safetensors")


def test_a_slot_model_that_is_trained_on_runs_once_for_each_observation(
    slot_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perception = SlotPerception(slot_file, train=True)
    calls: list[int] = []
    see = perception.model.encode_video
    monkeypatch.setattr(
        perception.model, "encode_video", lambda frames: calls.append(len(frames)) or see(frames)
    )
    act_through(perception, observations(perception))
    assert calls == [2] * STEPS


def test_a_global_token_adds_the_whole_frame_to_the_features_and_nothing_to_the_bonus(
    slot_file: Path,
) -> None:
    plain, alone, other = (
        SlotPerception(slot_file, token=token, seed=seed)
        for token, seed in ((False, 0), (True, 0), (True, 1))
    )
    frames = torch.randint(
        0, 256, (2, BATCH, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    obs, first = (
        torch.stack([frames[:1].expand(2, -1, -1, -1, -1).transpose(0, 1), frames.transpose(0, 1)]),
        torch.tensor([True] * BATCH),
    )
    percepts = []
    for perception in (plain, alone, other):
        _, _, memory = perception.perceive(obs[0], torch.zeros(BATCH, 2), first, {})
        percepts.append(perception.perceive(obs[1], torch.zeros(BATCH, 2), ~first, memory)[0])
    without, with_it, drawn_anew = percepts
    assert with_it.features.shape == (BATCH, 2, 4, alone.feature_shape[2])
    assert torch.equal(with_it.features[:, :, :3], without.features) and torch.equal(
        with_it.novelty, without.novelty
    )
    assert torch.equal(with_it.objects, without.objects)
    token = with_it.features[:, :, 3]
    assert not torch.equal(token[:, 0], token[:, 1]), "of either frame"
    torch.testing.assert_close(token[:, 1], alone.token(frames[1]), atol=2e-3, rtol=2e-3)
    assert not torch.equal(token, drawn_anew.features[:, :, 3])


def test_a_global_token_is_trained_where_the_slot_model_is(slot_file: Path) -> None:
    assert not any(
        parameter.requires_grad for parameter in SlotPerception(slot_file, token=True).parameters()
    )
    perception = SlotPerception(slot_file, token=True, train=True)
    frames = torch.randint(
        0, 256, (3, BATCH, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    perception.features({"frame": frames})[..., 3, :].square().sum().backward()
    assert (
        perception.token.encoder[0].weight.grad is not None
        and perception.token.project.weight.grad.abs().sum() > 0
    )
