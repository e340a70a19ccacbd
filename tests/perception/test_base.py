"""What every kind of perception promises the agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perception.base import ObsSequence, Perception, RecurrentState
from perception.encoders.cnn import CnnPerception
from perception.encoders.state import StatePerception
from perception.encoding import MOVED, REACH, positional_encoding
from perception.slots.decoder import Decoded
from perception.slots.model import SlotConfig, SlotModel, SlotOutput
from perception.slots.perception import SlotPerception

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
        "moving scene",
        "displaced slots",
        "displaced state",
        "coarse slots",
    ]
)
def perception(request: pytest.FixtureRequest, slot_file: Path) -> Perception:
    makers: dict[str, Make] = {
        "state": lambda: StatePerception(6, pairs, 0.1),
        "bare state": lambda: StatePerception(6, no_objects, 0.1),
        "cnn": CnnPerception,
        "slots": lambda: SlotPerception(slot_file),
        "moving slots": lambda: SlotPerception(slot_file, reading="moving"),
        "moving scene": lambda: SlotPerception(slot_file, reading="scene"),
        "displaced slots": lambda: SlotPerception(slot_file, reading="displaced"),
        "displaced state": lambda: StatePerception(6, pairs, reading="displaced"),
        "coarse slots": lambda: SlotPerception(slot_file, frequencies=1),
    }
    return makers[request.param]()


def observations(perception: Perception) -> Tensor:
    """(T, B, ...) as the environment would give them; the two newest frames overlap."""
    generator = torch.Generator().manual_seed(0)
    if "state" in perception.storage:
        return torch.randn(STEPS, BATCH, 6, generator=generator)
    frames = torch.randint(
        0, 256, (STEPS + 1, BATCH, 64, 64, 3), generator=generator, dtype=torch.uint8
    )
    frames[0] = frames[1]
    return torch.stack([frames[:-1], frames[1:]], dim=2)


def act_through(perception: Perception, obs: Tensor) -> tuple[list[Tensor], ObsSequence]:
    """Features of each step, and the sequence that replay would return."""
    state, features, stored = RecurrentState(), [], []
    for t in range(STEPS):
        seen, encoded, state = perception.encode(
            obs[t], torch.zeros(BATCH, 2), torch.full((BATCH,), t == 0), state
        )
        features.append(seen)
        stored.append(encoded)
    return features, {
        name: torch.stack(
            [stored[0][name]] * (perception.history - 1) + [own[name] for own in stored]
        )
        for name in stored[0]
    }


def test_shapes_are_those_declared(perception: Perception) -> None:
    features, sequence = act_through(perception, observations(perception))
    for name, spec in perception.storage.items():
        assert sequence[name].shape[1:] == (BATCH, *spec.shape)
        assert sequence[name].dtype == spec.dtype
    assert features[0].shape == (BATCH, *perception.feature_shape)
    assert perception.rnd_input(sequence).shape == (STEPS, BATCH, perception.rnd_input_dim)


def test_a_stored_sequence_has_the_features_that_were_seen_while_acting(
    perception: Perception,
) -> None:
    seen, sequence = act_through(perception, observations(perception))
    torch.testing.assert_close(
        perception.features(sequence), torch.stack(seen), rtol=1e-4, atol=1e-4
    )


def test_an_episodes_first_step_forgets_the_one_before(perception: Perception) -> None:
    obs, always = observations(perception), torch.ones(BATCH, dtype=torch.bool)
    action = torch.zeros(BATCH, 2)
    _, _, state = perception.encode(obs[0], action, always, RecurrentState())
    fresh, stored, _ = perception.encode(obs[1], action, always, RecurrentState())
    row = torch.tensor([True, False, True])
    again, kept, _ = perception.encode(obs[1], action, row, state)
    torch.testing.assert_close(again[row], fresh[row])
    for name, value in stored.items():
        torch.testing.assert_close(kept[name][row], value[row])


def test_the_rnds_input_carries_no_gradient_and_features_do_only_where_something_is_trained(
    perception: Perception,
) -> None:
    _, sequence = act_through(perception, observations(perception))
    assert not perception.rnd_input(sequence).requires_grad
    trained = [p for p in perception.parameters() if p.requires_grad]
    features = perception.features(sequence)
    assert features.requires_grad == bool(trained)
    if trained:
        features.square().sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_state_features_hold_the_scaled_state_and_novelty_only_the_objects() -> None:
    seeing = StatePerception(6, pairs, 0.1)
    state = torch.randn(1, BATCH, 6)
    assert torch.equal(seeing.features({"state": state})[..., :6], state * 0.1)
    assert torch.equal(
        seeing.features({"state": state})[..., 6:], seeing.rnd_input({"state": state})
    )
    bare = StatePerception(6, no_objects, 0.1)
    assert torch.equal(bare.rnd_input({"state": state}), state * 0.1)


def test_the_frozen_cnn_is_the_same_for_the_same_seed_and_survives_saving() -> None:
    torch.manual_seed(1)
    one = CnnPerception(seed=3)
    torch.manual_seed(2)
    two, other = CnnPerception(seed=3), CnnPerception(seed=4)
    sequence = {"frame": torch.randint(0, 256, (2, BATCH, 64, 64, 3), dtype=torch.uint8)}
    assert torch.equal(one.rnd_input(sequence), two.rnd_input(sequence))
    assert not torch.equal(one.rnd_input(sequence), other.rnd_input(sequence))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.rnd_input(sequence), other.rnd_input(sequence))


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
    sequence = {"slots": torch.zeros(2, 1, 2, 8), "coordinates": coordinates.expand(2, 1, 2, 4)}
    present, absent = SlotPerception(slot_file).rnd_input(sequence)[0, 0].chunk(2)
    assert present.abs().sum() > 0 and absent.abs().sum() == 0


def test_what_rests_is_not_new_where_only_what_moves_is(slot_file: Path) -> None:
    """Slots that go 0, half of MOVED and twice MOVED from their place in the frame before, and one
    that is absent."""
    before = torch.tensor([[0.5, -0.5, 1.0, 1.0]] * 3 + [[0.5, -0.5, 1.0, 0.0]])
    after = before.clone()
    after[:, :2] += MOVED * torch.tensor([[0.0, 0.0], [0.3, 0.4], [1.2, -1.6], [1.0, 0.0]])
    sequence = {
        "slots": torch.zeros(2, 1, 4, 8),
        "coordinates": torch.stack([before, after])[:, None],
    }
    moving, always = (
        SlotPerception(slot_file, reading=kind).rnd_input(sequence)[0, 0].unflatten(0, (4, -1))
        for kind in ("moving", "all")
    )
    torch.testing.assert_close(moving, always * torch.tensor([[0.0], [0.5], [1.0], [1.0]]))
    assert (always[:3].abs().sum(-1) > 0).all()


def test_from_state_too_only_what_moves_is_new_and_the_agent_sees_all() -> None:
    def coordinates(state: torch.Tensor) -> torch.Tensor:
        return state.unflatten(-1, (3, 2))

    before = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5, -0.5])
    after = before + MOVED * torch.tensor([0.0, 0.0, 0.3, 0.4, 1.2, -1.6])
    sequence = {"state": torch.stack([before, after])[:, None]}
    moving, always = (StatePerception(6, coordinates, reading=kind) for kind in ("moving", "all"))
    newest = {"state": sequence["state"][1:]}
    read = moving.rnd_input(sequence)[0, 0].unflatten(0, (3, -1))
    expected = always.rnd_input(newest)[0, 0].unflatten(0, (3, -1))
    torch.testing.assert_close(read, expected * torch.tensor([[0.0], [0.5], [1.0]]))
    assert torch.equal(moving.features(sequence), always.features(newest))
    assert moving.rnd_input_dim == always.rnd_input_dim
    for numbers in (no_objects, lambda state: state.unsqueeze(-1)):
        with pytest.raises(ValueError, match="names no objects"):
            StatePerception(6, numbers, reading="moving")


def test_a_scene_is_new_while_something_moves_that_mostly_rests(slot_file: Path) -> None:
    """A robot that always moves; a block that moves in one of four steps; a thing that appears."""
    T, B = 4, 1
    robot = torch.arange(T + 1.0)[:, None, None] * MOVED * torch.tensor([1.0, 0.0])
    block = torch.zeros(T + 1, B, 2)
    block[3:] = torch.tensor([0.0, 2 * MOVED])
    places = torch.stack([robot.expand(-1, B, -1), block], 2)  # (T + 1, B, 2, 2)
    sequence = {"state": places.flatten(2)}
    of = StatePerception(4, lambda state: state.unflatten(-1, (2, 2)), reading="scene")
    read = of.rnd_input(sequence).unflatten(-1, (2, -1))
    always = positional_encoding(places[1:], 6)
    gate = torch.tensor([0.0, 0.0, 0.75, 0.0])[:, None, None, None]
    torch.testing.assert_close(read, always * gate)

    absent = torch.zeros(T + 1, B, 2, 4)
    absent[..., :2], absent[:, :, 0, 3] = places, 1.0  # the block is not there
    absent[..., 2] = 1.0
    slots = {"slots": torch.zeros(T + 1, B, 2, 8), "coordinates": absent}
    assert not SlotPerception(slot_file, reading="scene").rnd_input(slots).any()


def test_displacement_counts_from_where_an_object_was_first_seen(slot_file: Path) -> None:
    """Episodes of three steps, in scenes that stand apart: a robot always moves, a thing is pushed
    in the last step, another comes into sight in the second. The second row is a step behind."""
    perception = SlotPerception(slot_file, reading="displaced")
    steps, scenes = torch.arange(3.0), torch.tensor([0.0, 0.25, 0.5])
    episodes = torch.ones(3, 3, 3, 4)
    episodes[..., :2] = scenes[:, None, None, None]
    episodes[:, :, 0, 0] += MOVED * steps
    episodes[:, 2, 1, 1] += 0.1
    episodes[:, 0, 2, 3] = 0.45
    episodes[:, 0, 2, :2] = -0.7  # where an absent slot is says nothing
    film = episodes.flatten(0, 1)
    found = iter(torch.stack([film[1:], film[:-1]], dim=1))  # (8, 2, 3, 4)
    perception.model.remember = lambda *_: (next(found), {})  # type: ignore[method-assign]
    expected = torch.zeros(3, 3, 2)
    expected[:, 0, 0], expected[2, 1, 1] = MOVED * steps / REACH, 0.1 / REACH
    state = RecurrentState()
    for t in range(8):
        obs = torch.zeros(2, 2, 64, 64, 3, dtype=torch.uint8)
        first = torch.tensor([t % 3 == 2, t % 3 == 0])
        _, stored, state = perception.encode(obs, torch.zeros(2, 2), first, state)
        if t >= 2:  # the first row began in the middle of an episode
            torch.testing.assert_close(stored["displacement"][0], expected[(t + 1) % 3])
        torch.testing.assert_close(stored["displacement"][1], expected[t % 3])


def test_from_state_displacement_counts_from_each_rows_own_start() -> None:
    perception = StatePerception(4, lambda s: s.unflatten(-1, (2, 2)), reading="displaced")
    hidden: dict[str, Tensor] = {}
    starts = torch.zeros(2, 4)
    for t in range(6):
        now = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]) * t
        first = torch.tensor([t in (0, 4), t in (0, 3)])
        starts = torch.where(first[:, None], now, starts)
        stored, hidden = perception.to_storage(now, torch.zeros(2, 1), first, hidden)
        expected = ((now - starts) / REACH).unflatten(-1, (2, 2))
        torch.testing.assert_close(stored["displacement"], expected)


def test_bonus_and_agent_read_by_how_much_things_are_displaced(slot_file: Path) -> None:
    """From slots and state; a slot that is absent is no news, whatever it was displaced by."""
    T = 4
    places, displacement = torch.rand(T + 1, 1, 2, 2), torch.rand(T + 1, 1, 2, 2)
    coordinates = torch.cat([places, torch.ones(T + 1, 1, 2, 2)], -1)
    coordinates[2, :, 1, 3] = 0.0
    slots = {"slots": torch.zeros(T + 1, 1, 2, 8), "coordinates": coordinates}
    of_slots = SlotPerception(slot_file, reading="displaced")
    of_state = StatePerception(4, lambda s: s.unflatten(-1, (2, 2)), reading="displaced")
    state = {"state": places.flatten(2)}
    for perception, sequence in ((of_slots, slots), (of_state, state)):
        sequence["displacement"] = displacement
        expected = positional_encoding(displacement, perception.frequencies)
        if perception is of_slots:
            expected[2, :, 1] = 0.0
        expected = expected[perception.history - 1 :].flatten(-2)
        torch.testing.assert_close(perception.rnd_input(sequence), expected)
        features = perception.features(sequence).flatten(2)
        sequence["displacement"] = displacement + torch.tensor([0.0, 0.3])
        assert (perception.features(sequence).flatten(2) != features).any(-1).all()


def test_slots_of_what_a_hand_hides_stay_where_they_were(slot_file: Path) -> None:
    """The first slot's mask loses its right half to the second slot's, then both are gone."""
    perception = SlotPerception(slot_file)
    thing, hand = torch.zeros(64, 64), torch.zeros(64, 64)
    thing[20:30, 20:30] = hand[10:40, 25:45] = 1.0
    films = [[thing, 0 * hand], [thing * (1 - hand), hand], [0 * thing, 0 * hand]]
    masks = iter([torch.stack([*pair, 0 * hand])[None] for pair in films])

    def seen(*_: object, **__: object) -> SlotOutput:
        now = next(masks)
        decoded = Decoded(now, torch.zeros(1, 3, 3), torch.zeros(1, 3, 64, 64))
        none = torch.zeros(1, 3, 8)
        return SlotOutput(none, perception.model.locate(now), decoded, now.sum(1))

    perception.model.forward = seen  # type: ignore[method-assign]
    state, found = RecurrentState(), []
    for t in range(3):
        obs = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
        _, stored, state = perception.encode(obs, torch.zeros(1, 2), torch.tensor([t == 0]), state)
        found.append(stored["coordinates"][0, 0])
    torch.testing.assert_close(found[0], found[1])
    assert found[2][3] < 0.01


@pytest.mark.parametrize("backbone", ["conv5", "timm:no_such_model"])
def test_an_unknown_backbone_is_named(backbone: str) -> None:
    with pytest.raises(ValueError, match=backbone.removeprefix("timm:")):
        CnnPerception(backbone=backbone)


def test_conv4_takes_no_weights() -> None:
    with pytest.raises(ValueError, match="x.safetensors"):
        CnnPerception(weights="x.safetensors")
