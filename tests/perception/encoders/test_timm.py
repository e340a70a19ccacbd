from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from perception.encoders.cnn import CnnPerception
from perception.encoders.timm import TimmEncoder, make_timm

TINY = "resnet10t"


def test_timm_can_be_imported_after_the_torchvision_module_in_a_fresh_process() -> None:
    code = (
        "import perception.encoders.torchvision_compat, torchvision, timm; "
        "print(timm.create_model('resnet10t', num_classes=0).num_features)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_the_torchvision_module_does_nothing_where_native_operators_load() -> None:
    code = (
        "import sys, types; sys.modules['torchvision'] = types.ModuleType('torchvision');"
        "import perception.encoders.torchvision_compat as compat; assert compat.library is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_another_fault_of_torchvision_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    insert = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{insert}; import perception.encoders.torchvision_compat"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode != 0 and "something else" in done.stderr


def test_a_timm_backbone_sees_frame_pairs_and_is_trained() -> None:
    seeing = CnnPerception(backbone=f"timm:{TINY}")
    window = {"frame": torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8)}
    features = seeing.features(window)
    assert features.shape == (1, 3, *seeing.feature_shape)
    features.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in seeing.encoder.parameters())


def test_weights_of_a_timm_backbone_come_from_a_file_that_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    source = TimmEncoder(TINY, 6)
    save_file({k: v.contiguous() for k, v in source.model.state_dict().items()}, path)
    loaded = CnnPerception(backbone=f"timm:{TINY}", weights=str(path))
    images = torch.rand(2, 6, 64, 64)
    torch.testing.assert_close(loaded.encoder.eval()(images), source.eval()(images))
    for wrong in (
        tmp_path / "missing.safetensors",
        tmp_path / "broken.safetensors",
        tmp_path / "other.safetensors",
    ):
        if wrong.stem == "broken":
            wrong.write_bytes(b"no weights")
        if wrong.stem == "other":
            save_file({"weight": torch.zeros(1)}, wrong)
        with pytest.raises(ValueError, match=wrong.stem) as error:
            CnnPerception(backbone=f"timm:{TINY}", weights=str(wrong))
        assert "\n" not in str(error.value)


def test_weights_of_the_hub_that_cannot_be_had_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm

    def unreachable(*words: object, pretrained: bool, **settings: object) -> None:
        assert pretrained
        raise OSError("no connection\nand a long story")

    monkeypatch.setattr(timm, "create_model", unreachable)
    message = "weights=hub: timm's weights of resnet10t cannot be had: no connection$"
    with pytest.raises(ValueError, match=message):
        make_timm("resnet10t", "hub")


def test_an_unknown_timm_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no_such_model is unknown to timm"):
        make_timm("no_such_model", None)
