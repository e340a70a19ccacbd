"""Slot attention, the model's arithmetic, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from perception.discovery.losses import pseudo_label_loss
from perception.slots.attention import SlotAttention
from perception.slots.model import FORMAT, SlotConfig, SlotModel, pixel_places
from perception.slots.segments import SegmentProposals, TwinSplit, colours_of

SMALL = SlotConfig(slots=3, width=8, channels=8, frame_size=(16, 24))


@pytest.fixture
def model() -> SlotModel:
    torch.manual_seed(0)
    return SlotModel(SMALL)


def noise(batch: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (batch, 16, 24, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def test_masks_and_background_share_every_pixel_and_the_image_follows(model: SlotModel) -> None:
    sight = model(noise(2))
    total = sight.decoded.masks.sum(dim=1)
    torch.testing.assert_close(total, sight.alpha)
    assert total.min() >= 0 and total.max() <= 1 + 1e-6
    assert sight.decoded.image.min() >= 0 and sight.decoded.image.max() <= 1 + 1e-6


def test_an_empty_scene_is_reconstructed_and_holds_nothing(model: SlotModel) -> None:
    empty = noise(1, seed=5)
    model.backgrounds.copy_(empty)
    sight = model(empty)
    assert (sight.decoded.image * 255 - empty.permute(0, 3, 1, 2)).abs().max() < 1.0
    assert sight.coordinates[..., 3].max() < 0.01 and sight.slots.isfinite().all()


@pytest.mark.parametrize(("x", "y"), [(0, 0), (20, 3), (7, 12)])
def test_coordinates_are_centroid_area_and_presence(model: SlotModel, x: int, y: int) -> None:
    masks = torch.zeros(1, 3, 16, 24)
    masks[0, 1, y : y + 4, x : x + 4] = 1
    at_x, at_y, area, presence = model.locate(masks)[0, 1].tolist()
    assert at_x == pytest.approx((x + 2) / 12 - 1, abs=1e-6) and at_y == pytest.approx(
        (y + 2) / 8 - 1, abs=1e-6
    )
    assert area == pytest.approx(16 / float(model.sizes[0])) and presence > 0.8
    assert model.locate(masks)[0, 0].tolist() == pytest.approx([0, 0, 0, 0], abs=0.01)


def test_places_are_symmetric_about_the_centre() -> None:
    places = pixel_places((6, 8))
    torch.testing.assert_close(places, -places.flip(0, 1))
    assert places[..., 0].amax() < 1


def test_a_first_frame_ignores_what_was_before_and_rows_do_not_mix(model: SlotModel) -> None:
    frames, before = noise(4), torch.randn(4, 3, 8)
    fresh, carried = model(frames), model(frames, before)
    first = torch.tensor([True, False, False, True])
    mixed = model(frames, before, first)
    torch.testing.assert_close(mixed.slots[first], fresh.slots[first])
    torch.testing.assert_close(mixed.slots[~first], carried.slots[~first])
    assert not torch.allclose(fresh.slots, carried.slots)


def test_a_first_frame_takes_all_iterations_and_a_later_one_a_single_one() -> None:
    torch.manual_seed(0)
    attention = SlotAttention(slots=3, width=8, iterations=3)
    tokens, weight = torch.randn(2, 10, 8), torch.rand(2, 10)
    slots = attention(tokens, weight, attention.queries.expand(2, -1, -1))[0]
    for _ in range(2):
        slots = attention(tokens, weight, slots)[0]
    torch.testing.assert_close(attention(tokens, weight)[0], slots)


def test_nothing_adds_up_in_slots_that_are_carried_for_long() -> None:
    """A residual beside the GRU did: slots grew by as much at every frame, until they lost their
    things."""
    torch.manual_seed(0)
    attention = SlotAttention(slots=3, width=8, iterations=2)
    slots = None
    for _ in range(300):
        slots, _ = attention(torch.randn(2, 16, 8), torch.ones(2, 16), slots)
    assert slots is not None and slots.abs().max() < 1.01


def test_tokens_without_foreground_do_not_count() -> None:
    torch.manual_seed(0)
    attention = SlotAttention(slots=3, width=8, iterations=3)
    tokens, weight = torch.randn(2, 10, 8), torch.ones(2, 10)
    weight[:, 6:] = 0
    changed = tokens.clone()
    changed[:, 6:] += torch.randn(2, 4, 8)
    torch.testing.assert_close(attention(tokens, weight)[0], attention(changed, weight)[0])


def test_a_thing_of_unseen_colours_goes_to_the_unused_slot_that_it_changes_least() -> None:
    torch.manual_seed(0)
    attention = SlotAttention(slots=3, width=8, iterations=2)
    logits = (
        torch.tensor([8.0, -8.0, -8.0]).view(1, 3, 1).expand(1, 3, 20)
    )  # slots 1 and 2 are unused
    slots, values, before = torch.randn(1, 3, 8), torch.randn(1, 20, 8), torch.randn(1, 3, 8)
    weight, unseen, colours = torch.ones(1, 20), torch.zeros(1, 20), torch.rand(1, 20, 3)
    known = attention._assign_unseen(slots, logits, before, values, weight, unseen, colours)
    assert torch.equal(known[0], slots) and torch.equal(known[1], logits)
    weight[:, 5:10], unseen[:, 5:10] = 0.0, 1.0
    colours[:, 5:10] = torch.tensor([0.9, 0.1, 0.1])
    thing = unseen.unsqueeze(1).expand(1, 3, 20)
    saw = torch.randn(1, 3, 8)
    for _ in range(50):
        saw = attention._update(saw, thing, values)  # what a slot comes to that sees it for long
    for holder in (1, 2):
        held = before.clone()
        held[:, holder] = saw[:, holder]
        now, given = attention._assign_unseen(slots, logits, held, values, weight, unseen, colours)
        torch.testing.assert_close(
            now[:, holder], attention._update(held, thing, values)[:, holder]
        )
        assert torch.equal(now[:, [0, 3 - holder]], slots[:, [0, 3 - holder]])
        assert (given[:, :, 5:10].argmax(dim=1) == holder).all() and torch.equal(
            given[:, :, 10:], logits[:, :, 10:]
        )
    colours[:, 8:10] = torch.tensor(
        [0.1, 0.9, 0.1]
    )  # two colours: three tokens are a thing, two are none
    given = attention._assign_unseen(slots, logits, before, values, weight, unseen, colours)[1]
    assert (given != logits).any(dim=1).squeeze().nonzero().flatten().tolist() == [5, 6, 7]
    busy = torch.zeros(1, 3, 20)
    assert torch.equal(
        attention._assign_unseen(slots, busy, before, values, weight, unseen, colours)[1], busy
    ), "no slot is unused"


def test_what_is_unseen_moves_no_slot_but_an_unused_one_and_training_leaves_it_out(
    model: SlotModel,
) -> None:
    """A model that knows only the floor's colour: all else is unseen."""
    frames = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    model.backgrounds.zero_()
    frames[:, 2:10, 2:10, 0] = 250
    model.proposals.codebook.zero_()
    model.proposals.tabulate_unseen()
    images = frames.permute(0, 3, 1, 2) / 255
    assert torch.equal(model.proposals.is_unseen(images)[0], frames[0, ..., 0] > 0)
    masks, usual = (
        model(frames).decoded.masks,
        model(frames, assign_unseen=False).decoded.masks,
    )
    assert masks[0, :, 4:8, 4:8].amax(dim=0).min() > 0.99, "one slot has it whole"
    assert not torch.allclose(masks, usual)
    model.proposals.codebook[0] = colours_of(images[:, :, 4:5, 4:5]).flatten()
    model.proposals.tabulate_unseen()
    assert not model.proposals.is_unseen(images)[frames[..., 0] > 0].any()
    torch.testing.assert_close(model(frames).decoded.masks, usual)


def test_queries_and_encoder_learn_although_iterations_are_cut(model: SlotModel) -> None:
    model(noise(2)).decoded.image.square().sum().backward()
    assert model.attention.queries.grad is not None and model.attention.queries.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())


def test_slots_of_the_frame_before_get_no_gradient(model: SlotModel) -> None:
    before = torch.randn(2, 3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        model(noise(2), before).slots.sum(), before, allow_unused=True
    )
    assert gradient is None


def test_a_model_maps_over_a_leading_axis_of_batches(model: SlotModel) -> None:
    frames = torch.stack([noise(2, seed=1), noise(2, seed=2)])
    mapped = torch.func.vmap(lambda f: model(f).slots)(frames)
    torch.testing.assert_close(mapped[1], model(frames[1]).slots)


def test_saved_and_loaded_is_the_same_model(model: SlotModel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    model.proposals.tabulate_unseen()  # as proposing segments ends
    model.save(path, {"task": "drawn", "scores": {"fg_ari": 0.5}})
    loaded, card = SlotModel.load(path, (16, 24))
    assert loaded.config == SMALL and card == {"task": "drawn", "scores": {"fg_ari": 0.5}}
    torch.testing.assert_close(loaded(noise(2)).slots, model(noise(2)).slots)
    assert list(path.parent.iterdir()) == [path], "no partial file is left"


def test_a_model_of_twins_is_saved_and_loaded(tmp_path: Path) -> None:
    config = replace(SMALL, slots=4, clusters=2, twins=(3,))
    colours = torch.rand(2, 3)
    proposals = SegmentProposals(colours, torch.tensor([0, 1]), 2, twins=config.twins)
    cast(TwinSplit, proposals.twins[0]).size.fill_(9.0)
    SlotModel(config, None, proposals).save(tmp_path / "model.safetensors", {})
    loaded, _ = SlotModel.load(tmp_path / "model.safetensors")
    assert loaded.config == config and loaded.proposals.alike == [[1, 2, 3]]
    assert cast(TwinSplit, loaded.proposals.twins[0]).size == 9.0
    assert loaded.proposals.bodies().tolist() == [0, 1, 2, 3], "each is a body"


def refused(path: Path, frame_size: tuple[int, int] | None = None) -> str:
    with pytest.raises(ValueError) as error:
        SlotModel.load(path, frame_size)
    message = str(error.value)
    assert path.name in message and "\n" not in message
    return message


def test_files_that_are_no_slot_model_are_refused_in_one_line(
    model: SlotModel, tmp_path: Path
) -> None:
    assert "does not exist" in refused(tmp_path / "missing.safetensors")
    path = tmp_path / "model.safetensors"
    model.save(path, {})
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "truncated" in refused(path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    assert "no slot model" in refused(foreign)


def test_a_model_for_other_frames_or_with_other_tensors_is_refused(
    model: SlotModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    model.save(path, {})
    assert "(16, 24)" in refused(path, (64, 64))
    config = {**asdict(SMALL), "width": 16}
    metadata = {"format": FORMAT, "config": json.dumps(config), "card": "{}"}
    save_file(model.state_dict(), path, metadata)
    assert "other shapes" in refused(path)
    save_file(
        model.state_dict(), path, metadata | {"config": json.dumps({"slots": 3, "colour": "red"})}
    )
    assert "config" in refused(path)


def test_odd_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        SlotModel(SlotConfig(frame_size=(15, 24)))


def test_tokens_can_be_coarser() -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (2, 16, 24, 3), dtype=torch.uint8)
    for stride in (2, 4):
        model = SlotModel(replace(SMALL, stride=stride, pixel_channels=4))
        assert model.grid == (16 // stride, 24 // stride)
        assert model.encoder(torch.rand(2, 6, 16, 24)).shape == (
            2,
            16 * 24 // stride**2,
            SMALL.width,
        )
        assert model(frames).decoded.masks.shape == (2, SMALL.slots, 16, 24)
    with pytest.raises(ValueError, match="stride=3: choose 2 or 4"):
        SlotModel(SlotConfig(stride=3))
    with pytest.raises(ValueError, match="multiples of 4"):
        SlotModel(SlotConfig(stride=4, frame_size=(30, 32)))


@pytest.mark.parametrize("channels", [0, 8])
def test_only_pixel_channels_tell_the_pixels_of_a_cell_apart(channels: int) -> None:
    """Two things whose columns alternate: every token sees as much of the one as of the other."""
    torch.manual_seed(0)
    model = SlotModel(replace(SMALL, slots=2, pixel_channels=channels))
    frames = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    frames[:, :, 0::2, 0], frames[:, :, 1::2, 2] = 200, 200
    images, odd = frames.permute(0, 3, 1, 2) / 255, torch.arange(24) % 2 == 1
    shares = torch.stack([~odd, odd]).float().view(1, 2, 1, 24).expand(1, 2, 16, 24)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        pseudo_label_loss(model(frames, assign_unseen=False), shares, images).backward()
        optimizer.step()
    own = (model(frames, assign_unseen=False).decoded.masks * shares).sum() / shares.sum()
    assert own > 0.95 if channels else own < 0.6


def test_what_no_row_needs_can_be_left_out_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = SlotModel(SlotConfig(slots=3, width=8, channels=8))
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    before = model(frames).slots
    none, one = torch.tensor([False, False]), torch.tensor([True, False])
    for unseen in (False, True):
        model.proposals.unseen.fill_(unseen)
        for first in (none, one):
            whole, less = (model(frames, before, first, skip=skip) for skip in (False, True))
            assert torch.equal(whole.slots, less.slots)
            assert torch.equal(whole.decoded.masks, less.decoded.masks)


def test_what_is_hidden_is_remembered_row_by_row_but_not_by_a_camera_that_is_not_exact(
    model: SlotModel,
) -> None:
    """In the first row a thing is hidden from its third column on; the second row starts anew with
    a hand amid the thing."""
    masks = torch.zeros(2, 3, 16, 24)
    masks[:, 0, 4:10, 4:10] = 1.0
    thing = masks[:, :1].clone()
    sight = model(noise(2))
    seen = [replace(sight, decoded=replace(sight.decoded, masks=masks))]
    masks = masks.clone()
    masks[0, 1, 2:12, 6:12] = masks[1, 1, 6:8, 6:8] = 1.0
    masks[:, 0] *= 1 - masks[:, 1]
    seen.append(replace(sight, decoded=replace(sight.decoded, masks=masks)))
    _, carried = model.remember(seen[0], {})
    after, _ = model.remember(seen[1], carried, torch.tensor([False, True]))
    anew, _ = model.remember(seen[1], {})
    whole = model.locate(torch.cat([thing, masks[:, 1:]], dim=1))
    torch.testing.assert_close(after, whole)
    torch.testing.assert_close(anew[1], whole[1])
    assert (anew[0, 0] - whole[0, 0]).abs().max() > 0.05  # nothing is known of it yet
    model.config = replace(model.config, adapt=True)
    assert model.remember(seen[1], carried) == (seen[1].coordinates, {})
