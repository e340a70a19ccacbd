"""What a task on SAPIEN needs: articulations from URDF files, and pictures of them.

Physics never needs a Vulkan device; pictures do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vis_rpg.envs.rendering.frames import FRAME
from vis_rpg.errors import UserError

VULKAN = (
    "a Vulkan device: run scripts/install_vulkan.sh (Debian 12), or install your graphics "
    "card's Vulkan driver or the package "
    "mesa-vulkan-drivers, of Mesa 25 or newer; or use obs=state"
)
AMBIENT = 0.75
SUN = 0.6
"""Strength of the one directional light; it throws no shadows."""


def sapien_for(id: str) -> Any:
    """The `sapien` package. Raises UserError where it is not installed."""
    try:
        import sapien
    except ImportError as error:
        raise UserError(f"{id} needs SAPIEN: pip install 'vis-rpg[robotics]' ({error})") from error
    return sapien


def read_urdf(path: Path, drawn: bool, group: int = 0, fixed: Sequence[str] = ()) -> Any:
    """Read the articulation of a URDF file; it may be built many times.

    Args:
        path: The file.
        drawn: Whether it has visual shapes, which need a Vulkan device.
        group: A number for itself, so that links of the articulation do not collide with each
            other.
        fixed: Names of joints that are held at 0.

    Returns:
        A SAPIEN builder.
    """
    import sapien
    from sapien.wrapper.urdf_loader import URDFLoader

    tree = ElementTree.parse(path)
    if not drawn:
        for link in tree.iter("link"):
            for visual in link.findall("visual"):
                link.remove(visual)
    loader = URDFLoader()
    loader.set_scene(sapien.Scene([]))  # it only makes the builder
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / path.name
        tree.write(written)
        builder = loader.load_file_as_articulation_builder(str(written))
    for link in builder.link_builders:
        if link.joint_record.name in fixed:
            link.joint_record.joint_type = "fixed"
        # Shapes that share a bit of the third number collide only if their fourth numbers differ.
        link.collision_groups = [1, 1, 1, group]
    return builder


class RenderScene:
    """A scene that is only drawn: the links of some URDF files, put where a physics scene has them.

    It has no shadows and no reflections.

    Environments that show the same models share one scene, since each would hold pipelines of its
    own.
    """

    def __init__(
        self,
        id: str,
        files: Sequence[Path],
        eye: Sequence[float],
        target: Sequence[float],
        fovy: float,
    ) -> None:
        """Load the files.

        Args:
            id: Of the task, for messages.
            files: URDF files.
            eye: The camera's place.
            target: The point that it looks at.
            fovy: Its vertical field of view, radians.

        Raises:
            UserError: Where SAPIEN finds no Vulkan device that it takes.
        """
        sapien = sapien_for(id)
        try:
            self._system = sapien.render.RenderSystem()
        except RuntimeError as error:
            raise UserError(
                f"obs=pixels for {id} needs {VULKAN} ({' '.join(str(error).split())})"
            ) from error
        self._sapien, self._fovy, self._pose = (
            sapien,
            fovy,
            _look(sapien, np.array(eye), np.array(target)),
        )
        self._scene = sapien.Scene([self._system])
        self._system.ambient_light = [AMBIENT] * 3
        light = sapien.render.RenderDirectionalLightComponent()
        light.color, light.shadow = [SUN] * 3, False
        sun = sapien.Entity().add_component(light)
        sun.pose = _look(sapien, np.array([-1.0, 0.4, 2.0]), np.zeros(3))
        self._scene.add_entity(sun)
        self._entities = []
        for path in files:
            for link in read_urdf(path, drawn=True).link_builders:
                entity = sapien.Entity()
                if link.visual_records:
                    entity.add_component(link.build_render_component())
                entity.name = link.name
                self._scene.add_entity(entity)
                self._entities.append(entity)
        self._shaders = str(Path(sapien.__file__).parent / "vulkan_shader" / "minimal")
        self._cameras: dict[int, Any] = {}

    def labels(self, parts: Mapping[str, int]) -> np.ndarray:
        """Label each number in the segmentation picture: 0 but for the links in `parts`."""
        table = np.zeros(1 + max(entity.per_scene_id for entity in self._entities), int)
        for entity in self._entities:
            table[entity.per_scene_id] = parts.get(entity.name, 0)
        return table

    def _take_picture(self, poses: Sequence[Any], size: int) -> Any:
        """Take a picture of the links at `poses`, in the order of the files."""
        if size not in self._cameras:
            camera = self._sapien.render.RenderCameraComponent(size, size, self._shaders)
            camera.set_fovy(self._fovy, True)
            camera.near, camera.far = 0.05, 10.0
            mount = self._sapien.Entity().add_component(camera)
            mount.pose = self._pose
            self._scene.add_entity(mount)
            self._cameras[size] = camera
        for entity, pose in zip(self._entities, poses, strict=True):
            entity.pose = pose
        self._system.step()
        self._cameras[size].take_picture()
        return self._cameras[size]

    def render(self, poses: Sequence[Any], size: int) -> np.ndarray:
        """(size, size, 3) uint8."""
        colour = self._take_picture(poses, size).get_picture("Color")[..., :3]
        return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)

    def segmentation(self, poses: Sequence[Any]) -> np.ndarray:
        """The number of the link that each pixel shows, for `labels`: (64, 64) int."""
        return (
            self._take_picture(poses, FRAME).get_picture("PositionSegmentation")[..., 3].astype(int)
        )


def _look(sapien: Any, eye: np.ndarray, target: np.ndarray) -> Any:
    """A camera's pose in SAPIEN's convention: x forward, y left, z up."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    left = np.cross([0.0, 0.0, 1.0], forward)
    left /= np.linalg.norm(left)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([forward, left, np.cross(forward, left)], axis=1)
    matrix[:3, 3] = eye
    return sapien.Pose(matrix)


render_scenes: dict[str, RenderScene] = {}
"""The scenes of this process, by a name of what they show. They stay when environments are closed:
a first picture costs seconds."""
