"""Alternative inputs of the RND, for comparison with perception's.

Each is computed once, when an observation is collected, and stored with it, so that compared runs
differ in the bonus alone and cost the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from perception.base import ObsSequence, StorageSpec
from perception.encoders.cnn import STACK, FrozenCnn
from perception.encoding import MAX_FREQUENCIES, encoded_width, positional_encoding
from vis_rpg.envs.tasks.task import Task
from vis_rpg.errors import UserError


class RndInput(nn.Module, ABC):
    """Base class of inputs that replace `Perception.rnd_input`.

    Attributes:
        name: Its column in replay; if perception stores one of this name, that is read.
        spec: Shape and type of that column.
        needs_positions: Whether it needs true positions, which a first observation lacks.
    """

    name: str = "rnd_input"
    spec: StorageSpec
    needs_positions: bool = True

    @abstractmethod
    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        """Compute the input to be stored.

        Args:
            obs: (B, ...), as the environment gives them.
            positions: True positions of the objects, (B, N, 2 or 3).

        Returns:
            (B, *spec.shape).
        """

    def read(self, obs_sequence: ObsSequence, history: int) -> Tensor:
        """Read the input (T, B, M) from a sequence of history - 1 + T stored observations."""
        return obs_sequence[self.name][history - 1 :].float()


class FrameEmbedding(RndInput):
    """Embedding of the two newest frames (B, 2, H, W, 3) by a frozen, random CNN.

    Args:
        frame_size: (H, W).
        seed: Draws the CNN.
    """

    def __init__(self, frame_size: tuple[int, int] = (64, 64), seed: int = 0) -> None:
        super().__init__()
        self.frozen = FrozenCnn(seed)
        self.spec = StorageSpec((self.frozen.width(frame_size),), torch.float16)

    @torch.no_grad()
    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        """Embed the two newest frames: (B, M)."""
        return self.frozen.embed(obs.transpose(0, 1))[0]


class Frames(RndInput):
    """Raw frames for an RND with convolutional networks: the paper's, from pixels.

    Args:
        frame_size: (H, W).
    """

    name = "frame"
    needs_positions = False

    def __init__(self, frame_size: tuple[int, int] = (64, 64)) -> None:
        super().__init__()
        self.spec = StorageSpec((*frame_size, 3), torch.uint8)

    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        """Return the newest frame (B, H, W, 3) uint8."""
        return obs[:, -1]

    def read(self, obs_sequence: ObsSequence, history: int) -> Tensor:
        """Read frames (1 + T, B, H, W, 3), which the RND takes in pairs."""
        return obs_sequence[self.name][history - STACK :]


class OraclePositions(RndInput):
    """Encoded true positions of the task's objects, unknown to an agent that sees pixels.

    They are read in the plane of the task's coverage, scaled so that its grid is [-1, 1].

    Args:
        task: Names the objects and the plane.

    Raises:
        UserError: The task declares no such plane.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        if task.coverage is None:
            raise UserError(
                f"exploration.rnd_input=oracle_positions: task={task.name} declares no plane to "
                "read true positions in; use slots"
            )
        self.plane = list(task.plane)
        width = len(task.object_names) * encoded_width(2, MAX_FREQUENCIES)
        self.spec = StorageSpec((width,), torch.float32)
        for name, corner in (("low", task.coverage.low), ("high", task.coverage.high)):
            self.register_buffer(name, torch.tensor(corner, dtype=torch.float32), persistent=False)
        self.low: Tensor
        self.high: Tensor

    def forward(self, obs: Tensor, positions: Tensor) -> Tensor:
        """Encode positions in the task's plane: (B, M)."""
        places = positions[..., self.plane].to(self.low)
        scaled = 2 * (places - self.low) / (self.high - self.low) - 1
        return positional_encoding(scaled, MAX_FREQUENCIES).flatten(-2)


def make_rnd_input(kind: str, task: Task, seed: int) -> RndInput | None:
    """Make the replacement that a config names; None for perception's input.

    Args:
        kind: "frames", "frame_embedding", "oracle_positions" or one of perception's.
        task: The task, for its positions.
        seed: Draws a frozen CNN.

    Raises:
        UserError: The task declares no plane for true positions.
    """
    if kind == "frames":
        return Frames()
    if kind == "frame_embedding":
        return FrameEmbedding(seed=seed)
    return OraclePositions(task) if kind == "oracle_positions" else None
