"""One task's simulation: hf-libero's on robosuite, which is drawn only when asked to."""

from __future__ import annotations

import contextlib
import pickletools
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.benchmarks.base import DivergedError
from smolact.envs.benchmarks.libero_assets import import_libero, libero_folder
from smolact.envs.rendering import SceneRenderer

N_STATE = 8
_SETTLING_STEPS = 10
_STAND_STILL = (0, 0, 0, 0, 0, 0, -1)
_N_INIT_STATES = 50  # of each of the 130 tasks
_COLLISION_SHAPES = 0  # robosuite's group of geoms that are not drawn


class LiberoSimulation:
    """One task's simulation.

    robosuite samples states and pictures a moment before a control step ends: the last substep but one of 25. The simulation is
    copied at that moment (0.2 ms), so that what `draw` shows later is what robosuite would have drawn then.

    Args:
        suite: the suite, such as `libero_goal`.
        name: the task: the name of its BDDL file.
        cameras: each camera's name in the model, and that of its picture.
        size: (height, width) of the pictures.
        without: what they lack (`SceneRenderer`).
        absolute: whether actions are poses rather than changes of the pose.
        init_states: whether episodes begin in the recorded initial states, rather than in those that the seed draws.
        hard_reset: whether `reset` builds the model again, which costs 1 to 3 s.
        fps: control steps per second.

    Attributes:
        robosuite: its environment, and LIBERO's; for experts.
        observation: what that observes, without pictures, with the poses of all objects.
    """

    def __init__(
        self,
        suite: str,
        name: str,
        *,
        cameras: Mapping[str, str],
        size: tuple[int, int],
        without: Collection[str] = (),
        absolute: bool = False,
        init_states: bool = True,
        hard_reset: bool = True,
        fps: int = 20,
    ) -> None:
        libero: Any = import_libero()
        self._cameras, self._size, self._without, self._absolute = cameras, size, without, absolute
        self._init_states = _recorded_states(suite, name) if init_states else None
        self._model: Any = None
        self._sampled: Any = None
        self._renderer: SceneRenderer | None = None
        with _own_random_numbers(0):
            # Without an offscreen renderer robosuite opens no graphics context at each reset.
            self._control: Any = libero.env_wrapper.ControlEnv(
                bddl_file_name=str(libero_folder() / "bddl_files" / suite / f"{name}.bddl"),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                control_freq=fps,
                ignore_done=True,
                hard_reset=hard_reset,
            )
            self.robosuite: Any = self._control.env
            self.robosuite.modify_observable("robot0_eef_pos", "filter", self._keep_sample)
            self._reset_robosuite()
        # At each hard reset LIBERO appends what opens and closes drawers once more, which would change what a seed draws.
        self._n_initializers = len(self.robosuite.object_property_initializers)
        self.observation: Mapping[str, NDArray[np.float64]] = {}

    @property
    def agent_pos(self) -> NDArray[np.float64]:
        """The gripper's position (3,) in metres and rotation vector (3,), and its two fingers (2,), as float32 numbers."""
        return _state(self.observation)

    def reset(self, seed: int, init_state: int) -> None:
        """Start the episode of a seed, in a recorded initial state if there are any, after ten steps that let objects settle."""
        del self.robosuite.object_property_initializers[self._n_initializers :]
        with _own_random_numbers(seed):
            self._reset_robosuite()
        if self._init_states is not None:
            self._control.set_init_state(self._init_states[init_state % len(self._init_states)])
        controller: Any = self.robosuite.robots[0].controller
        for _ in range(_SETTLING_STEPS):
            self.observation, *_ = self.robosuite.step(_STAND_STILL)
        controller.use_delta = not self._absolute

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one control step; return the reward, 0 or 1, and whether the task is done. Raises `DivergedError`."""
        self.observation, reward, success, _ = self.robosuite.step(action)
        if self.robosuite.sim.data._data.warning.number[_unstable()].any():
            raise DivergedError("MuJoCo set the simulation back to its beginning")
        return float(reward), bool(success)

    def draw(self) -> dict[str, NDArray[np.uint8]]:
        """Return each camera's picture, upright and mirrored left to right, as LeRobot gives it to policies."""
        model, (data, colors) = self._model, self._sampled
        if self._renderer is None:
            self._renderer = SceneRenderer(
                model, self._size, self._without, hidden_groups=(_COLLISION_SHAPES,)
            )
        present = model.site_rgba.copy()
        model.site_rgba[:] = colors
        try:
            return {
                name: np.ascontiguousarray(self._renderer.draw(data, camera)[:, ::-1])
                for camera, name in self._cameras.items()
            }
        finally:
            model.site_rgba[:] = present

    def close(self) -> None:
        """Free the graphics context and the model, which takes some 0.7 GB."""
        self._close_renderer()
        self._model = self._sampled = None
        self.robosuite.close()

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None

    def _reset_robosuite(self) -> None:
        from robosuite.utils.errors import RandomizationError

        # Not ControlEnv's reset, which repeats itself for ever after any error.
        while True:
            with contextlib.suppress(RandomizationError):
                self.robosuite.reset()
                return

    def _keep_sample(self, value: Any) -> Any:
        """Copy the simulation; robosuite calls this when it samples its observations."""
        import mujoco

        model, data = self.robosuite.sim.model._model, self.robosuite.sim.data._data
        if model is not self._model:
            self._close_renderer()
            self._model, self._sampled = model, (mujoco.MjData(model), model.site_rgba.copy())
        mujoco.mj_copyData(self._sampled[0], model, data)
        # A stove that is turned on lights up after the sample of its step.
        self._sampled[1][:] = model.site_rgba
        return value


def _recorded_states(suite: str, name: str) -> NDArray[np.float64]:
    """Return a task's initial states, (50, D): time, positions and velocities.

    The file is torch's archive of a pickled float64 array. Its numbers are the longest text in the pickle, which is not run.
    """
    with zipfile.ZipFile(libero_folder() / "init_files" / suite / f"{name}.pruned_init") as archive:
        pickled = archive.read(next(file for file in archive.namelist() if file.endswith("data.pkl")))
    numbers = max((text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str)), key=len)
    return np.frombuffer(numbers.encode("latin1")).reshape(_N_INIT_STATES, -1)


def _state(observation: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return LeRobot's state (8,), computed with torch in float32 as by its `LiberoProcessorStep`, so that all bits are the same."""
    import torch

    position, quaternion, fingers = (
        torch.from_numpy(np.asarray(observation[f"robot0_{name}"], np.float32))
        for name in ("eef_pos", "eef_quat", "gripper_qpos")
    )
    cosine = quaternion[3:].clamp(-1, 1)
    sine = torch.sqrt((1 - cosine * cosine).clamp(min=0))
    axis = quaternion[:3] / sine if sine > 1e-10 else torch.zeros(3)
    state: NDArray[np.float64] = (
        torch.cat((position, axis * (2 * torch.acos(cosine)), fingers)).double().numpy()
    )
    return state


def _unstable() -> list[int]:
    """Return the warnings after which MuJoCo sets the simulation back to its beginning."""
    from mujoco import mjtWarning

    return [int(mjtWarning.mjWARN_BADQPOS), int(mjtWarning.mjWARN_BADQVEL), int(mjtWarning.mjWARN_BADQACC)]


@contextlib.contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which robosuite draws, and give it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
