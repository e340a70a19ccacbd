"""Draw what slots see: the same as `vis-rpg visualise-slots`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("visualise-slots")
