"""Pictures without a display: MuJoCo's renderer over EGL or OSMesa, as on a server."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import MissingDependencyError

_LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}
_ADVICE = (
    "On Debian and Ubuntu: apt-get install libegl1 (with a GPU its driver brings EGL; without one Mesa draws on the CPU), or "
    "libosmesa6 and MUJOCO_GL=osmesa."
)


def choose_backend() -> None:
    """Set MUJOCO_GL, which MuJoCo reads when it is imported: `egl`, or else `osmesa`.

    A value that the user has set is kept, and so is MuJoCo's own choice on macOS and Windows, and where neither is installed.
    """
    # PyOpenGL logs at import that it has no accelerator, which changes nothing here.
    logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)
    if os.environ.get("MUJOCO_GL") or not sys.platform.startswith("linux"):
        return
    for backend, libraries in _LIBRARIES.items():
        if any(map(_can_load, libraries)):
            os.environ["MUJOCO_GL"] = backend
            return


class SceneRenderer:
    """Draws the cameras of a model.

    Args:
        model: a `mujoco.MjModel`.
        size: (height, width) of the pictures.

    Raises:
        MissingDependencyError: the graphics library does not work.
    """

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        choose_backend()
        if sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL"):
            raise MissingDependencyError(
                f"The simulation can't draw: neither EGL nor OSMesa is installed. {_ADVICE}"
            )
        try:
            import mujoco

            self._renderer = mujoco.Renderer(model, *size)
        # PyOpenGL raises AttributeError or its own errors where a library lacks something.
        except Exception as error:
            backend = os.environ.get("MUJOCO_GL", "MuJoCo's default")
            raise MissingDependencyError(
                f"The simulation can't draw with {backend}: {error or type(error).__name__}. {_ADVICE}"
            ) from error
        flags: Any = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False

    def draw(self, data: Any, camera: str) -> NDArray[np.uint8]:
        """Return a camera's picture, (height, width, 3) uint8."""
        self._renderer.update_scene(data, camera)
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        """Free the graphics context."""
        self._renderer.close()


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
