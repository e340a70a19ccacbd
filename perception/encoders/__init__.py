"""Perception from the environment's state, and from pixels by a CNN or a timm model."""
