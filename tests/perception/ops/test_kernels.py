"""The kernels of a CPU: they compute what torch computes by other means, gradients included, and no
more than is asked for."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode

from perception import ops
from perception.encoders.cnn import Conv4, encode_pairs
from perception.gru import GRUCell
from perception.ops import kernels
from vis_rpg.agent.networks import GRU, MLP, EnsembleMLP

pytestmark = pytest.mark.compiler
bfloat16 = pytest.mark.skipif(
    not kernels.MULTIPLIES_BFLOAT16, reason="this processor has no instructions for bfloat16"
)
ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
}


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    kernels.load()


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
    [
        ((64,), (1, 1)),
        ((3, 47), (5, 33, 70, 12)),
        ((300,), (114, 64, 48, 100)),
        ((1000,), (34, 16)),
        ((65,), (32, 32, 1)),
        ((151,), (9, 200, 310, 70)),
    ],
)
def test_a_chain_and_its_gradients_are_those_of_torch(
    shape: tuple[int, ...], widths: tuple[int, ...], activation: str
) -> None:
    weights, biases = layers(*widths)
    x = torch.randn(*shape, widths[0], requires_grad=True)
    ours, theirs = (
        kernels.chain([x], weights, biases, activation),
        by_torch(x, weights, biases, activation),
    )
    upstream = torch.randn_like(theirs)
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [x, *weights, *biases], upstream) for y in (ours, theirs)))
    with torch.no_grad():
        close(kernels.chain([x], weights, biases, activation), theirs)


@pytest.mark.parametrize(
    "x", [torch.randn(7, 150).T, torch.randn(150, 10)[:, 2:9]], ids=["columns first", "rows apart"]
)
def test_a_chain_of_inputs_that_do_not_lie_in_order_is_that_of_torch(x: Tensor) -> None:
    weights, biases = layers(7, 20, 9)
    x.requires_grad_()
    upstream = torch.randn(9, 150).T
    ours, theirs = kernels.chain([x], weights, biases, "elu"), by_torch(x, weights, biases, "elu")
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [x, *weights], upstream) for y in (ours, theirs)))


@pytest.mark.parametrize(
    "precision", [torch.float32, pytest.param(torch.bfloat16, marks=bfloat16)], ids=str
)
@pytest.mark.parametrize("rows", [70, 900])
def test_pieces_of_an_input_are_read_as_if_they_were_one_tensor(
    rows: int, precision: torch.dtype
) -> None:
    weights, biases = layers(21, 96, 40, 9)
    pieces = [
        torch.randn(rows, 30)[:, 5:16].requires_grad_(),
        torch.randn(7, rows).T.requires_grad_(),
        torch.randn(1, 3).expand(rows, 3),
    ]
    pieces.append(torch.zeros(rows, 0))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        ours, theirs = (
            kernels.chain(x, weights, biases, "elu") for x in (pieces, [torch.cat(pieces, -1)])
        )
    close(ours, theirs)
    close(*(torch.autograd.grad(y.square().sum(), [*pieces[:2], *weights]) for y in (ours, theirs)))
    mapped = torch.vmap(
        lambda x, y: kernels.chain([x, y, *pieces[2:]], weights, biases, "elu"), (0, None)
    )
    close(
        mapped(torch.stack([pieces[0], pieces[0] + 1]), pieces[1])[0],
        kernels.chain(pieces, weights, biases, "elu"),
    )


def test_large_and_broken_values_come_out_as_from_torch() -> None:
    x = torch.cat(
        [torch.linspace(-120, 120, 64), torch.tensor([-1e30, 1e30, math.inf, math.nan, 0.0, -1e-8])]
    ).unsqueeze(-1)
    one, zero = [torch.ones(1, 1)] * 2, [torch.zeros(1)] * 2
    torch.testing.assert_close(
        kernels.chain([x], one, zero, "elu"), F.elu(x), rtol=1e-6, atol=1.5e-7, equal_nan=True
    )


class Asked(TorchDispatchMode):
    """Which gradients of chains were computed: of x, of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.perception.chain_backward.default:
            self.seen.append(args[-2:])
        return func(*args, **(kwargs or {}))


def test_only_those_gradients_are_computed_that_are_asked_for() -> None:
    weights, biases = layers(8, 16, 4)
    x = torch.randn(64, 8, requires_grad=True)
    for wanted, expected in (
        ([x], (True, False)),
        (weights, (False, True)),
        ([x, *biases], (True, True)),
    ):
        with Asked() as asked:
            torch.autograd.grad(kernels.chain([x], weights, biases, "elu").sum(), wanted)
        assert asked.seen == [expected]


@pytest.mark.parametrize("shared", [False, True])
def test_mapped_chains_have_weights_of_their_own_and_may_share_their_input(shared: bool) -> None:
    weights, biases = layers(9, 40, 5, groups=(3,))
    x = torch.randn(*([] if shared else [3]), 70, 9, requires_grad=True)
    mapped = torch.vmap(
        lambda x, w, b: kernels.chain([x], w, b, "elu"), (None if shared else 0, 0, 0)
    )
    ours = mapped(x, weights, biases)
    theirs = torch.stack(
        [
            by_torch(x if shared else x[i], [w[i] for w in weights], [b[i] for b in biases], "elu")
            for i in range(3)
        ]
    )
    close(ours, theirs)
    close(*(torch.autograd.grad(y.square().sum(), [x, *weights, *biases]) for y in (ours, theirs)))


def gru(
    steps: int, rows: int, inputs: int, hidden: int
) -> tuple[GRUCell, Tensor, Tensor, list[Tensor]]:
    """A cell, what it reads, its first state, and its parameters as the kernels take them."""
    torch.manual_seed(0)
    cell = GRUCell(inputs, hidden)
    x, h = (
        torch.randn(steps, rows, inputs, requires_grad=True),
        torch.randn(rows, hidden, requires_grad=True),
    )
    return (
        cell,
        x,
        h,
        [cell.input.weight, cell.recurrent.weight, cell.input.bias, cell.recurrent.bias],
    )


def unrolled(cell: GRUCell, x: Tensor, h: Tensor) -> Tensor:
    hs = [h]
    for inputs in cell.input(x):
        hs.append(cell(inputs, hs[-1]))
    return torch.stack(hs[1:])


@pytest.mark.parametrize(
    ("steps", "rows", "inputs", "hidden"),
    [(1, 64, 32, 32), (1, 300, 64, 96), (3, 70, 96, 32), (4, 600, 32, 64)],
)
def test_steps_of_a_gru_and_their_gradients_are_those_of_torch(
    steps: int, rows: int, inputs: int, hidden: int
) -> None:
    cell, x, h, parameters = gru(steps, rows, inputs, hidden)
    theirs, ours = unrolled(cell, x, h), kernels.gru(x, h, parameters[:2], parameters[2:])
    upstream = torch.randn_like(theirs)
    close(ours, theirs)
    for wanted in ([x, h, *parameters], [h], [x], parameters):
        close(
            *(torch.autograd.grad(y, wanted, upstream, retain_graph=True) for y in (ours, theirs))
        )
    with torch.no_grad():
        close(kernels.gru(x, h, parameters[:2], parameters[2:]), theirs)


def test_mapped_grus_have_weights_of_their_own() -> None:
    torch.manual_seed(0)
    cells = [GRUCell(32, 32) for _ in range(3)]
    names = ["input.weight", "recurrent.weight", "input.bias", "recurrent.bias"]
    parameters = [
        torch.stack([cell.get_parameter(name).detach() for cell in cells]).requires_grad_()
        for name in names
    ]
    x, h = torch.randn(3, 2, 80, 32), torch.randn(3, 80, 32)
    ours = torch.vmap(lambda x, h, p: kernels.gru(x, h, p[:2], p[2:]))(x, h, parameters)
    theirs = torch.stack([unrolled(cell, x[i], h[i]) for i, cell in enumerate(cells)])
    close(ours, theirs)
    found = torch.autograd.grad(ours.square().sum(), parameters)
    for i, cell in enumerate(cells):
        close(
            [g[i] for g in found],
            list(
                torch.autograd.grad(
                    theirs.square().sum(), [cell.get_parameter(n) for n in names], retain_graph=True
                )
            ),
        )


def convolutions(
    channels: int, *widths: int, groups: tuple[int, ...] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    pairs = list(zip((2 * channels, *widths), widths, strict=False))
    weights = [(torch.randn(*groups, n, k, 3, 3) / (3 * k**0.5)).requires_grad_() for k, n in pairs]
    return weights, [torch.randn(*groups, n).requires_grad_() for _, n in pairs]


def encoded_by_torch(frames: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    pairs = ops.frame_pairs(frames)
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
def test_convolutions_of_frames_and_their_gradients_are_those_of_torch(
    shape: tuple[int, ...], widths: tuple[int, ...]
) -> None:
    weights, biases = convolutions(shape[-1], *widths)
    frames = random_frames(*shape)
    ours, theirs = (
        encode(frames, weights, biases) for encode in (kernels.encode, encoded_by_torch)
    )
    upstream = torch.randn_like(theirs)
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [*weights, *biases], upstream) for y in (ours, theirs)))
    with torch.no_grad():
        close(kernels.encode(frames, weights, biases), theirs)


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
    ours, theirs = (
        encode(frames, weights, biases) for encode in (kernels.encode, encoded_by_torch)
    )
    upstream = torch.randn(theirs.shape[::-1]).permute(2, 1, 0)
    close(ours, theirs)
    close(*(torch.autograd.grad(y, [*weights, *biases], upstream) for y in (ours, theirs)))


@pytest.mark.parametrize("shared", [False, True])
def test_mapped_convolutions_have_weights_of_their_own_and_may_share_their_frames(
    shared: bool,
) -> None:
    weights, biases = convolutions(3, 32, 64, groups=(2,))
    frames = random_frames(*([] if shared else [2]), 3, 4, 12, 10, 3)
    ours = torch.vmap(kernels.encode, (None if shared else 0, 0, 0))(frames, weights, biases)
    theirs = torch.stack(
        [
            encoded_by_torch(
                frames if shared else frames[i], [w[i] for w in weights], [b[i] for b in biases]
            )
            for i in range(2)
        ]
    )
    close(ours, theirs)
    close(*(torch.autograd.grad(y.square().sum(), [*weights, *biases]) for y in (ours, theirs)))


def test_an_encoder_is_the_same_with_the_kernels_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, frames = Conv4(6), random_frames(3, 4, 16, 16, 3)
    outputs = []
    for backend in ("torch", "kernels"):
        monkeypatch.setattr(ops, "BACKEND", backend)
        y = encode_pairs(net, frames)
        outputs.append((y, torch.autograd.grad(y.square().sum(), list(net.parameters()))))
    close(*outputs)


def test_other_frames_are_left_to_torch() -> None:
    weights, frames = [torch.zeros(32, 6, 3, 3)], random_frames(2, 1, 8, 8, 3)
    assert kernels.takes_frames(frames, weights)
    assert not kernels.takes_frames(frames.float(), weights)
    assert not kernels.takes_frames(frames, [torch.zeros(48, 6, 3, 3)])
    assert not kernels.takes_frames(frames[:1], weights) and not kernels.takes_frames(
        frames[:, :0], weights
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.takes_frames(frames, weights)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: MLP(6, 40), [(70, 6)]),
        (lambda: MLP(6, 40, 3), [(4, 20, 6)]),
        (lambda: MLP(6, 40, 33, activation="leaky_relu"), [(70, 6)]),
        (lambda: EnsembleMLP(2, 6, 40), [(70, 6)]),
    ],
)
def test_networks_are_the_same_with_the_kernels_and_without(
    make: Callable[[], Any], shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = [torch.randn(shape) for shape in shapes]
    outputs = []
    for backend in ("torch", "kernels"):
        monkeypatch.setattr(ops, "BACKEND", backend)
        y = net(*x)
        outputs.append((y, torch.autograd.grad(y.square().sum(), list(net.parameters()))))
    close(*outputs)


@pytest.mark.parametrize("inputs", [64, 6])  # the kernels take the first
def test_a_gru_unrolls_the_same_with_the_kernels_and_without(
    inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = GRU(inputs, 32)
    x, h = torch.randn(3, 70, inputs), torch.randn(70, 32)
    plain = cell.unroll(x, h)
    monkeypatch.setattr(ops, "BACKEND", "kernels")
    close(cell.unroll(x, h), plain)
    close(cell.step(x[0], h), plain[0])


# Factors in bfloat16 ------------------------------------------------------------------------------


def half(x: Tensor) -> Tensor:
    return x.bfloat16().double()


class HalfLinear(torch.autograd.Function):
    """What the kernels compute under autocast: the factors of all products are rounded, sums are
    not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return half(x) @ half(w).T + b.double()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x, w), up = ctx.saved_tensors, half(gradients[0])
        return up @ half(w), up.T @ half(x), up.sum(0)


class HalfActivation(torch.autograd.Function):
    """Kept rounded, and the slope is that of what is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str) -> Tensor:
        y = half(ACTIVATE[activation](x))
        ctx.save_for_backward(
            {
                "none": torch.ones_like(y),
                "elu": y.clamp(max=0.0) + 1,
                "leaky_relu": torch.where(y > 0, 1.0, 0.01),
            }[activation]
        )
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.saved_tensors[0], None


def near(ours: Any, theirs: Any) -> None:
    """The same but for sums that lie so close to the middle of two numbers that they are rounded to
    different ones."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 3e-4 * b.norm()


def in_bfloat16(call: Callable[..., Tensor], *inputs: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return call(*inputs)


@bfloat16
@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize(
    ("rows", "widths"),
    [
        (64, (1, 1)),
        (141, (5, 34, 70, 12)),
        (301, (114, 64, 48, 101)),
        (1000, (34, 16)),
        (65, (33, 32, 1)),
        (700, (17, 98, 31)),
    ],
)
def test_a_chain_of_bfloat16_rounds_factors_and_nothing_else(
    rows: int, widths: tuple[int, ...], activation: str
) -> None:
    weights, biases = layers(*widths)
    x = torch.randn(rows, widths[0], requires_grad=True)
    theirs: Tensor = x
    for index, (w, b) in enumerate(zip(weights, biases, strict=True)):
        theirs = HalfLinear.apply(
            HalfActivation.apply(theirs, activation) if index else theirs, w, b
        )
    ours = in_bfloat16(kernels.chain, [x], weights, biases, activation)
    upstream = torch.randn_like(ours)
    near([ours], [theirs])
    near(
        torch.autograd.grad(ours, [x, *weights, *biases], upstream),
        torch.autograd.grad(theirs, [x, *weights, *biases], upstream.double()),
    )
    with torch.no_grad():
        near([in_bfloat16(kernels.chain, [x], weights, biases, activation)], [theirs])


@bfloat16
@pytest.mark.parametrize(
    ("steps", "rows", "inputs", "hidden"), [(1, 64, 32, 32), (1, 301, 64, 96), (2, 601, 96, 64)]
)
def test_steps_of_a_gru_of_bfloat16_round_factors_and_nothing_else(
    steps: int, rows: int, inputs: int, hidden: int
) -> None:
    cell, x, h, parameters = gru(steps, rows, inputs, hidden)
    states: list[Tensor] = [h]
    for step in x:
        reset, update, new = HalfLinear.apply(step, cell.input.weight, cell.input.bias).chunk(3, -1)
        of_h = HalfLinear.apply(states[-1], cell.recurrent.weight, cell.recurrent.bias).chunk(3, -1)
        fresh = torch.tanh(new + torch.sigmoid(reset + of_h[0]) * of_h[2])
        states.append(fresh + torch.sigmoid(update + of_h[1]) * (states[-1].double() - fresh))
    ours, theirs = (
        in_bfloat16(kernels.gru, x, h, parameters[:2], parameters[2:]),
        torch.stack(states[1:]),
    )
    upstream = torch.randn_like(ours)
    near([ours], [theirs])
    for wanted in ([x, h, *parameters], [h], parameters):
        near(
            torch.autograd.grad(ours, wanted, upstream, retain_graph=True),
            torch.autograd.grad(theirs, wanted, upstream.double(), retain_graph=True),
        )


@bfloat16
def test_mapped_chains_and_grus_of_bfloat16_are_those_of_each_alone() -> None:
    weights, biases = layers(32, 40, 5, groups=(3,))
    x, h = torch.randn(3, 2, 70, 32), torch.randn(3, 70, 32)
    gates = layers(32, 96, groups=(3,)), layers(32, 96, groups=(3,))
    parameters = [own[0] for own, _ in gates], [own[0] for _, own in gates]
    for call in (
        lambda x, h, w, b, *_: kernels.chain([x], w, b, "elu"),
        lambda x, h, _w, _b, w, b: kernels.gru(x, h, w, b),
    ):
        given = (x, h, weights, biases, *parameters)
        mapped = in_bfloat16(torch.vmap(call), *given)
        for i in range(3):
            assert torch.equal(
                mapped[i],
                in_bfloat16(call, *torch.utils._pytree.tree_map(lambda t, i=i: t[i], given)),
            )


def test_layers_of_odd_width_are_left_to_torch_under_autocast_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, x = MLP(6, 33, 3), torch.randn(70, 6)
    monkeypatch.setattr(ops, "BACKEND", "kernels")
    assert net(x).dtype == torch.float32 and in_bfloat16(net, x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(63, 4),
        torch.zeros(64, 4, dtype=torch.float64),
        torch.zeros(64, 4, device="meta"),
    ],
)
def test_other_inputs_are_left_to_torch(x: Tensor) -> None:
    assert kernels.takes_chain([torch.zeros(64, 4)], ()) and not kernels.takes_chain([x], ())
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.takes_chain(
            [torch.zeros(64, 4)], ()
        ) == kernels.TAKES_BFLOAT16 and not kernels.takes_chain([x], ())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
@pytest.mark.slow
@pytest.mark.parametrize("processor", ["haswell", "skylake-avx512"])
def test_kernels_compile_for_processors_with_fewer_instructions(processor: str) -> None:
    flags = [f"-march={processor}" if flag == "-march=native" else flag for flag in kernels.FLAGS]
    includes = [f"-I{place}" for place in cpp_extension.include_paths()]
    subprocess.run(["g++", *flags, "-fsyntax-only", *includes, str(kernels.SOURCE)], check=True)


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("#error nothing works today\n")
    monkeypatch.setattr(kernels, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match="nothing works today"):
        kernels.load.__wrapped__()
    assert not list((tmp_path / "perception").iterdir())  # nothing half-made is left


def test_a_user_without_a_home_keeps_kernels_in_a_temporary_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # no account
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = kernels.cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert kernels.cache_folder() == folder
    assert capsys.readouterr().err.count("compiled kernels are kept in") == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kernels.cache_folder() == folder
    stranger = folder.stat().st_uid + 1
    folder.rename(tmp_path / f"perception-{stranger}")
    monkeypatch.setattr("os.getuid", lambda: stranger)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "deeper"))
    assert kernels.cache_folder().name != f"perception-{stranger}", (
        "what another user may have put there is not loaded"
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_by_themselves_kernels_run_in_compiled_code_alone(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    chain = kernels.chain
    monkeypatch.setattr(kernels, "chain", lambda *given: calls.append(1) or chain(*given))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    MLP(6, 40, 3)(torch.randn(70, 6))
    assert bool(calls) == compiled
