"""A page to look at a run in the browser: `vis-rpg explore`."""
