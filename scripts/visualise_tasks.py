"""Draw the first observation of every task: the same as `vis-rpg visualise-tasks`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("visualise-tasks")
