"""Leave out each ingredient of object discovery in turn: the same as `vis-rpg ablate-discovery`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("ablate-discovery")
