"""Algorithm 1's updates, for one agent or for several independent ones together.

Losses are written for one agent. Several run them under `torch.func.vmap`: every parameter, buffer,
Adam moment, batch and noise has a leading axis M, and nothing crosses its rows, neither gradient
clipping nor a NaN. Shapes: M agents, P numbers of a part, others as in `vis_rpg.agent.losses`.

Where `torch.distributed` is initialised, each process gives equal shares of one agent's batch and
noise, and all make the update of the whole: the gradient of each part is averaged before it is
clipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from vis_rpg import distributed
from vis_rpg.agent.batch import Batch, Noise, relabelled
from vis_rpg.agent.losses import (
    LossOutput,
    Metrics,
    latent_policy_loss,
    rnd_loss,
    update_rnd_stats,
)
from vis_rpg.agent.rpg import Agent
from vis_rpg.training import runtime
from vis_rpg.training.flat_parameters import FlatParameters, adam_state
from vis_rpg.training.sampler import BatchSampler, stack

LossFunction = Callable[..., LossOutput]


class GradientOutput(NamedTuple):
    """`LossOutput` after the backward pass.

    Attributes:
        gradients: Clipped gradients (M, P) of each part.
        metrics: Scalars to log, (M,).
        carried: Inputs of the next function in an update.
    """

    gradients: dict[str, Tensor]
    metrics: Metrics
    carried: tuple[Tensor, ...]


class Learner:
    """M agents and the optimizers of their parts.

    Each agent can still act alone: its parameters and buffers become views of the tensors that are
    learned here. It must then neither be moved nor cast.

    Args:
        agents: Of the same shapes, on one device.
        precision: "float32", or "bfloat16" for the products of losses (autocast).
        sampler: Draws the batches of `step`; None if only `update` is called.
        noise_generators: Draw the noise of `step`, one for each agent, on its device.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        precision: str = "float32",
        sampler: BatchSampler | None = None,
        noise_generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.agents, self.agent = list(agents), agents[0]
        distributed.broadcast(self.agent)
        self.sampler, self.noise_generators = sampler, noise_generators
        self.config = self.agent.config
        self.device = self.agent.log_alpha.device
        self.precision = precision
        self.updates = 0
        self.sums: Metrics = {}
        """Sum of each metric since `clear_metrics`, (M,)."""
        self.counts: dict[str, int] = {}
        self._names: dict[runtime.Phase, list[str]] = {}
        parts = [agent.parts() for agent in agents]
        self.flat = {part: FlatParameters([own[part] for own in parts]) for part in parts[0]}
        self.target = FlatParameters([agent.target_parameters() for agent in agents])
        # The tensors that gradients are taken of.
        self.learned: dict[str, list[Tensor]] = {k: list(own) for k, own in parts[0].items()}
        self.state: dict[str, Tensor] = {}
        # `functional_call` swaps a module's tensors: not those of an agent that may be acting.
        self.stateless = copy.deepcopy(self.agent) if len(agents) > 1 else self.agent
        if len(agents) > 1:
            self._stack(parts[0])
        # A module that is moved or cast takes all of its own parameters along: the first one tells.
        modules = (module for agent in agents for module in agent.modules())
        self._views = [p for own in modules for p in islice(own.parameters(False), 1)]
        self._pointers = list(map(Tensor.data_ptr, self._views))
        adam = partial(torch.optim.Adam, lr=self.config.lr, fused=True)
        self.optimizers = {
            part: adam([nn.Parameter(flat.flat)], capturable=self.device.type == "cuda")
            for part, flat in self.flat.items()
        }
        self.use("eager")

    def _stack(self, parts: dict[str, list[nn.Parameter]]) -> None:
        """Give every tensor a leading axis, and make each agent's own a view."""
        names = {id(p): name for name, p in self.agent.named_parameters()}
        for part, own in parts.items():
            self.learned[part] = [block.requires_grad_() for block in self.flat[part].blocks()]
            pairs = zip(own, self.learned[part], strict=True)
            self.state |= {names[id(p)]: block for p, block in pairs}
        targets = zip(self.agent.target_parameters(), self.target.blocks(), strict=True)
        self.state |= {names[id(p)]: block for p, block in targets}
        tensors = [dict([*a.named_parameters(), *a.named_buffers()]) for a in self.agents]
        for name in tensors[0].keys() - self.state.keys():
            self.state[name] = torch.stack([each[name].detach() for each in tensors])
            for each, row in zip(tensors, self.state[name], strict=True):
                each[name].data = row

    # Algorithm 1 ----------------------------------------------------------------------------------

    def step(self) -> None:
        """Update every agent once on a batch from replay.

        After the first few calls it waits for no device.

        Raises:
            RuntimeError: An agent was moved or cast.
        """
        assert self.sampler is not None
        phase = self.phase
        self._check_views()
        self.sampler.prepare()
        self._run(phase)
        self.updates += 1
        for name in self._names[phase]:
            self.counts[name] = self.counts.get(name, 0) + 1
        self.sampler.prefetch()  # while the device works on this one

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """Update every agent once on the given batch.

        Args:
            batch: Of one agent, or with a leading axis M of several.
            noise: Likewise.

        Returns:
            Metrics (M,), on the device.

        Raises:
            RuntimeError: An agent was moved or cast.
        """
        self._check_views()
        metrics = self.update_step(batch, noise, *self.phase)
        self.updates += 1
        return metrics

    @property
    def phase(self) -> runtime.Phase:
        """Whether the next update moves the policy, and whether it moves the target model."""
        config = self.config
        return self.updates % config.policy_every == 0, self.updates % config.target_every == 0

    def update_step(
        self, batch: Batch, noise: Noise, update_policy: bool, update_target: bool
    ) -> Metrics:
        """Run Algorithm 1 after acting: the RND, ψ by Eq. 4, then π, p_φ and alpha by Eq. 3.

        It depends on parameters, batch and noise alone, as a CUDA graph requires.

        Args:
            batch: As of `update`.
            noise: As of `update`.
            update_policy: Whether to move π, p_φ and alpha.
            update_target: Whether to move the target model.

        Returns:
            Metrics (M,), on the device.
        """
        batch = relabelled(batch, noise)
        metrics: Metrics = {}
        if self.agent.rnd is not None:
            (error,) = self.optimizer_step(rnd_loss, metrics, batch)
            self.apply(update_rnd_stats, distributed.gather(error))
        start = self.optimizer_step(self.agent.model_loss, metrics, batch, noise)
        if update_policy:
            self.optimizer_step(self.agent.policy_loss, metrics, *start, batch, noise)
            if batch.first is not None:
                self.optimizer_step(latent_policy_loss, metrics, batch, noise)
        if update_target:
            self.target.flat.lerp_(self.flat["model"].flat, self.config.tau)
        return metrics

    def optimizer_step(
        self, loss_function: LossFunction, metrics: Metrics, *inputs: Any
    ) -> tuple[Tensor, ...]:
        """Take one clipped Adam step of each part that a function returns a loss for.

        Args:
            loss_function: Takes an agent and `inputs`.
            metrics: Its metrics are added here.
            *inputs: As of `update`.

        Returns:
            The values that the function carries.
        """
        gradients, learned, carried = self.gradients(loss_function, *inputs)
        for part, gradient in gradients.items():
            (flat,) = self.optimizers[part].param_groups[0]["params"]
            flat.grad = gradient
            self.optimizers[part].step()
        metrics |= learned
        return carried

    def _gradients(self, loss_function: LossFunction, *inputs: Any) -> GradientOutput:
        """Compute the clipped gradient of each loss for its part alone, of all agents at once."""
        # Agents are independent: the gradient of the sum of their losses is that of each.
        bfloat16 = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            losses, learned, carried = self._apply(loss_function, *inputs)
        metrics, gradients = dict(learned), {}
        for count, (part, loss) in enumerate(losses.items(), 1):
            leaves, more = self.learned[part], count < len(losses)
            found = torch.autograd.grad(loss.sum(), leaves, retain_graph=more, allow_unused=True)
            pairs = zip(found, leaves, strict=True)
            used = [torch.zeros_like(leaf) if g is None else g for g, leaf in pairs]
            gradient = distributed.mean(self.flat[part].flatten(used))
            norm = metrics[f"{part}_grad_norm"] = torch.linalg.vector_norm(gradient, dim=1)
            factor = (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
            gradients[part] = gradient.mul_(factor.unsqueeze(1))
        M, dtype = len(self.agents), self.agent.log_alpha.dtype
        means = {name: value.view(M).to(dtype) for name, value in metrics.items()}
        return GradientOutput(gradients, means, carried)

    def _apply(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Call a function of one agent on all agents, with a leading axis M if they are several."""
        if len(self.agents) == 1:
            return function(self.agent, *inputs)
        axes = pytree.tree_map(lambda x: 0 if isinstance(x, Tensor) else None, inputs)
        return torch.vmap(
            lambda state, own: functional_call(self.stateless, state, (function, *own)), (0, axes)
        )(self.state, inputs)

    def _sampled_update(self, phase: runtime.Phase) -> None:
        """Do all of an update's work on the device, so that it can be captured."""
        assert self.sampler is not None
        batch, spec = self.sampler.batch(), self.sampler.spec
        size = spec.batch_size, spec.first
        noise = stack([self.agent.draw_noise(*size, g) for g in self.noise_generators])
        metrics = self.update_step(batch, noise, *phase)
        self._names[phase] = list(metrics)
        for name, value in metrics.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
            self.sums[name] += value

    def clear_metrics(self) -> None:
        """Set the sums and counts of metrics to zero."""
        for value in self.sums.values():
            value.zero_()
        self.counts.clear()

    def _check_views(self) -> None:
        """Raise RuntimeError if an agent's tensors are no longer the learner's."""
        if list(map(Tensor.data_ptr, self._views)) != self._pointers:
            raise RuntimeError(
                "an agent was moved or cast after its learner was made: make a new one"
            )

    # Runtime --------------------------------------------------------------------------------------

    def use(self, name: str) -> None:
        """Choose how later updates run.

        Compilation and capture happen at first use; from then on the agents' networks and settings
        must not change.

        Args:
            name: "eager", "compile", or "graph" (CUDA graphs).
        """
        self.apply, self.gradients, self._run = runtime.make_calls(
            name,
            self._apply,
            self._gradients,
            self._sampled_update,
            self._generators(),
            self.device,
        )

    def _generators(self) -> list[torch.Generator]:
        """Return all generators that an update draws from on the device."""
        if self.sampler is None or self.sampler.prefetcher:
            return list(self.noise_generators)
        return [*self.noise_generators, *self.sampler.generators]

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self, row: int) -> dict[str, Any]:
        """Return one agent's state of learning without its tensors, for a checkpoint.

        Args:
            row: The agent's number, below M.
        """
        return {
            "optimizers": {
                part: {k: v if v.dim() == 0 else v[row] for k, v in adam_state(own).items()}
                for part, own in self.optimizers.items()
            },
            "updates": self.updates,
            "sums": {name: value[row] for name, value in self.sums.items()},
            "counts": self.counts,
        }

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from `state_dict` of each agent; all must have made as many updates."""
        self.updates, self.counts = states[0]["updates"], states[0]["counts"]
        for name in states[0]["sums"]:
            self.sums[name] = torch.stack([own["sums"][name] for own in states]).to(self.device)
        for part, optimizer in self.optimizers.items():
            rows = [state["optimizers"][part] for state in states]
            document = optimizer.state_dict()
            if rows[0]:
                joint = {k: stack_rows([o[k] for o in rows]).to(self.device) for k in rows[0]}
                document["state"] = {0: joint}
                optimizer.load_state_dict(document)


def stack_rows(rows: Sequence[Tensor]) -> Tensor:
    """Stack moments (P,) to (M, P); keep Adam's step, which all share, as it is."""
    return rows[0].clone() if rows[0].dim() == 0 else torch.stack(list(rows))
