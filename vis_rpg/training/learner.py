"""Algorithm 1's updates for one agent, or for several independent ones side by side.

The agent's own files are written for one. Several are the same functions under `torch.func.vmap`:
every parameter, buffer, moment of Adam, batch and noise has a leading axis M, a row an agent, and
nothing ever crosses rows: neither the clipping of gradients nor a NaN. Shapes: M agents, P numbers
of a part, others as in `vis_rpg.agent`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from tqdm import tqdm

from perception.ops import fused
from vis_rpg.agent.batch import Batch, Noise
from vis_rpg.agent.networks import FUSED
from vis_rpg.agent.rpg import Agent, Metrics

Gradients = dict[str, Tensor]
"""Of each part, (M, P)."""
Found = tuple[Gradients, Metrics, tuple[Tensor, ...]]
ALIGNMENT = (
    16  # numbers; a parameter begins at a multiple of so many, as loads of whole vectors want it
)

for _type in (Batch, Noise):  # so that vmap looks into them
    pytree.register_dataclass(_type)


class Rows:
    """Tensors of M agents, laid into one tensor `flat` (M, P): each agent's own tensors become
    views of its row."""

    def __init__(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """tensors: the same list of shapes for each agent."""
        self.shapes = [t.shape for t in tensors[0]]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in self.sizes]
        self.flat = tensors[0][0].new_zeros(len(tensors), sum(self.padded))
        for row, own in zip(self.blocks(), zip(*tensors, strict=True), strict=True):
            for place, tensor in zip(row, own, strict=True):
                place.copy_(tensor.detach())
                tensor.data = place

    def blocks(self) -> list[Tensor]:
        """Each tensor of all agents, (M, *shape), as a view."""
        parts = self.flat.split(self.padded, 1)
        return [
            part[:, :size].view(-1, *shape)
            for part, size, shape in zip(parts, self.sizes, self.shapes, strict=True)
        ]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors (M, *shape), or (*shape) of a single agent, in the layout of `flat`."""
        M = len(self.flat)
        pieces = []
        for tensor, size, padded in zip(tensors, self.sizes, self.padded, strict=True):
            pieces.append(tensor.reshape(M, size))
            if padded > size:
                pieces.append(tensor.new_zeros(M, padded - size))
        return torch.cat(pieces, 1)


class Learner:
    """M agents with the optimizers of their parts.

    agents: of the same shapes, on their device; they stay usable each on its own, as their
    parameters and buffers become views of what is learned here. precision: "float32", or "bfloat16"
    for the products of the losses (autocast).
    """

    def __init__(self, agents: Sequence[Agent], precision: str = "float32") -> None:
        self.agents = list(agents)
        self.agent = agents[0]
        self.config = self.agent.config
        self.device = self.agent.log_alpha.device
        self.precision = precision
        self.autocast = partial(
            torch.autocast, self.device.type, torch.bfloat16, enabled=precision == "bfloat16"
        )
        self.updates = 0
        # What `functional_call` lends each agent's tensors to for a while: none of the agents,
        # which may be acting meanwhile.
        self.stateless = copy.deepcopy(self.agent) if len(agents) > 1 else self.agent
        names = {id(p): name for name, p in self.agent.named_parameters()}
        parts = [agent.parts() for agent in agents]
        self.rows = {part: Rows([own[part] for own in parts]) for part in parts[0]}
        self.average = Rows([agent.averaged() for agent in agents])
        self.learned: dict[str, list[Tensor]] = {
            part: list(own) for part, own in parts[0].items()
        }  # the leaves of gradients
        self.state: dict[str, Tensor] = {}
        if len(agents) > 1:
            for part, rows in self.rows.items():
                self.learned[part] = [block.requires_grad_() for block in rows.blocks()]
                self.state |= {
                    names[id(p)]: block
                    for p, block in zip(parts[0][part], self.learned[part], strict=True)
                }
            self.state |= {
                names[id(p)]: block
                for p, block in zip(self.agent.averaged(), self.average.blocks(), strict=True)
            }
            self._stack_the_rest()
        self.optimizers = {
            part: torch.optim.Adam(
                [nn.Parameter(rows.flat)],
                self.config.lr,
                fused=True,
                capturable=self.device.type == "cuda",
            )
            for part, rows in self.rows.items()
        }
        self.call: Callable[..., Any] = self._call
        self.gradients: Callable[..., Found] = self._gradients

    def _stack_the_rest(self) -> None:
        """What nothing descends on: frozen parameters and buffers, (M, ...) with each agent's own
        as a view."""
        own = [dict([*agent.named_parameters(), *agent.named_buffers()]) for agent in self.agents]
        for name in own[0].keys() - self.state.keys():
            self.state[name] = torch.stack([tensors[name].detach() for tensors in own])
            for tensors, row in zip(own, self.state[name], strict=True):
                tensors[name].data = row

    # Algorithm 1 ----------------------------------------------------------------------------------

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One turn of Algorithm 1's loop after acting: the density estimator, ψ by Eq. 4, then π,
        p_φ, α by Eq. 3 every second time.

        batch, noise: of one agent, or (M, ...) of several. Returns metrics, each (M,), which stay
        on the device.
        """
        metrics = self.turn(batch, noise, *self.phase)
        self.updates += 1
        return metrics

    @property
    def phase(self) -> tuple[bool, bool]:
        """Whether the next update moves the policy, and whether it moves the averaged model."""
        return (
            self.updates % self.config.policy_every == 0,
            self.updates % self.config.target_every == 0,
        )

    def turn(self, batch: Batch, noise: Noise, policy: bool, average: bool) -> Metrics:
        """An update as a function of parameters, batch and noise alone, as a CUDA graph
        wants it."""
        metrics: Metrics = {}
        if self.agent.rnd is not None:
            self.call("familiarise", *self._descend("rnd_losses", metrics, batch))
        start = self._descend("model_losses", metrics, batch, noise)
        if policy:
            self._descend("policy_losses", metrics, *start, batch, noise)
            if batch.first is not None:
                self._descend("latent_policy_losses", metrics, batch, noise)
        if average:
            self.average.flat.lerp_(self.rows["model"].flat, self.config.tau)
        return metrics

    def _descend(self, losses: str, metrics: Metrics, *inputs: Any) -> tuple[Tensor, ...]:
        """One clipped Adam step of each part that has one of these losses; adds what was learned to
        `metrics`."""
        gradients, learned, carried = self.gradients(losses, *inputs)
        for part, gradient in gradients.items():
            (flat,) = self.optimizers[part].param_groups[0]["params"]
            flat.grad = gradient
            self.optimizers[part].step()
        metrics |= learned
        return carried

    def _gradients(self, losses: str, *inputs: Any) -> Found:
        """Clipped gradients of each loss for the parameters of its own part alone, and what was
        learned, (M,) each. Rows are independent: the gradient of their sum is that of each."""
        with self.autocast():
            loss_of, learned, carried = self._call(losses, *inputs)
        gradients = {}
        for count, (part, loss) in enumerate(loss_of.items(), 1):
            leaves = self.learned[part]
            found = torch.autograd.grad(
                loss.sum(), leaves, retain_graph=count < len(loss_of), allow_unused=True
            )
            used = [
                torch.zeros_like(leaf) if g is None else g
                for g, leaf in zip(found, leaves, strict=True)
            ]
            gradient = self.rows[part].flatten(used)
            norm = learned[f"{part}_grad_norm"] = torch.linalg.vector_norm(gradient, dim=1)
            gradients[part] = gradient.mul_(
                (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
            )
        dtype = self.agent.log_alpha.dtype  # of sums of what was learned
        return (
            gradients,
            {name: value.view(len(self.agents)).to(dtype) for name, value in learned.items()},
            carried,
        )

    def _call(self, method: str, *inputs: Any) -> Any:
        """A method of the agent, or of all agents with a leading axis on what goes in and out."""
        if len(self.agents) == 1:
            return getattr(self.agent, method)(*inputs)
        axes = pytree.tree_map(lambda x: 0 if isinstance(x, Tensor) else None, inputs)
        return torch.vmap(
            lambda state, given: functional_call(self.stateless, state, (method, *given)), (0, axes)
        )(self.state, inputs)

    # How it runs ----------------------------------------------------------------------------------

    def compile(self) -> None:
        """Compile the gradients of each part; the first updates then take a minute, and need a C++
        compiler on a CPU. From then on the networks and settings of the agents must stay what they
        are: only batch and noise are still looked at before each call."""
        if self.device.type == "cpu":
            try:
                fused.load()
            except OSError as error:
                tqdm.write(
                    f"updates go on without the kernels of perception/ops/fused.cpp: {error}",
                    file=sys.stderr,
                )
            else:
                self._use_kernels(True)
        self.call, self.gradients = compiled_each(self._call), compiled_each(self._gradients)

    def eager(self) -> None:
        """Run later updates by torch's own operators, one after the other."""
        self._use_kernels(False)
        self.call, self.gradients = self._call, self._gradients

    def _use_kernels(self, use: bool) -> None:
        for agent in [*self.agents, self.stateless]:
            for module in agent.modules():
                if isinstance(module, FUSED):
                    module.fused = use

    # Checkpoints: of each agent alone -------------------------------------------------------------

    def optimizer_state(self, row: int) -> dict[str, dict[str, Tensor]]:
        """Adam's state of one agent's parts, {} where it has not stepped yet."""
        return {
            part: {
                name: value if value.dim() == 0 else value[row]
                for name, value in optimizer_state(optimizer).items()
            }
            for part, optimizer in self.optimizers.items()
        }

    def load_optimizer_states(self, states: Sequence[dict[str, dict[str, Tensor]]]) -> None:
        """Continue from `optimizer_state` of each agent; all must have made as many steps."""
        for part, optimizer in self.optimizers.items():
            own = [state[part] for state in states]
            if own[0]:
                (flat,) = optimizer.param_groups[0]["params"]
                joint = {
                    name: value.clone() if value.dim() == 0 else torch.stack([o[name] for o in own])
                    for name, value in own[0].items()
                }
                document = optimizer.state_dict()
                document["state"] = {
                    0: {name: value.to(flat.device) for name, value in joint.items()}
                }
                optimizer.load_state_dict(document)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step of its one tensor, themselves, not copies; {} where it has not
    stepped yet."""
    return optimizer.state_dict()["state"].get(0, {})


def compiled_each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of the methods that it calls by their names each compiled when it is first called, with a
    code object of its own: torch keeps what it has compiled with the code, so that another
    learner's could be taken."""
    compiled: dict[str, Callable[..., Any]] = {}

    def call(method: str, *inputs: Any) -> Any:
        if method not in compiled:
            if hasattr(
                torch._dynamo.config, "trace_autograd_ops"
            ):  # older versions compile around `torch.autograd.grad`
                torch._dynamo.config.trace_autograd_ops = (
                    True  # in this thread; so that only the gradients asked for are computed
                )

            def own(*inputs: Any) -> Any:
                return function(method, *inputs)

            code = FunctionType(
                own.__code__.replace(), own.__globals__, method, None, own.__closure__
            )
            compiled[method] = torch.compile(
                code, dynamic=False, options={"guard_filter_fn": _on_inputs}
            )
        return compiled[method](*inputs)

    return call


def _on_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of a compiled function's guards to check at each call: those on tensors that are no
    parameters, and on modes such as autocast. All of them would take 0.8% of an update's time on a
    CPU."""
    kinds = ("TENSOR_MATCH", "SHAPE_ENV", "GLOBAL_STATE")
    return [
        guard.guard_type in kinds and not isinstance(guard.value, nn.Parameter) for guard in guards
    ]


def stack(parts: Sequence[Any]) -> Any:
    """Batches, or noise, of several agents as one with a leading axis; that of a single agent as it
    is."""
    if len(parts) == 1:
        return parts[0]
    return pytree.tree_map(
        lambda *tensors: None if tensors[0] is None else torch.stack(tensors), *parts
    )
