"""The RPG agent: networks, losses, exploration bonus and acting."""
