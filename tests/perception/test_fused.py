"""The kernels of a CPU: they compute what torch computes by other means, gradients included, and no more than is asked for."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from perception import fused
from perception.cnn import Conv4, encode_pairs, pairs_of
from perception.gru import GRUCell
from vis_rpg.networks import GRU, MLP, EnsembleMLP, Linear

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the kernels need a C++ compiler")
ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "elu": F.elu, "leaky_relu": F.leaky_relu}


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    fused.load()


def layers(*widths: int, groups: tuple[int, ...] = ()) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    pairs = list(zip(widths, widths[1:], strict=False))
    weights = [(torch.randn(*groups, n, k) / k**0.5).requires_grad_() for k, n in pairs]
    return weights, [torch.randn(*groups, n).requires_grad_() for _, n in pairs]


def by_torch(x: Tensor, weights: list[Tensor], biases: list[Tensor], activation: str) -> Tensor:
    for index, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = F.linear(ACTIVATE[activation](x) if index else x, w, b)
    return x


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize(
    ("shape", "widths"),
    [((64,), (1, 1)), ((3, 47), (5, 33, 70, 12)), ((300,), (114, 64, 48, 100)), ((1000,), (34, 16)), ((65,), (32, 32, 1))],
)
def test_a_chain_and_its_gradients_are_those_of_torch(shape: tuple[int, ...], widths: tuple[int, ...], activation: str) -> None:
    weights, biases = layers(*widths)
    x = torch.randn(*shape, widths[0], requires_grad=True)
    ours, theirs = fused.chain(x, weights, biases, activation), by_torch(x, weights, biases, activation)
    upstream = torch.randn_like(theirs)
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [x, *weights, *biases], upstream) for y in (ours, theirs)))
    with torch.no_grad():
        close(fused.chain(x, weights, biases, activation), theirs)


@pytest.mark.parametrize("x", [torch.randn(7, 150).T, torch.randn(150, 10)[:, 2:9]], ids=["columns first", "rows apart"])
def test_a_chain_of_inputs_that_do_not_lie_in_order_is_that_of_torch(x: Tensor) -> None:
    weights, biases = layers(7, 20, 9)
    x.requires_grad_()
    upstream = torch.randn(9, 150).T
    ours, theirs = fused.chain(x, weights, biases, "elu"), by_torch(x, weights, biases, "elu")
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [x, *weights], upstream) for y in (ours, theirs)))


def test_large_and_broken_values_come_out_as_from_torch() -> None:
    x = torch.cat([torch.linspace(-120, 120, 64), torch.tensor([-1e30, 1e30, math.inf, math.nan, 0.0, -1e-8])]).unsqueeze(-1)
    one, zero = [torch.ones(1, 1)] * 2, [torch.zeros(1)] * 2
    torch.testing.assert_close(fused.chain(x, one, zero, "elu"), F.elu(x), rtol=1e-6, atol=1.5e-7, equal_nan=True)


class Asked(TorchDispatchMode):
    """Which gradients of chains were computed: of x, of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.vis_rpg.chain_backward.default:
            self.seen.append(args[-2:])
        return func(*args, **(kwargs or {}))


def test_only_those_gradients_are_computed_that_are_asked_for() -> None:
    weights, biases = layers(8, 16, 4)
    x = torch.randn(64, 8, requires_grad=True)
    for wanted, expected in (([x], (True, False)), (weights, (False, True)), ([x, *biases], (True, True))):
        with Asked() as asked:
            torch.autograd.grad(fused.chain(x, weights, biases, "elu").sum(), wanted)
        assert asked.seen == [expected]


@pytest.mark.parametrize("shared", [False, True])
def test_mapped_chains_have_weights_of_their_own_and_may_share_their_input(shared: bool) -> None:
    weights, biases = layers(9, 40, 5, groups=(3,))
    x = torch.randn(*([] if shared else [3]), 70, 9, requires_grad=True)
    mapped = torch.vmap(lambda x, w, b: fused.chain(x, w, b, "elu"), (None if shared else 0, 0, 0))
    ours = mapped(x, weights, biases)
    theirs = torch.stack([by_torch(x if shared else x[i], [w[i] for w in weights], [b[i] for b in biases], "elu") for i in range(3)])
    close(ours, theirs)
    close(*(torch.autograd.grad(y.square().sum(), [x, *weights, *biases]) for y in (ours, theirs)))


@pytest.mark.parametrize(("rows", "inputs", "hidden"), [(64, 5, 32), (300, 70, 96)])
def test_a_step_of_a_gru_and_its_gradients_are_those_of_torch(rows: int, inputs: int, hidden: int) -> None:
    torch.manual_seed(0)
    cell = GRUCell(inputs, hidden)
    x, h = torch.randn(rows, inputs, requires_grad=True), torch.randn(rows, hidden, requires_grad=True)
    parameters = [cell.input.weight, cell.recurrent.weight, cell.input.bias, cell.recurrent.bias]
    theirs, ours = cell(cell.input(x), h), fused.gru_cell(x, h, parameters[:2], parameters[2:])
    upstream = torch.randn_like(theirs)
    close(ours, theirs)
    for wanted in ([x, h, *parameters], [h], [x], parameters):
        close(*(torch.autograd.grad(y, wanted, upstream, retain_graph=True) for y in (ours, theirs)))


def test_mapped_grus_have_weights_of_their_own() -> None:
    torch.manual_seed(0)
    cells = [GRUCell(6, 32) for _ in range(3)]
    names = ["input.weight", "recurrent.weight", "input.bias", "recurrent.bias"]
    parameters = [torch.stack([cell.get_parameter(name).detach() for cell in cells]).requires_grad_() for name in names]
    x, h = torch.randn(3, 80, 6), torch.randn(3, 80, 32)
    ours = torch.vmap(lambda x, h, p: fused.gru_cell(x, h, p[:2], p[2:]))(x, h, parameters)
    theirs = torch.stack([cell(cell.input(x[i]), h[i]) for i, cell in enumerate(cells)])
    close(ours, theirs)
    found = torch.autograd.grad(ours.square().sum(), parameters)
    for i, cell in enumerate(cells):
        close(
            [g[i] for g in found],
            list(torch.autograd.grad(theirs.square().sum(), [cell.get_parameter(n) for n in names], retain_graph=True)),
        )


def convolutions(channels: int, *widths: int, groups: tuple[int, ...] = ()) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    pairs = list(zip((2 * channels, *widths), widths, strict=False))
    weights = [(torch.randn(*groups, n, k, 3, 3) / (3 * k**0.5)).requires_grad_() for k, n in pairs]
    return weights, [torch.randn(*groups, n).requires_grad_() for _, n in pairs]


def encoded_by_torch(frames: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    pairs = pairs_of(frames)
    x = pairs.flatten(0, 1)
    for index, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = F.conv2d(F.relu(x) if index else x, w, b, stride=2, padding=1)
    return x.flatten(1).unflatten(0, pairs.shape[:2])


def random_frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((2, 5, 64, 64, 3), (32, 32, 32, 32)),
        ((4, 3, 17, 30, 3), (32, 64, 32)),
        ((2, 1, 5, 9, 1), (64, 32)),
        ((3, 2, 1, 1, 2), (32, 32)),
        ((3, 2, 2, 3, 3), (32, 96)),
        ((3, 2, 8, 7, 3), (32,)),
    ],
)
def test_convolutions_of_frames_and_their_gradients_are_those_of_torch(shape: tuple[int, ...], widths: tuple[int, ...]) -> None:
    weights, biases = convolutions(shape[-1], *widths)
    frames = random_frames(*shape)
    ours, theirs = (encode(frames, weights, biases) for encode in (fused.encode, encoded_by_torch))
    upstream = torch.randn_like(theirs)
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [*weights, *biases], upstream) for y in (ours, theirs)))
    with torch.no_grad():
        close(fused.encode(frames, weights, biases), theirs)


@pytest.mark.parametrize(
    "frames",
    [
        random_frames(3, 4, 8, 8, 3).transpose(0, 1),
        random_frames(4, 3, 3, 8, 8).movedim(2, -1),
        random_frames(4, 3, 9, 9, 3)[1:, :2, 1:, 1:],
    ],
    ids=["batch first", "channels first", "a part"],
)
def test_convolutions_of_frames_that_do_not_lie_in_order_are_those_of_torch(frames: Tensor) -> None:
    weights, biases = convolutions(3, 32, 32)
    ours, theirs = (encode(frames, weights, biases) for encode in (fused.encode, encoded_by_torch))
    upstream = torch.randn(theirs.shape[::-1]).permute(2, 1, 0)
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [*weights, *biases], upstream) for y in (ours, theirs)))


@pytest.mark.parametrize("shared", [False, True])
def test_mapped_convolutions_have_weights_of_their_own_and_may_share_their_frames(shared: bool) -> None:
    weights, biases = convolutions(3, 32, 64, groups=(2,))
    frames = random_frames(*([] if shared else [2]), 3, 4, 12, 10, 3)
    ours = torch.vmap(fused.encode, (None if shared else 0, 0, 0))(frames, weights, biases)
    theirs = torch.stack(
        [encoded_by_torch(frames if shared else frames[i], [w[i] for w in weights], [b[i] for b in biases]) for i in range(2)]
    )
    close(ours, theirs)
    close(*(torch.autograd.grad(y.square().sum(), [*weights, *biases]) for y in (ours, theirs)))


def test_an_encoder_is_the_same_with_the_kernels_and_without() -> None:
    net, frames = Conv4(6), random_frames(3, 4, 16, 16, 3)
    outputs = []
    for net.fused in (False, True):
        y = encode_pairs(net, frames)
        outputs.append((y, torch.autograd.grad(y.square().sum(), list(net.parameters()))))
    close(*outputs)


def test_other_frames_are_left_to_torch() -> None:
    weights, frames = [torch.zeros(32, 6, 3, 3)], random_frames(2, 1, 8, 8, 3)
    assert fused.encodable(frames, weights)
    assert not fused.encodable(frames.float(), weights)
    assert not fused.encodable(frames, [torch.zeros(48, 6, 3, 3)])
    assert not fused.encodable(frames[:1], weights) and not fused.encodable(frames[:, :0], weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.encodable(frames, weights)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: Linear(6, 40), [(70, 6)]),
        (lambda: MLP(6, 40, 3), [(4, 20, 6)]),
        (lambda: MLP(6, 40, 33, leaky=True), [(70, 6)]),
        (lambda: EnsembleMLP(2, 6, 40), [(70, 6)]),
    ],
)
def test_networks_are_the_same_with_the_kernels_and_without(make: Callable[[], Any], shapes: list[tuple[int, ...]]) -> None:
    net = make()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = [torch.randn(shape) for shape in shapes]
    outputs = []
    for net.fused in (False, True):
        y = net(*x)
        outputs.append((y, torch.autograd.grad(y.square().sum(), list(net.parameters()))))
    close(*outputs)


def test_a_gru_unrolls_the_same_with_the_kernels_and_without() -> None:
    cell = GRU(6, 32)
    x, h = torch.randn(3, 70, 6), torch.randn(70, 32)
    plain = cell.unroll(x, h)
    cell.fused = True
    close(cell.unroll(x, h), plain)
    close(cell.step(x[0], h), plain[0])


@pytest.mark.parametrize("x", [torch.zeros(63, 4), torch.zeros(64, 4, dtype=torch.float64), torch.zeros(64, 4, device="meta")])
def test_other_inputs_are_left_to_torch(x: Tensor) -> None:
    assert fused.usable(torch.zeros(64, 4)) and not fused.usable(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.usable(torch.zeros(64, 4))


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("#error nothing works today\n")
    monkeypatch.setattr(fused, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match="nothing works today"):
        fused.load.__wrapped__()
    assert not list((tmp_path / "vis_rpg").iterdir())  # nothing half-made is left
