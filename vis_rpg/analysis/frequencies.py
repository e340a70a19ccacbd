"""What the bonus would pay for with other frequencies of the positional encoding.

RNDs are trained anew on the states that a run visited. An encoding suits a task if arrangements of
its objects that were never seen stand out, and fine differences do not. N objects have C
coordinates each.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from perception.encoders.state import StatePerception
from perception.encoding import encoded_width, positional_encoding
from vis_rpg.agent.rnd import ObjectRND
from vis_rpg.agent.rpg import Agent
from vis_rpg.errors import UserError, require
from vis_rpg.training import checkpoint
from vis_rpg.training.chunks import Chunks

UPDATES = 6000
"""Of each RND."""
SAMPLES = 6000
"""Visited, rearranged and shifted states that are compared."""
CELLS = 6
"""Along each coordinate, between its extremes: what is new lies in a cell that was not visited."""
SHIFT = 0.05
"""Of a coordinate, as a share of its range."""


def visited_coordinates(run: Path, agent: Agent) -> Tensor:
    """Read the objects' coordinates of every state in a run's replay, (R, N, C).

    Raises:
        UserError: The run has no replay, no bonus, or no objects in states.
    """
    perception = agent.model.perception.unwrapped
    if (
        not isinstance(perception, StatePerception)
        or perception.reading != "all"
        or perception.rnd_objects < 2
        or not isinstance(agent.rnd, ObjectRND)
    ):
        raise UserError(
            "frequencies=...: only for runs from state, with a bonus on all, of a task that names "
            "coordinates of two objects or more"
        )
    chunks = Chunks(run / "replay", "replay")
    chunks.load_state(checkpoint.load(checkpoint.latest(run))["replay"])
    require(bool(chunks.spans), f"{run}: its replay is empty")
    states = torch.cat([chunks.read(span)["obs.state"] for span in chunks.spans])
    return perception.object_coordinates(states)


def new_arrangements(coordinates: Tensor, generator: torch.Generator) -> Tensor:
    """Take each object from a step of its own and keep what lies in cells never visited.

    Args:
        coordinates: (R, N, C).
        generator: Draws the steps.

    Returns:
        (K, N, C), K of at most `SAMPLES`.
    """
    low, high = coordinates.amin(0), coordinates.amax(0)
    powers = CELLS ** torch.arange(low.numel()).view_as(low)

    def cells(x: Tensor) -> Tensor:
        along = ((x - low) / (high - low).clamp(min=1e-9) * CELLS).long().clamp(0, CELLS - 1)
        return (along * powers).sum((1, 2))

    objects = torch.arange(coordinates.shape[1])
    steps = torch.randint(len(coordinates), (SAMPLES, len(objects)), generator=generator)
    mixed = coordinates[steps, objects]
    return mixed[~torch.isin(cells(mixed), cells(coordinates).unique())]


def shifted(coordinates: Tensor, generator: torch.Generator) -> Tensor:
    """Move one coordinate of visited states inwards by `SHIFT` of its range, (SAMPLES, N, C)."""
    steps = torch.randint(len(coordinates), (SAMPLES,), generator=generator)
    flat = coordinates.flatten(1)
    low, high = flat.amin(0), flat.amax(0)
    moved = flat[steps]
    which = torch.randint(flat.shape[1], (SAMPLES, 1), generator=generator)
    step = SHIFT * (high - low) * torch.sign((low + high) / 2 - moved)
    return moved.scatter_add(1, which, step.gather(1, which)).view(-1, *coordinates.shape[1:])


def compare_frequencies(
    coordinates: Tensor, frequencies: list[int], exploration: DictConfig, lr: float, seed: int
) -> dict[str, dict[str, float]]:
    """Train an RND for each number of frequencies and say what stands out to it.

    Args:
        coordinates: Of the visited states, (R, N, C).
        frequencies: The encodings to compare.
        exploration: Width and batch size of the RND.
        lr: Of its optimiser.
        seed: Of the RNDs, their batches and what they are asked about.

    Returns:
        By frequencies, the loss over visited states, and how far the errors of new arrangements
        and of small shifts lie above it, in standard deviations over visited states; NaN where
        every arrangement was visited.
    """
    generator = torch.Generator().manual_seed(seed)
    every = torch.randint(len(coordinates), (SAMPLES,), generator=generator)
    asked = {
        "new_arrangements": new_arrangements(coordinates, generator),
        "small_shifts": shifted(coordinates, generator),
    }
    width, batch_size = exploration.width, exploration.batch_size
    found = {}
    for count in frequencies:
        torch.manual_seed(seed)
        inputs = encoded_width(coordinates[0].numel(), count)
        rnd = ObjectRND(inputs, width, warmup=0)
        optimiser = torch.optim.Adam(rnd.predictor.parameters(), lr)

        def errors(x: Tensor, rnd: ObjectRND = rnd, count: int = count) -> Tensor:
            return rnd.prediction_error(positional_encoding(x, count).flatten(-2))

        for _ in tqdm(range(UPDATES), desc=f"RND of {count} frequencies", unit="update"):
            batch = torch.randint(len(coordinates), (batch_size,), generator=generator)
            loss = errors(coordinates[batch]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            known = errors(coordinates[every])
            mean, std = known.mean(), known.std()
            found[str(count)] = {"loss": round(float(mean), 4)} | {
                name: round(float((errors(x).mean() - mean) / std), 2) if len(x) else math.nan
                for name, x in asked.items()
            }
    return found
