"""Folders of files that the packages read.

They lie next to the packages in a checkout, inside vis_rpg where it is installed.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
CONFIG_DIR = ROOT / "configs"
ASSETS = ROOT / "assets"
