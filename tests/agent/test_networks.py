"""Network parts: they equal what PyTorch computes by other means, and work for many sets of weights
at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from perception.gru import GRUCell
from perception.ops import elu_
from vis_rpg.agent.networks import GRU, EnsembleMLP, Linear, mlp


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of ELU that is compiled, run eagerly."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.usefixtures("compiling")
def test_the_elu_that_is_compiled_equals_that_of_pytorch_everywhere() -> None:
    x = torch.cat(
        [
            torch.linspace(-30, 30, 4001),
            torch.tensor([0.0, -0.0, -1e-8, 1e-8, -1e4, 1e4, math.inf, -math.inf]),
        ]
    )
    torch.testing.assert_close(elu_(x.clone()), F.elu(x), rtol=1e-6, atol=1.5e-7)


@pytest.mark.usefixtures("compiling")
def test_the_elu_that_is_compiled_lets_a_nan_through_instead_of_hiding_it() -> None:
    assert torch.isnan(elu_(torch.tensor([math.nan]))).all()


@pytest.mark.usefixtures("compiling")
def test_the_elu_that_is_compiled_has_the_gradient_of_that_of_pytorch() -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64, requires_grad=True)
    upstream = torch.linspace(-1, 2, 1001, dtype=torch.float64)
    [ours] = torch.autograd.grad(elu_(x), x, upstream)
    [theirs] = torch.autograd.grad(F.elu(x), x, upstream)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("net", [mlp(4, 3, 8), EnsembleMLP(2, 4, 8)])
def test_networks_leave_their_input_as_it_was(net: nn.Module) -> None:
    x = torch.linspace(-2, 2, 20).view(5, 4)
    before = x.clone()
    net(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(7, 7), (3, 9), (9, 3)])
def test_layers_start_orthogonal_and_without_bias(shape: tuple[int, int]) -> None:
    layer = Linear(*shape)
    weight = layer.weight if shape[0] >= shape[1] else layer.weight.T
    torch.testing.assert_close(weight @ weight.T, torch.eye(min(shape)), rtol=0, atol=1e-5)
    assert not layer.bias.any()


def test_members_of_an_ensemble_start_orthogonal_and_different() -> None:
    ensemble = EnsembleMLP(2, 5, 8)
    for layers in (ensemble.first.weight.chunk(2), ensemble.weight, ensemble.last_weight):
        first, second = (w if w.shape[0] <= w.shape[1] else w.T for w in layers)
        torch.testing.assert_close(first @ first.T, torch.eye(len(first)), rtol=0, atol=1e-5)
        assert not torch.allclose(first, second)


def test_an_ensemble_equals_separate_mlps() -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(3, 5, 8)
    for bias in (ensemble.first.bias, ensemble.bias, ensemble.last_bias):
        nn.init.normal_(bias)
    x = torch.randn(11, 5)
    together = ensemble(x)
    for member in range(3):
        alone = mlp(5, 1, 8)
        alone.layers[0].weight.data, alone.layers[0].bias.data = (
            part.chunk(3)[member] for part in (ensemble.first.weight.data, ensemble.first.bias.data)
        )
        alone.layers[1].weight.data, alone.layers[1].bias.data = (
            ensemble.weight.data[member],
            ensemble.bias.data[member, 0],
        )
        alone.layers[2].weight.data, alone.layers[2].bias.data = (
            ensemble.last_weight.data[member],
            ensemble.last_bias.data[member],
        )
        torch.testing.assert_close(together[member], alone(x).squeeze(-1))


def test_a_gru_cell_starts_orthogonal_and_without_bias() -> None:
    cell = GRU(4, 6)
    for layer in (cell.input, cell.recurrent):
        torch.testing.assert_close(
            layer.weight.T @ layer.weight, torch.eye(layer.in_features), rtol=0, atol=1e-5
        )
        assert not layer.bias.any()


class _Cell(GRUCell):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(self.input(x), h)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: mlp(5, 2, 8), [(11, 5)]),
        (lambda: EnsembleMLP(2, 5, 8), [(11, 5)]),
        (lambda: _Cell(5, 8), [(11, 5), (11, 8)]),
    ],
)
def test_many_sets_of_weights_run_at_once_and_each_as_alone(
    make, inputs: list[tuple[int, ...]]
) -> None:
    modules = [make() for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    x = [torch.randn(3, *shape) for shape in inputs]

    def loss(parameters, buffers, *x):
        return (functional_call(modules[0], (parameters, buffers), x) ** 2).sum()

    together, gradients = vmap(torch.func.grad_and_value(loss))(parameters, buffers, *x)[::-1]
    for seed, module in enumerate(modules):
        alone = (module(*(part[seed] for part in x)) ** 2).sum()
        torch.testing.assert_close(together[seed], alone)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(
                gradients[name][seed], torch.autograd.grad(alone, parameter, retain_graph=True)[0]
            )
