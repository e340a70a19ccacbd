"""vis-rpg: reparameterized policy learning from state or from pixels, with objects discovered by
slot attention."""

from vis_rpg import envs as envs
from vis_rpg.training.load import load

__all__ = ["load"]
