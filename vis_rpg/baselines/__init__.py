"""Agents to compare with: each is a class of its own beside RPG's, under the same training."""
