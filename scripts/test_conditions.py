"""Test object discovery under noise, light and the like: the same as `vis-rpg test-conditions`."""

from vis_rpg.cli import main

if __name__ == "__main__":
    main("test-conditions")
