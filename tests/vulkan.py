"""Whether SAPIEN can draw here."""

from __future__ import annotations

import pytest


def _draws() -> bool:
    try:
        import sapien

        sapien.render.RenderSystem()
    except (ImportError, RuntimeError):
        return False
    return True


needs_vulkan = pytest.mark.skipif(not _draws(), reason="SAPIEN finds no Vulkan device: scripts/install_vulkan.sh")
