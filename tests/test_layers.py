"""No module imports from a layer above its own, and perception knows nothing of vis_rpg."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    (
        "perception.base",
        "perception.encoding",
        "perception.images",
        "perception.gru",
        "perception.ops",
    ),
    ("perception.encoders", "perception.slots"),
    ("perception.discovery", "perception.evaluation"),
    (
        "vis_rpg.errors",
        "vis_rpg.resources",
        "vis_rpg.origin",
        "vis_rpg.seeding",
        "vis_rpg.distributed",
        "vis_rpg.schema",
        "vis_rpg.compose",
        "vis_rpg.completion",
        "vis_rpg.config",
        "vis_rpg.checks",
    ),
    ("vis_rpg.envs",),
    ("vis_rpg.agent",),
    ("vis_rpg.baselines",),
    ("vis_rpg.training",),
    (
        "vis_rpg.analysis",
        "vis_rpg.benchmarks",
        "vis_rpg.bandit",
        "vis_rpg.pathwise",
        "vis_rpg.sweeps",
    ),
    ("vis_rpg.cli", "vis_rpg.doctor"),
)
"""Bottom to top. Modules of one layer may import each other."""
TOP = ("vis_rpg", "perception")
"""The packages' own __init__, which name what users import."""


def layer(module: str) -> int:
    """The index of a module's layer."""
    found = [i for i, names in enumerate(LAYERS) for n in names if f"{module}.".startswith(f"{n}.")]
    assert len(found) == 1, f"{module} belongs to no layer: name it in LAYERS"
    return found[0]


def modules() -> dict[str, Path]:
    paths = [path for top in TOP for path in (ROOT / top).rglob("*.py")]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in inner}
    return found & known.keys()


@pytest.mark.parametrize("module", sorted(modules().keys() - set(TOP)))
def test_a_module_imports_from_no_layer_above_its_own(module: str) -> None:
    known = modules()
    upward = {
        name for name in imports(known[module], known) - set(TOP) if layer(name) > layer(module)
    }
    assert not upward, f"{module} imports {', '.join(sorted(upward))} from above"


@pytest.mark.parametrize("path", sorted((ROOT / "perception").rglob("*.*")), ids=lambda p: p.name)
def test_perception_knows_nothing_of_vis_rpg(path: Path) -> None:
    if path.suffix in (".py", ".cpp", ".h"):
        lines = [
            line for line in path.read_text().splitlines() if "vis_rpg" in line or "vis-rpg" in line
        ]
        assert not lines, lines
