"""What a task declares: objects of interest, coverage, a drawing of explored states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
from torch import Tensor

from perception.encoding import MAX_FREQUENCIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes = Any  # only drawings need matplotlib


Milestone = Callable[[np.ndarray], np.ndarray]
"""True positions (..., N, 2 or 3) of the objects of interest, world units -> whether an episode has
come so far, (...)."""


def no_objects(state: Tensor) -> Tensor:
    """A task that names no objects: (..., S) -> (..., 0, 1)."""
    return state.new_zeros(*state.shape[:-1], 0, 1)


def draw_box(
    axes: Axes,
    low: Sequence[float] | np.ndarray,
    high: Sequence[float] | np.ndarray,
    colour: str,
    filled: bool = False,
) -> None:
    """A rectangle from corner to corner, in world units."""
    from matplotlib.patches import Rectangle  # only drawings need matplotlib

    size = high[0] - low[0], high[1] - low[1]
    look = {"color": colour} if filled else {"fill": False, "edgecolor": colour}
    axes.add_patch(Rectangle((low[0], low[1]), *size, **look))


@dataclass(frozen=True)
class Coverage:
    """The grid on which visited positions are counted.

    Object displacement coverage is the share of the cells that an object's true position has ever
    visited, averaged over the objects.
    """

    objects: tuple[str, ...]
    """Names of the objects that count (for a pushing task the things that are pushed, not the
    pusher)."""
    low: tuple[float, float]
    high: tuple[float, float]
    bins: tuple[int, int]
    """Cells along each axis of the task's plane."""

    def cells(self, places: np.ndarray, bins: Sequence[int] = ()) -> np.ndarray:
        """Return the cell of each place.

        Args:
            places: (..., 2), world units; those beyond the grid belong to its outermost cells.
            bins: Cells along each axis, of a grid over the same range; by default this one's.

        Returns:
            (..., 2) int.
        """
        low, high, count = np.array(self.low), np.array(self.high), np.array(bins or self.bins)
        return np.clip(((places - low) / (high - low) * count).astype(int), 0, count - 1)


@dataclass(frozen=True)
class Task:
    """The declaration of one task; environments carry it as the attribute `task`."""

    name: str
    """The word in `task=...`."""
    object_names: tuple[str, ...]
    """Objects of interest, in the order of `info["objects"]`."""
    object_coordinates: Callable[[Tensor], Tensor] = no_objects
    """State (..., S) -> coordinates (..., N, C) of the objects of interest, scaled to about [-1,
    1]: what is encoded for the bonus and the encoder. Coordinates of unlike kinds (a position, an
    angle) are given as N scalars (..., N, 1)."""
    state_scale: float = 1.0
    """Factor on the raw state before it enters the encoder."""
    frequencies: int = MAX_FREQUENCIES
    """Frequencies of the positional encoding of object coordinates; 0: none."""
    episode_length: int = 1000
    sparse: bool = False
    """Reward is 1 in each step in which success holds, else 0."""
    velocities: tuple[tuple[int, int], ...] = ()
    """Which numbers of the state are velocities, or what only they could tell, such as positions a
    step ago: first index and the one after the last, for `obs.hide=[velocities]`."""
    plane: tuple[int, int] = (0, 1)
    """Which two coordinates of the objects' true positions drawings and coverage use."""
    coverage: Coverage | None = None
    draw: Callable[[Axes], None] | None = field(default=None, compare=False)
    """Draws walls, goals and starts, in world units, on matplotlib axes of the task's plane;
    visited positions are drawn over it."""
    processes: bool = False
    """Whether environments are stepped in worker processes: where stepping holds Python's lock, or
    a library keeps one state a process."""
    milestones: Mapping[str, Milestone] = field(default_factory=dict, compare=False)
    """What an episode passes on its way to success, by name. Runs log which share of the last
    training episodes has come so far at some time."""
    criteria: tuple[str, ...] = ()
    """Where success can be judged in several ways, their names: `info["success_<name>"]` holds
    each, and runs log them all."""


class Declared(Protocol):
    """What an agent must know of the environments that it is made for."""

    @property
    def task(self) -> Task:
        """The declaration of their task."""

    @property
    def observation_space(self) -> gymnasium.Space[Any]:
        """The space of observations, (S,) or (2, 64, 64, 3)."""

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """The space of actions, (A,)."""
