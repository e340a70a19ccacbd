"""The tasks; importing this package registers them with Gymnasium."""

from __future__ import annotations

from gymnasium import register

_TASKS = {
    "bandit": ("Bandit", "bandit:Bandit"),
    "maze": ("Maze", "maze:Maze"),
    "peaks": ("Peaks", "differentiable:PeaksTask"),
    "double_well": ("DoubleWell", "differentiable:DoubleWellTask"),
    "push_around": ("PushAround", "differentiable:PushAroundTask"),
    "block_push": ("BlockPush", "block_push:BlockPush"),
    "cabinet_sparse": ("CabinetSparse", "cabinet:CabinetSparse"),
    "cabinet_dense": ("CabinetDense", "cabinet:CabinetDense"),
    "ant_push": ("AntPush", "ant_push:AntPush"),
    "cheetah_back": ("CheetahBack", "locomotion:CheetahBack"),
    "half_cheetah": ("HalfCheetah", "locomotion:HalfCheetah"),
    "humanoid": ("Humanoid", "locomotion:Humanoid"),
    "metaworld": ("MetaWorld", "metaworld:MetaWorld"),
    "metaworld_basketball": ("MetaWorldBasketball", "metaworld:MetaWorld"),
    "metaworld_stick_pull": ("MetaWorldStickPull", "metaworld:MetaWorld"),
    "adroit_door": ("AdroitDoor", "adroit:AdroitDoor"),
    "adroit_hammer": ("AdroitHammer", "adroit:AdroitHammer"),
}
"""The word in `task=...` -> its id in Gymnasium without namespace and version, and its class."""
_METAWORLD = {"metaworld_basketball": "basketball-v3", "metaworld_stick_pull": "stick-pull-v3"}
"""The word in `task=...` -> Meta-World's name of the task."""
IDS = {name: f"vis_rpg/{id}-v0" for name, (id, _) in _TASKS.items()}
"""The word in `task=...` -> the id in Gymnasium."""

for _name, (_, _class) in _TASKS.items():
    # Episodes end by the tasks' own clocks, which their saved state covers: no wrapper may count
    # too.
    register(
        IDS[_name],
        f"vis_rpg.envs.tasks.{_class}",
        order_enforce=False,
        kwargs={"name": _METAWORLD[_name]} if _name in _METAWORLD else {},
    )
