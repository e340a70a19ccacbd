"""Methods that RPG is compared with."""
