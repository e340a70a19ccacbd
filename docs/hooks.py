"""Adds generated pages to the site: settings, API, and files that lie outside of docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from vis_rpg.cli import COMMANDS
from vis_rpg.compose import compose_unchecked, config_files, config_groups
from vis_rpg.config import SCHEMAS
from vis_rpg.resources import CONFIG_DIR
from vis_rpg.schema import describe, flatten

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("results/**/*", "assets/*.png", "assets/*.gif", "assets/tasks/*.png", "*.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and results, pictures and top-level pages of the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = str(path.relative_to(ROOT))
            if path.is_file() and (path.name != "README.md" or name.startswith("results/")):
                files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    pages = {"reference/settings.md": settings(), **api()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def settings() -> str:
    """The settings of every command, with their values by default."""
    lines = [
        "# Settings",
        "",
        "Every setting of every command, with its default. `vis-rpg COMMAND --help` prints the "
        "same. Values are set as `key=value`; a key that does not exist is answered with the "
        "nearest one that does.",
    ]
    for command, (name, _, about) in COMMANDS.items():
        with config_files(CONFIG_DIR):
            values = flatten(OmegaConf.to_container(compose_unchecked([], name)))
            groups = config_groups() if command == "train" else {}
        lines += ["", f"## vis-rpg {command}", "", f"{about[0].upper()}{about[1:]}.", ""]
        if groups:
            lines += ["| group | options |", "| --- | --- |"]
            lines += [
                f"| `{group}` | {', '.join(f'`{option}`' for option in options)} |"
                for group, options in groups.items()
            ]
            lines.append("")
        lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
        lines += [
            f"| `{key}` | {_shown(values, key)} | {_cell(meaning)} |"
            for key, meaning in dict(describe(SCHEMAS[name])).items()
        ]
    return "\n".join(lines) + "\n"


def _shown(values: dict[str, Any], key: str) -> str:
    """A default; nothing for a section, or for a setting of another option of its group."""
    if key not in values:
        return ""
    value = values[key]
    if value == "???":
        return "required"
    words = {None: "null", True: "true", False: "false"}
    word = words.get(value, value) if _plain(value) else value
    return f"`{word}`" if word != "" else ""


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def api() -> dict[str, str]:
    """A page for each package, with every public name that has a docstring."""
    pages: dict[str, str] = {}
    index = ["# API", "", "From the docstrings. `import vis_rpg` registers the tasks.", ""]
    for top in ("vis_rpg", "perception"):
        modules: dict[str, list[str]] = {}
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            modules.setdefault(".".join(parts[: 3 if parts[1:2] == ("envs",) else 2]), []).append(
                ".".join(parts)
            )
        flat = [own for own, inner in modules.items() if inner == [own] and own != top]
        for own in [name for name in flat if name.count(".") == 1]:
            modules[top] += modules.pop(own)
        for package, names in sorted(modules.items()):
            index.append(f"- [`{package}`](api/{package}.md)")
            body = "\n\n".join(f"::: {name}" for name in names)
            pages[f"reference/api/{package}.md"] = f"# {package}\n\n{body}\n"
    pages["reference/api.md"] = "\n".join(index) + "\n"
    return pages
