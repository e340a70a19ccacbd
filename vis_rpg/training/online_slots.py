"""Perception that goes on learning while the agent does, without a gradient from it, and without
its drift being taken for novelty.

In rounds: a copy of the slot model makes some steps of object discovery on frames from replay; then
it reads all of replay again, a few observations beside each update, in the order in which they
came, as each begins from the slots of the one before. Nothing uses what it reads until it has
caught up. Meanwhile a copy of the density estimator's predictor learns to make of the new reading
of a scene what the predictor makes of the old one, so that what was familiar stays familiar. Then
all of it takes over at once: the slot model, the stored slots, the slots that acting carries, the
predictor, and the mean by which the bonus is normalised.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from perception.base import Window, sampled
from perception.discovery.online import SlotLearner
from perception.slots.perception import SlotPerception
from vis_rpg.agent.actor import Actor
from vis_rpg.agent.rpg import Agent
from vis_rpg.seeding import restore_generator
from vis_rpg.training.replay_buffer import Replay

LEARNING_STEPS = 50
"""Of discovery, in a round."""
BATCH = 16
"""Frames of one such step, half of them seen as first ones."""
ROWS = 32
"""Observations read again beside one update, so that nothing stalls."""
FITS = 200
"""Steps of the new predictor, one beside each update ..."""
FIT_BATCH = 128
"""... their observations ..."""
FIT_RATE = 1e-3
"""... and Adam's rate; too low, the mean of the bonus would still follow, but not which scenes are
newer than others."""
SAMPLE = 4096
"""Observations by which the normaliser's mean is moved."""


class Adaptation:
    """Of one agent's perception; `step` belongs beside its updates, where nobody acts or writes to
    replay.

    every: interactions between two steps of discovery; envs: interactions between two calls of
    `step`.
    """

    def __init__(
        self, agent: Agent, actor: Actor, replay: Replay, every: int, envs: int, seed: int
    ) -> None:
        assert isinstance(agent.model.perception, SlotPerception)
        self.agent, self.actor, self.replay, self.every, self.envs = (
            agent,
            actor,
            replay,
            every,
            envs,
        )
        self.perception = agent.model.perception
        self.rnd = (
            agent.rnd if agent.novelty is None else None
        )  # a novelty of another kind does not drift
        self.device = agent.log_alpha.device
        self.generator = torch.Generator().manual_seed(seed)
        self.learner = SlotLearner(self.perception.model)
        if self.rnd is not None:
            self.predictor = copy.deepcopy(self.rnd.predictor).requires_grad_(True)
            self.optimizer = torch.optim.Adam(self.predictor.parameters(), FIT_RATE)
        self.since = self.learned = self.fitted = self.rounds = 0
        self.start = self.cursor = 0
        """Numbers of the rows with which reading again began, and of the next one."""
        self.loss = torch.tensor(torch.nan)
        """Of discovery, at its last step."""

    def step(self) -> bool:
        """What belongs beside one update; returns whether what is stored has been replaced."""
        if self.learned < LEARNING_STEPS:
            self.since += self.envs
            while self.since >= self.every and self.learned < LEARNING_STEPS:
                self.since -= self.every
                self._learn()
            if self.learned == LEARNING_STEPS:
                self.start = self.cursor = self.replay.first_held
                if not all(value.isfinite().all() for value in self.learner.model.parameters()):
                    self.learner, self.learned = (
                        SlotLearner(self.perception.model),
                        0,
                    )  # a round that went wrong is thrown away
        elif not self._read_again():
            return False
        elif self.rnd is not None and self.fitted < FITS:
            self._fit()
        else:
            self._take_over()
            return True
        return False

    # A round --------------------------------------------------------------------------------------

    def _learn(self) -> None:
        numbers = self._draw(BATCH)
        at = self._places(numbers)
        previous = (
            self.replay.rows["obs.slots"][self.replay.rows["before"][at]].to(self.device).float()
        )
        is_first = (torch.arange(BATCH) % 2 == 0) | self._begins(numbers, self.replay.first_held)
        self.loss = self.learner.learn(
            self.replay.rows["obs.kept.frame"][at].to(self.device),
            previous,
            is_first.to(self.device),
        )
        self.learned += 1

    @torch.no_grad()
    def _read_again(self) -> bool:
        """Read the next rows by the new model; whether it has caught up."""
        rows, head = self.replay.rows, self.replay.head
        oldest = self.replay.first_held
        if self.cursor < oldest:  # overwritten before they were reached
            self.start = self.cursor = oldest
        end = min(head, self.cursor + max(ROWS, 4 * self.envs))
        numbers = torch.arange(self.cursor, end)
        at, parents = self._places(numbers), self._parents(numbers)
        is_first = self._begins(numbers, max(self.start, oldest))
        while self.cursor < end:
            begin = self.cursor - int(numbers[0])
            waits = (parents[begin:] >= self.cursor) & ~is_first[
                begin:
            ]  # for one that is read in this very turn
            stop = begin + int(waits.nonzero()[0]) if waits.any() else len(numbers)
            now = at[begin:stop]
            previous = rows["obs.fresh.slots"][rows["before"][now]].to(self.device).float()
            frames = rows["obs.kept.frame"][now].to(self.device)
            sight = self.learner.model(frames, previous, is_first[begin:stop].to(self.device))
            for name, value in self.perception.reading(sight).items():
                rows[f"obs.fresh.{name}"][now] = value.to(self.replay.device)
            self.cursor += stop - begin
        return self.cursor == head

    def _fit(self) -> None:
        """One step of the new predictor towards what the old one leaves of the target, scene by
        scene."""
        assert self.rnd is not None
        if self.fitted == 0:
            self.predictor.load_state_dict(self.rnd.predictor.state_dict())
            self.optimizer.state.clear()
        at = self._places(self._draw(FIT_BATCH))
        (old, _), (new, presence) = self._novelty(at, "obs."), self._novelty(at, "obs.fresh.")
        with torch.no_grad():
            wanted = self.rnd.residual(old)
        missed = ((self.rnd.residual(new, self.predictor) - wanted) ** 2).sum(-1)
        loss = (missed if presence is None else missed * presence).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.fitted += 1

    @torch.no_grad()
    def _take_over(self) -> None:
        rows = self.replay.rows
        names = [name.removeprefix("obs.fresh.") for name in rows if name.startswith("obs.fresh.")]
        if self.rnd is not None:
            at = self._places(self._draw(SAMPLE))
            before = self.rnd.error(*self._novelty(at, "obs."))
            for own, new in zip(
                self.rnd.predictor.parameters(), self.predictor.parameters(), strict=True
            ):
                own.copy_(new)
            self.rnd.moments.follow(before, self.rnd.error(*self._novelty(at, "obs.fresh.")))
        for name in names:
            rows[f"obs.{name}"].copy_(rows[f"obs.fresh.{name}"])
        self.perception.model.load_state_dict(self.learner.model.state_dict())
        newest = (self.replay.open % self.replay.capacity).to(self.replay.device)
        for name in names:
            self.actor.memory[f"previous.{name}"].copy_(rows[f"obs.{name}"][newest])
        self.actor.memory["slots"].copy_(rows["obs.slots"][newest])
        self.learned = self.fitted = 0
        self.rounds += 1

    # What is drawn from replay --------------------------------------------------------------------

    def _draw(self, count: int) -> Tensor:
        """Numbers (count,) of rows drawn uniformly from all that are there."""
        return torch.randint(
            self.replay.first_held, self.replay.head, (count,), generator=self.generator
        )

    def _places(self, numbers: Tensor) -> Tensor:
        """Where rows of these numbers (B,) lie in replay, on its device."""
        return (numbers % self.replay.capacity).to(self.replay.device)

    def _begins(self, numbers: Tensor, oldest: int) -> Tensor:
        """Whether an episode begins at rows of these numbers (B,), or what is left of one: its rows
        before `oldest` do not count."""
        parents = self._parents(numbers)
        return (parents == numbers) | (parents < oldest)

    def _parents(self, numbers: Tensor) -> Tensor:
        """Numbers (B,) of the observations before those of `numbers` (B,), themselves where an
        episode begins."""
        at = self._places(numbers)
        return numbers - ((at - self.replay.rows["before"][at]) % self.replay.capacity).cpu()

    def _novelty(self, at: Tensor, prefix: str) -> tuple[Tensor, Tensor | None]:
        """Of rows (B,), from what is stored under names with this prefix: (B, M), and the presence
        of objects (B, N) or None."""
        window: Window = {}
        for name in sampled({key: 0 for key in self.perception.stored}):
            value = self.replay.rows[prefix + name][at].to(self.device)
            window[name] = torch.stack([value] * self.perception.history)
        novelty, presence = self.agent.novelty_of(window)
        return novelty[0], None if presence is None else presence[0]

    # Checkpoints ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything but what lies in replay."""
        modules = {"model": (self.learner.model, self.learner.optimizer)} | (
            {"predictor": (self.predictor, self.optimizer)} if self.rnd is not None else {}
        )
        return {
            "counts": {name: getattr(self, name) for name in COUNTS},
            "loss": self.loss,
            "generator": self.generator.get_state(),
            "weights": {name: module.state_dict() for name, (module, _) in modules.items()},
            "optimizers": {
                name: optimizer.state_dict()["state"] for name, (_, optimizer) in modules.items()
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, value in state["counts"].items():
            setattr(self, name, value)
        self.loss = state["loss"]
        restore_generator(self.generator, state["generator"])
        _load(
            self.learner.model,
            self.learner.optimizer,
            state["weights"]["model"],
            state["optimizers"]["model"],
        )
        if self.rnd is not None:
            _load(
                self.predictor,
                self.optimizer,
                state["weights"]["predictor"],
                state["optimizers"]["predictor"],
            )


COUNTS = ("since", "learned", "fitted", "rounds", "start", "cursor")


def _load(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Tensor],
    moments: dict[str, Any],
) -> None:
    module.load_state_dict(weights)
    document = optimizer.state_dict()
    document["state"] = {
        int(index): dict(own) for index, own in moments.items()
    }  # JSON has made words of the indices
    optimizer.load_state_dict(document)
