"""What slot models can be trained for, beside the things that were found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from perception.discovery.losses import (
    Batch,
    LossConfig,
    SlotLoss,
    contrast_over_time,
    motion_weight,
    pseudo_label_loss,
    reconstruction_loss,
)
from perception.discovery.train import DiscoveryConfig, discover
from perception.encoders.timm import FrozenFeatures
from perception.images import as_images
from perception.slots.model import Predictor, SlotConfig, SlotModel
from perception.slots.perception import SlotPerception
from tests.perception.scene import SIZE, empty_floor, roll_scene

SMALL = SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE))
TINY = "resnet10t"


def model(config: SlotConfig = SMALL) -> SlotModel:
    torch.manual_seed(0)
    return SlotModel(config, torch.from_numpy(empty_floor())[None])


def batch(rows: int = 4) -> tuple[Batch, torch.Tensor]:
    """Frames of two things, half of them seen as first ones, and the slots of the frames before."""
    scene = roll_scene(rows, 3, 2, seed=0)
    truth = torch.from_numpy(scene.segmentation[:, 1])
    frames = torch.from_numpy(scene.frames)
    moved = (frames[:, 1] != frames[:, 0]).any(dim=-1)
    shares = torch.stack([truth == 1, truth == 2], dim=1).float()
    return Batch(frames[:, 1], torch.arange(rows) % 2 == 0, shares, moved), torch.randn(
        rows, SMALL.slots, SMALL.width
    )


def test_pixels_count_in_full_around_what_moves_and_less_elsewhere() -> None:
    moved = torch.zeros(1, 20, 20, dtype=torch.bool)
    moved[0, 10, 10] = True
    weight = motion_weight(moved, 0.2)[0]
    assert weight[8:13, 8:13].eq(1.0).all()
    assert (weight == 1.0).sum() == 25 and weight[0, 0].item() == pytest.approx(0.2)


def test_what_rests_weighs_less_in_both_losses() -> None:
    (some, slots), seeing = batch(), model()
    images = as_images(some.frames)
    sight = seeing.see(images, slots, some.is_first)
    for loss in (
        lambda weight: pseudo_label_loss(sight, some.shares, images, weight),
        lambda weight: reconstruction_loss(sight, images, weight),
    ):
        usual, ones, none = (
            loss(None),
            loss(torch.ones_like(sight.alpha)),
            loss(torch.zeros_like(sight.alpha)),
        )
        torch.testing.assert_close(usual, ones)
        assert none < usual


def test_reconstruction_is_least_where_the_frame_is_drawn() -> None:
    some, slots = batch()
    images = as_images(some.frames)
    sight = model().see(images, slots, some.is_first)
    assert reconstruction_loss(sight, images) > 0
    sight.decoded.image = images
    assert reconstruction_loss(sight, images) == 0


def test_contrast_is_low_where_slots_are_known_again_and_counts_later_frames_alone() -> None:
    torch.manual_seed(0)
    before = torch.randn(3, 2, 16)
    later = torch.tensor([True, True, False])
    known = contrast_over_time(before, before, later)
    assert known < 0.1 < contrast_over_time(before, before.flip(1), later), (
        "two slots of a row exchanged"
    )
    assert contrast_over_time(before, before.flip(1), torch.zeros(3, dtype=torch.bool)) == 0
    other = before.clone()
    other[2] = torch.randn(2, 16)
    now = before.clone().requires_grad_()
    contrast_over_time(before, now, later).backward()
    assert now.grad[:2].abs().sum() > 0 and now.grad[2].abs().sum() == 0


def test_a_predictor_begins_by_changing_little_and_learns_from_the_action() -> None:
    torch.manual_seed(0)
    predictor, slots = Predictor(16, 3), torch.randn(4, 2, 16).tanh()
    unknown = predictor(slots, None)
    assert (unknown - slots).norm() < 0.2 * slots.norm()
    assert torch.equal(unknown, predictor(slots, torch.zeros(4, 3)))
    some, before = batch()
    seeing = model(SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE), actions=3))
    some.action = torch.randn(4, 3)
    loss, _ = SlotLoss(seeing)(some, before)
    loss.backward()
    gradients = [parameter.grad for parameter in seeing.predictor.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_slots_go_on_by_what_was_done_where_it_is_known() -> None:
    seeing = model(SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE), actions=3))
    frames, actions = (
        torch.from_numpy(roll_scene(2, 4, 2, seed=0).frames).transpose(0, 1),
        torch.randn(4, 2, 3),
    )
    told, untold = seeing.encode_video(frames, actions), seeing.encode_video(frames)
    assert torch.equal(told[0].slots, untold[0].slots) and not torch.equal(
        told[1].slots, untold[1].slots
    )
    slots, first = told[0].slots, torch.tensor([True, False])
    sight = seeing(frames[1], slots, first, actions[0])
    torch.testing.assert_close(sight.slots[1], told[1].slots[1])
    torch.testing.assert_close(sight.slots[0], seeing(frames[1]).slots[0])


def test_a_predicting_model_is_kept_in_its_file_and_stays_frozen(tmp_path: Path) -> None:
    path = tmp_path / "slots.safetensors"
    seeing = model(SlotConfig(slots=2, width=16, channels=8, frame_size=(SIZE, SIZE), actions=3))
    seeing.save(path, {})
    for settings in ({"train": True}, {"learn": True}):
        with pytest.raises(ValueError, match="predicts slots by actions"):
            SlotPerception(path, frame_size=(SIZE, SIZE), **settings)
    perception = SlotPerception(path, frame_size=(SIZE, SIZE))
    frames, action = torch.from_numpy(roll_scene(2, 2, 2, seed=0).frames), torch.randn(2, 3)
    window, memory = perception.observe(
        frames[:, :1], torch.zeros(2, 3), torch.tensor([True, True]), {}
    )
    window, _ = perception.observe(frames, action, torch.tensor([False, False]), memory)
    expected = perception.model.encode_video(frames.transpose(0, 1), torch.stack([action, action]))[
        1
    ]
    torch.testing.assert_close(window["coordinates"], expected.coordinates)


@pytest.mark.parametrize(
    ("name", "grid", "channels"), [(TINY, 8, 128), ("vit_tiny_patch16_224", 4, 192)]
)
def test_frozen_features_lie_on_a_grid_and_learn_nothing(
    name: str, grid: int, channels: int
) -> None:
    features = FrozenFeatures(name, (64, 64)).train()
    assert (features.grid, features.channels, features.training) == ((grid, grid), channels, False)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    seen = features(images)
    assert seen.shape == (2, channels, grid, grid) and not seen.requires_grad
    torch.testing.assert_close(seen.mean(dim=1), torch.zeros(2, grid, grid), atol=1e-4, rtol=0)
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_frozen_features_come_from_a_file_that_must_fit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, path = FrozenFeatures(TINY, (64, 64)), tmp_path / "weights.safetensors"
    save_file(source.model.state_dict(), path)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(FrozenFeatures(TINY, (64, 64), str(path))(images), source(images))
    assert not torch.equal(FrozenFeatures(TINY, (64, 64))(images), source(images))
    with pytest.raises(ValueError, match="do not fit timm:resnet18"):
        FrozenFeatures("resnet18", (64, 64), str(path))
    with pytest.raises(ValueError, match="no_such_model is unknown to timm"):
        FrozenFeatures("no_such_model", (64, 64))


def test_weights_of_the_hub_that_cannot_be_had_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm

    def unreachable(*words: object, pretrained: bool, **settings: object) -> None:
        assert pretrained
        raise OSError("no connection\nand a long story")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        ValueError, match="weights=hub: timm's weights of resnet10t cannot be had: no connection$"
    ):
        FrozenFeatures(TINY, (64, 64), "hub")


def test_slots_are_taught_by_features_through_their_masks() -> None:
    some, slots = batch()
    seeing = model()
    objective = SlotLoss(seeing, LossConfig(features=1.0, backbone=TINY))
    images = as_images(some.frames)
    sight = seeing.see(images, slots, some.is_first)
    loss = objective.features(sight, images)
    loss.backward()
    assert (
        seeing.attention.queries.grad.abs().sum() > 0
        and seeing.attention.to_key.weight.grad.abs().sum() > 0
    )
    with pytest.raises(ValueError, match="name a timm model"):
        SlotLoss(seeing, LossConfig(features=1.0))


def test_each_term_changes_the_loss_and_bfloat16_little() -> None:
    some, slots = batch()
    some.moved[:, : SIZE // 2] = False
    usual = SlotLoss(model())(some, slots)[0].item()
    for terms in (
        LossConfig(pseudo_label_loss=False),
        LossConfig(static_pixel_weight=0.2),
        LossConfig(contrast=0.1),
        LossConfig(features=0.1, backbone=TINY),
    ):
        assert SlotLoss(model(), terms)(some, slots)[0].item() != pytest.approx(usual, rel=1e-5)
    loss, seen = SlotLoss(model(), LossConfig(precision="bfloat16"))(some, slots)
    assert loss.item() == pytest.approx(usual, rel=0.05) and (loss.dtype, seen.dtype) == (
        torch.float32,
        torch.float32,
    )


@pytest.mark.slow
def test_compiled_training_learns_what_eager_training_learns() -> None:
    scenes = [roll_scene(4, 20, 2, seed=0).frames]
    eager, compiled = (
        discover(scenes, SMALL, DiscoveryConfig(steps=5, compiled=flag)) for flag in (False, True)
    )
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(
            compiled.state_dict()[name], value, atol=1e-4, rtol=1e-3, msg=name
        )
