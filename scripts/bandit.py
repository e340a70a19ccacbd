"""Train and draw Fig. 4, on the one-step bandit: the same as `vis-rpg bandit`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("bandit")
