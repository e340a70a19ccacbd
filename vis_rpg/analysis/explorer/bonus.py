"""The bonus that the newest RND gives for the places that a run visited.

V visits of N objects with D numbers each; the RND reads C coordinates of each object.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

from perception.encoders.state import StatePerception
from perception.encoding import positional_encoding
from vis_rpg.agent.rnd import ObjectRND
from vis_rpg.agent.rnd_inputs import OraclePositions
from vis_rpg.agent.rpg import Agent
from vis_rpg.errors import UserError, require

SAMPLES = 200
"""Randomized scenes that tell what the RND reads where objects are at given places."""
CLOSE = 1e-3
"""Error of a coordinate, or difference of a place, that counts as none."""


@torch.no_grad()
def visit_bonus(agent: Agent, env: gymnasium.Env, positions: np.ndarray) -> np.ndarray:
    """Return the bonus of visits, as the critic learns it, (V,).

    Args:
        agent: With its RND.
        env: The task from its whole state, without noise.
        positions: True positions of the objects of interest, (V, N, D), world units.

    Raises:
        UserError: There is no bonus, or it reads more than these positions; one line says what.
    """
    rnd = getattr(agent, "rnd", None)
    require(isinstance(rnd, ObjectRND), "the agent has no RND")
    assert isinstance(rnd, ObjectRND)
    places = torch.as_tensor(positions, dtype=torch.float32)
    perception = agent.model.perception.unwrapped
    if isinstance(agent.rnd_input, OraclePositions):
        read = agent.rnd_input(places, places)
    elif (
        agent.rnd_input is None
        and isinstance(perception, StatePerception)
        and perception.reading == "all"
        and perception.rnd_objects == places.shape[1]
    ):
        coordinates = torch.as_tensor(_coordinates(perception, env, positions))
        read = positional_encoding(coordinates, perception.frequencies).flatten(-2)
        require(read.shape[1] == perception.rnd_input_dim, "its RND reads the raw state")
    else:
        raise UserError("its RND reads more than the recorded places of the objects")
    bonus: np.ndarray = (agent.bonus_scale * rnd.bonus(read)).numpy()
    return bonus


def _coordinates(
    perception: StatePerception, env: gymnasium.Env, positions: np.ndarray
) -> np.ndarray:
    """Return the coordinates (V, N, C) that perception reads at these positions.

    They are found as a linear function of positions, from randomized scenes.

    Raises:
        UserError: They are none, or scenes do not tell.
    """
    require(env.get_wrapper_attr("randomizes"), "its task has no randomized scenes to learn from")
    scenes = [env.reset(seed=seed, options={"randomize": True}) for seed in range(SAMPLES)]
    states = torch.as_tensor(np.stack([obs for obs, _ in scenes]), dtype=torch.float32)
    coordinates = perception.object_coordinates(states).numpy().astype(np.float64)
    seen = np.stack([info["objects"] for _, info in scenes]).reshape(SAMPLES, -1)
    wanted = positions.reshape(len(positions), -1).astype(np.float64)
    varies = np.ptp(seen, axis=0) > CLOSE
    weights, _, rank, _ = np.linalg.lstsq(
        _affine(seen[:, varies]), coordinates.reshape(SAMPLES, -1)
    )
    fitted = np.abs(_affine(seen[:, varies]) @ weights - coordinates.reshape(SAMPLES, -1)).max()
    still = np.abs(wanted - seen[0])[:, ~varies].max(initial=0.0)
    require(
        rank == len(weights) and fitted < CLOSE and still < CLOSE,
        "its RND reads more than the recorded places of the objects",
    )
    read: np.ndarray = (_affine(wanted[:, varies]) @ weights).astype(np.float32)
    return read.reshape(len(positions), *coordinates.shape[1:])


def _affine(x: np.ndarray) -> np.ndarray:
    """Append a column of ones."""
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
