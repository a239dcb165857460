"""Pictures without a display: MuJoCo's renderer over EGL or OSMesa, as on a server."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.errors import MissingDependencyError, optional_import

_LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}
_ADVICE = (
    "On Debian and Ubuntu: apt-get install libegl1 (with a GPU its driver brings EGL; without one Mesa draws on the CPU), or "
    "libosmesa6 and MUJOCO_GL=osmesa."
)

REFLECTIONS, SHADOWS, ANTIALIASING = "reflections", "shadows", "antialiasing"
"""What a `SceneRenderer` can leave out."""


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


def import_simulator(module: str, extra: str) -> ModuleType:
    """Import a module that imports MuJoCo, and with it the graphics library that MUJOCO_GL names.

    Raises:
        MissingDependencyError: the package is not installed (the message names `extra`), or the graphics library does not work.
    """
    choose_backend()
    try:
        return optional_import(module, extra)
    except (MissingDependencyError, ModuleNotFoundError):
        raise
    except Exception as error:  # PyOpenGL's errors have many types
        raise _cannot_draw(error) from error


class SceneRenderer:
    """Draws the cameras of a model. The graphics context is made for the first picture.

    Args:
        model: a `mujoco.MjModel`.
        size: (height, width) of the pictures.
        without: what is not drawn, of `REFLECTIONS`, `SHADOWS` and `ANTIALIASING`; the rest is as the model says.
        hidden_groups: the groups of geoms that are not drawn, of those that MuJoCo draws by default (0 to 2).
    """

    def __init__(
        self,
        model: Any,
        size: tuple[int, int],
        without: Collection[str] = (),
        hidden_groups: Collection[int] = (),
    ) -> None:
        self._model, self._size, self._without = model, size, without
        self._hidden_groups = hidden_groups
        self._renderer: Any = None
        self._option: Any = None

    def draw(self, data: Any, camera: str) -> NDArray[np.uint8]:
        """Return a camera's picture, (height, width, 3) uint8.

        Raises:
            MissingDependencyError: the graphics library does not work.
        """
        if self._renderer is None:
            self._renderer = self._make_renderer()
        self._renderer.update_scene(data, camera, self._option)
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        """Free the graphics context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _make_renderer(self) -> Any:
        choose_backend()
        if sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL"):
            raise MissingDependencyError(
                f"The simulation can't draw: neither EGL nor OSMesa is installed. {_ADVICE}"
            )
        try:
            import mujoco

            visual: Any = self._model.vis
            visual.global_.offheight = max(visual.global_.offheight, self._size[0])
            visual.global_.offwidth = max(visual.global_.offwidth, self._size[1])
            if ANTIALIASING in self._without:
                visual.quality.offsamples = 0
            renderer = mujoco.Renderer(self._model, *self._size)
        # PyOpenGL raises AttributeError or its own errors where a library lacks something.
        except Exception as error:
            raise _cannot_draw(error) from error
        self._option = mujoco.MjvOption()
        self._option.geomgroup[list(self._hidden_groups)] = 0
        flags: Any = renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] &= REFLECTIONS not in self._without
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] &= SHADOWS not in self._without
        return renderer


def _cannot_draw(error: Exception) -> MissingDependencyError:
    backend = os.environ.get("MUJOCO_GL", "MuJoCo's default")
    return MissingDependencyError(
        f"The simulation can't draw with {backend}: {error or type(error).__name__}. {_ADVICE}"
    )


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
