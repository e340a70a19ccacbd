"""Draw the states that a run visited: the same as `vis-rpg visualise-states`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("visualise-states")
