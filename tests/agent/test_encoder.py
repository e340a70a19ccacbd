"""The encoder f: any features, any leading shape."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from vis_rpg.agent.encoder import FlatEncoder, SlotTransformer, make_encoder


@pytest.mark.parametrize(
    ("kind", "shape"), [("mlp", (7,)), ("mlp", (2, 3, 5)), ("transformer", (2, 3, 5))]
)
def test_each_item_is_encoded_by_itself_whatever_leads(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    f = make_encoder(kind, shape, 6, 16)
    features = torch.randn(4, 3, *shape)
    s = f(features)
    assert s.shape == (4, 3, 6)
    torch.testing.assert_close(f(features[1]), s[1])
    torch.testing.assert_close(f(features[2, 1:2]), s[2, 1:2])


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_every_slot_of_both_frames_is_read(kind: str) -> None:
    torch.manual_seed(0)
    f = make_encoder(kind, (2, 3, 5), 6, 16)
    features = torch.randn(1, 2, 3, 5, requires_grad=True)
    f(features).square().sum().backward()
    assert (features.grad.abs().amax(-1) > 0).all()


def test_the_transformer_tells_slots_and_frames_apart() -> None:
    torch.manual_seed(0)
    f = SlotTransformer((2, 3, 5), 6, 16)
    features = torch.randn(1, 2, 3, 5)
    s = f(features)
    assert not torch.allclose(f(features[:, :, [1, 0, 2]]), s, atol=1e-4), (
        "which slot an object is in carries meaning"
    )
    assert not torch.allclose(f(features.flip(1)), s, atol=1e-4), (
        "which frame came first carries meaning"
    )


def test_a_transformer_over_vectors_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"transformer reads slots .* shape \(7,\): use perception.encoder=mlp"
    ):
        make_encoder("transformer", (7,), 6, 16)
    assert isinstance(make_encoder("mlp", (7,), 6, 16), FlatEncoder)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_many_encoders_run_at_once(kind: str) -> None:
    encoders = [make_encoder(kind, (2, 3, 5), 6, 16) for _ in range(3)]
    parameters, buffers = stack_module_state(encoders)
    features = torch.randn(3, 4, 2, 3, 5)
    together = vmap(lambda p, b, x: functional_call(encoders[0], (p, b), (x,)))(
        parameters, buffers, features
    )
    for seed, f in enumerate(encoders):
        torch.testing.assert_close(together[seed], f(features[seed]), rtol=1e-4, atol=1e-5)
