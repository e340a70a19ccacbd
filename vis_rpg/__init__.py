"""Reparameterized policy learning from state or pixels, with objects found by slot attention."""

from vis_rpg import envs as envs
from vis_rpg.training.load import load

__all__ = ["load"]
