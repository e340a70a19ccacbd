"""Train agents: the same as `vis-rpg train`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("train")
