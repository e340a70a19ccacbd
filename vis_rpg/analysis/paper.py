"""What the paper's figures and this project's table need, and what the paper reports there.

Values of the paper are read off its plots: mean success over at least five trials, or the metric
named by `key`. The most valuable rows come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Readings = tuple[tuple[int, float], ...]
"""Interactions and the value there."""


@dataclass(frozen=True)
class Row:
    """One task with its settings, and the values to compare with."""

    name: str
    words: tuple[str, ...]
    """Settings of vis-rpg train."""
    steps: int
    """Interactions, frames for perception included."""
    paper: Mapping[str, Readings] = field(default_factory=dict)
    """By agent, of the observation that the paper's figure has."""
    goals: Mapping[str, float | None] = field(default_factory=dict)
    """RPG's goal at `steps` by observation; None: reported without a goal."""
    by_obs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further settings by observation."""
    cpu: tuple[str, ...] = ()
    """Further settings with preset=cpu: those that its page in results/ was measured with."""
    key: str = "success"
    """The metric of training episodes."""
    note: str = ""
    """How it differs from the paper's task."""


@dataclass(frozen=True)
class Figure:
    """A figure or a table: rows, and the agents that run each."""

    title: str
    rows: tuple[Row, ...]
    agents: tuple[str, ...] = ("rpg", "mbsac")
    obs: str = "state"


PARTNET = "The cabinet is a model of our own, not PartNet-Mobility 1018."
METAWORLD = "Meta-World is version 3."
ADROIT = "Success by the criterion of the paper's runs; the library's is stricter."

ONE_BLOCK = Row(
    "BlockPush, 1 block",
    ("task=block_push", "task.blocks=1"),
    24_000,
    goals={"state": 0.9, "pixels": 0.8},
    by_obs={"pixels": ("exploration.rnd_input=moving_slots",)},
)
TWO_BLOCKS = Row(
    "BlockPush, 2 blocks",
    ("task=block_push", "task.blocks=2"),
    600_000,
    paper={
        "rpg": ((350_000, 0.67), (600_000, 1.0), (2_000_000, 1.0)),
        "mbsac": ((350_000, 0.05), (600_000, 0.17), (2_000_000, 0.33)),
    },
    goals={"state": 1.0, "pixels": 0.9},
    by_obs={
        "state": ("perception.frequencies=3",),  # results/block_push/LOG.md
        "pixels": ("perception.frequencies=3", "exploration.rnd_input=moving_scene"),
    },
    cpu=("agent.envs=10",),
)
DOOR = Row(
    "Adroit Door",
    ("task=adroit_door", "task.success=paper"),
    300_000,
    paper={
        "rpg": ((300_000, 0.88), (2_000_000, 0.90)),
        "mbsac": ((300_000, 0.83), (2_000_000, 0.86)),
    },
    goals={"state": 0.88, "pixels": 0.7},
    note=ADROIT,
)
STICK_PULL = Row(
    "StickPull",
    ("task=metaworld_stick_pull",),
    500_000,
    paper={
        "rpg": ((500_000, 0.28), (1_000_000, 0.62), (1_600_000, 0.75)),
        "mbsac": ((500_000, 0.0), (1_000_000, 0.0), (1_600_000, 0.10)),
    },
    goals={"state": 0.28, "pixels": 0.2},
    by_obs={  # results/metaworld_stick_pull/README.md
        "state": (
            "perception.near=0.075",
            "perception.frequencies=4",
            "exploration.width=512",
            "exploration.batch_size=512",
        )
    },
    cpu=("agent.envs=10", "agent.gamma_rewarded=0.95", "agent.replay_leading=0.25"),
    note=METAWORLD,
)
CABINET_SPARSE = Row(
    "Cabinet (Sparse)",
    ("task=cabinet_sparse",),
    800_000,
    paper={
        "rpg": ((800_000, 0.48), (1_000_000, 0.98), (2_000_000, 0.98)),
        "mbsac": ((800_000, 0.0), (1_000_000, 0.20), (2_000_000, 0.98)),
    },
    goals={"state": 0.48, "pixels": 0.4},
    note=PARTNET,
    by_obs={"state": ("perception.frequencies=4",)},  # results/cabinet_sparse/README.md
    cpu=("agent.envs=10",),
)
CABINET_DENSE = Row(
    "Cabinet (Dense)",
    ("task=cabinet_dense",),
    500_000,
    paper={
        "rpg": ((400_000, 0.70), (500_000, 0.99), (800_000, 0.98)),
        "mbsac": ((400_000, 0.17), (500_000, 0.17), (800_000, 0.17)),
    },
    goals={"state": 0.99, "pixels": 0.8},
    cpu=("agent.envs=10",),
    note=PARTNET,
)
ANT_PUSH = Row(
    "AntPush",
    ("task=ant_push",),
    500_000,
    paper={
        "rpg": ((500_000, 0.42), (800_000, 0.68), (1_000_000, 0.73)),
        "mbsac": ((500_000, 0.0), (800_000, 0.12), (1_000_000, 0.22)),
    },
    goals={"state": 0.42, "pixels": None},
)
HAMMER = Row(
    "Adroit Hammer",
    ("task=adroit_hammer", "task.success=paper"),
    600_000,
    paper={
        "rpg": ((600_000, 0.70), (2_000_000, 0.82)),
        "mbsac": ((600_000, 0.60), (2_000_000, 0.88)),
    },
    goals={"state": 0.7, "pixels": 0.5},
    note=ADROIT,
)
BASKETBALL = Row(
    "Basketball",
    ("task=metaworld_basketball",),
    500_000,
    paper={
        "rpg": ((500_000, 0.70), (1_000_000, 0.92), (2_000_000, 0.90)),
        "mbsac": ((500_000, 0.62), (1_000_000, 0.85), (2_000_000, 0.88)),
    },
    goals={"state": 0.7, "pixels": 0.5},
    by_obs={"state": ("perception.frequencies=4",)},  # results/metaworld_basketball/README.md
    cpu=("agent.envs=10",),
    note=METAWORLD,
)
HALF_CHEETAH = Row(
    "HalfCheetah",
    ("task=half_cheetah",),
    50_000,
    paper={"rpg": ((400_000, 15_500.0), (1_000_000, 16_000.0))},
    goals={"state": None},
    key="return",
)
HUMANOID = Row(
    "Humanoid",
    ("task=humanoid",),
    50_000,
    paper={"rpg": ((1_000_000, 7_000.0),)},
    goals={"state": None},
    key="return",
)
MAZE = Row(
    "Maze",
    ("task=maze",),
    240_000,
    paper={
        "rpg": ((50_000, 0.62), (100_000, 0.75), (240_000, 0.92)),
        "mbsac": ((50_000, 0.42), (100_000, 0.50), (240_000, 0.66)),
    },
    key="coverage",
)
CHEETAH_BACK = Row(
    "CheetahBack",
    ("task=cheetah_back",),
    260_000,
    paper={
        "rpg": ((200_000, 0.75), (260_000, 1.0)),
        "mbsac": ((200_000, 0.8), (400_000, 0.93)),
    },
    note="The paper gives no distance; ours is 5 m.",
)

BUDGET = 240_000
"""Interactions of Fig. 8."""


def maze_variant(name: str, words: str, *readings: tuple[int, float]) -> Row:
    """Return a row of Fig. 8: the maze with further settings."""
    own = ("task=maze", *words.split())
    return Row(f"Maze, {name}", own, BUDGET, paper={"rpg": readings}, key="coverage")


CEM_PLANNER = (
    "agent.planner={samples:512,policy_samples:0,elites:64,rounds:6,temperature:0,min_std:0.05,"
    "max_std:2}"
)
"""The section of agent=cem, for a row whose agent is RPG without z."""
ABLATIONS = (
    MAZE,
    maze_variant(
        "categorical z",
        "agent.latent.kind=categorical agent.latent.prior=learned agent.beta=0.1",
        (50_000, 0.60),
        (100_000, 0.68),
        (BUDGET, 0.79),
    ),
    maze_variant("no z", "agent.latent.kind=none", (50_000, 0.42), (100_000, 0.50), (BUDGET, 0.66)),
    maze_variant("beta 0.05", "agent.beta=0.05", (BUDGET, 0.66)),
    maze_variant("beta 0.005", "agent.beta=0.005", (BUDGET, 0.86)),
    maze_variant("beta 1e-4", "agent.beta=1e-4", (BUDGET, 0.68)),
    maze_variant("beta 0", "agent.beta=0", (BUDGET, 0.66)),
    maze_variant("z of 6", "agent.latent.dim=6", (BUDGET, 0.90)),
    maze_variant("z of 3", "agent.latent.dim=3", (BUDGET, 0.84)),
    maze_variant("z of 1", "agent.latent.dim=1", (BUDGET, 0.72)),
    maze_variant(
        "small buffer",
        "agent.replay_capacity=2000",
        (50_000, 0.39),
        (100_000, 0.40),
        (BUDGET, 0.40),
    ),
    maze_variant(
        "no positional encoding",
        "perception.frequencies=0",
        (50_000, 0.38),
        (100_000, 0.41),
        (BUDGET, 0.44),
    ),
    maze_variant(
        "no z, mixture",
        "agent.latent.kind=none agent.policy.kind=gmm",
        (50_000, 0.30),
        (100_000, 0.43),
        (BUDGET, 0.46),
    ),
    maze_variant(
        "no z, flow",
        "agent.latent.kind=none agent.policy.kind=flow",
        (50_000, 0.37),
        (100_000, 0.37),
        (BUDGET, 0.37),
    ),
    maze_variant(
        "no z, CEM",
        f"agent.latent.kind=none {CEM_PLANNER}",
        (50_000, 0.35),
        (100_000, 0.42),
        (BUDGET, 0.50),
    ),
)

FIGURES = {
    5: Figure("Fig. 5: coverage of the maze, intrinsic reward only", (MAZE,)),
    6: Figure("Fig. 6: dense rewards with local optima, no bonus", (CABINET_DENSE, ANT_PUSH)),
    7: Figure(
        "Fig. 7: sparse rewards",
        (TWO_BLOCKS, DOOR, STICK_PULL, CABINET_SPARSE, HAMMER, BASKETBALL),
    ),
    8: Figure("Fig. 8: ablations on the maze, intrinsic reward only", ABLATIONS, ("rpg",)),
    11: Figure("Fig. 11: CheetahBack, sparse reward", (CHEETAH_BACK,)),
    12: Figure("Fig. 12: standard MuJoCo", (HALF_CHEETAH, HUMANOID)),
    13: Figure(
        "Fig. 13: one-block BlockPush from pixels",
        (
            replace(
                ONE_BLOCK,
                steps=250_000,
                paper={
                    "rpg": ((100_000, 0.75), (150_000, 0.80), (250_000, 0.97)),
                    "mbsac": ((100_000, 0.40), (150_000, 0.58), (260_000, 0.98)),
                },
                goals={},
                note="Frozen slots here; the paper has a CNN.",
            ),
        ),
        obs="pixels",
    ),
}
"""By their number; Fig. 4, the bandit, has a learner of its own."""
TASKS = (
    ONE_BLOCK,
    TWO_BLOCKS,
    DOOR,
    STICK_PULL,
    CABINET_SPARSE,
    CABINET_DENSE,
    ANT_PUSH,
    HAMMER,
    BASKETBALL,
    HALF_CHEETAH,
    HUMANOID,
)


def tasks(obs: str) -> Figure:
    """Return the table of all tasks, from state or from pixels."""
    rows = tuple(row for row in TASKS if obs in row.goals)
    if obs == "pixels":  # the paper's values are from state
        rows = tuple(replace(row, paper={}) for row in rows)
    return Figure(f"Tasks of the paper, from {obs}", rows, ("rpg",), obs)
