"""The tasks; importing this package registers them with Gymnasium."""

from __future__ import annotations

from gymnasium import register

IDS = {
    "bandit": "vis_rpg/Bandit-v0",
    "maze": "vis_rpg/Maze-v0",
    "block_push": "vis_rpg/BlockPush-v0",
    "cabinet_sparse": "vis_rpg/CabinetSparse-v0",
    "cabinet_dense": "vis_rpg/CabinetDense-v0",
    "ant_push": "vis_rpg/AntPush-v0",
    "cheetah_back": "vis_rpg/CheetahBack-v0",
    "half_cheetah": "vis_rpg/HalfCheetah-v0",
    "humanoid": "vis_rpg/Humanoid-v0",
    "metaworld": "vis_rpg/MetaWorld-v0",
    "metaworld_basketball": "vis_rpg/MetaWorldBasketball-v0",
    "metaworld_stick_pull": "vis_rpg/MetaWorldStickPull-v0",
    "adroit_door": "vis_rpg/AdroitDoor-v0",
    "adroit_hammer": "vis_rpg/AdroitHammer-v0",
}
"""The word in `task=...` -> the id in Gymnasium."""

# Episodes end by the tasks' own clocks, which their saved state covers; no wrapper may count beside
# them.
register(IDS["bandit"], "vis_rpg.envs.tasks.bandit:Bandit", order_enforce=False)
register(IDS["maze"], "vis_rpg.envs.tasks.maze:Maze", order_enforce=False)
register(IDS["block_push"], "vis_rpg.envs.tasks.block_push:BlockPush", order_enforce=False)
register(IDS["cabinet_sparse"], "vis_rpg.envs.tasks.cabinet:CabinetSparse", order_enforce=False)
register(IDS["cabinet_dense"], "vis_rpg.envs.tasks.cabinet:CabinetDense", order_enforce=False)
register(IDS["ant_push"], "vis_rpg.envs.tasks.ant_push:AntPush", order_enforce=False)
register(IDS["cheetah_back"], "vis_rpg.envs.tasks.locomotion:CheetahBack", order_enforce=False)
register(IDS["half_cheetah"], "vis_rpg.envs.tasks.locomotion:HalfCheetah", order_enforce=False)
register(IDS["humanoid"], "vis_rpg.envs.tasks.locomotion:Humanoid", order_enforce=False)
register(IDS["metaworld"], "vis_rpg.envs.tasks.metaworld:MetaWorld", order_enforce=False)
register(
    IDS["metaworld_basketball"],
    "vis_rpg.envs.tasks.metaworld:MetaWorld",
    order_enforce=False,
    kwargs={"name": "basketball-v3"},
)
register(
    IDS["metaworld_stick_pull"],
    "vis_rpg.envs.tasks.metaworld:MetaWorld",
    order_enforce=False,
    kwargs={"name": "stick-pull-v3"},
)
register(IDS["adroit_door"], "vis_rpg.envs.tasks.adroit:AdroitDoor", order_enforce=False)
register(IDS["adroit_hammer"], "vis_rpg.envs.tasks.adroit:AdroitHammer", order_enforce=False)
