"""Steps that do not depend on a policy, and SmolVLA's newline. Each equals LeRobot's step of the same registered name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smolact.errors import ConfigError, DeviceError, FeatureError
from smolact.processors.step import ProcessorStep, register_step
from smolact.types import ACTION, ENVIRONMENT_STATE, STATE, TASK, VISION_TOKENS, is_image_key

# Suffixes of keys that belong to a feature and are renamed with it.
_COMPANIONS = ("_is_pad", "_padding_mask", VISION_TOKENS)

_FLOATS = ("float16", "half", "bfloat16", "float32", "float", "float64", "double")


@register_step("rename_observations_processor")
@dataclass
class RenameObservationsProcessorStep(ProcessorStep):
    """Renames features to the policy's names: `{"observation.images.top": "observation.images.camera1"}`.

    Raises:
        ConfigError: `rename_map` is not a mapping of names.
        FeatureError: two features of a batch would get the same name.
    """

    rename_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.rename_map, Mapping) or not all(
            isinstance(name, str) for pair in self.rename_map.items() for name in pair
        ):
            raise ConfigError(f"rename_map={self.rename_map!r} is not a mapping of old names to new ones.")

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with the policy's names."""
        renamed: dict[str, Any] = {}
        for key, value in data.items():
            name = self._new_name(key)
            if name in renamed:
                raise FeatureError(
                    f"Two features would be called '{name}': '{key}' and another one. The batch has "
                    f"{', '.join(sorted(data))}; the rename map is {self.rename_map}. Change it with --rename_map."
                )
            renamed[name] = value
        return renamed

    def _new_name(self, key: str) -> str:
        for suffix in ("", *_COMPANIONS):
            base = key.removesuffix(suffix)
            if key.endswith(suffix) and base in self.rename_map:
                return self.rename_map[base] + suffix
        return key

    def get_config(self) -> dict[str, Any]:
        """Return the map."""
        return {"rename_map": dict(self.rename_map)}


# The number of dimensions that a value has in one sample; a batch has one more.
_SAMPLE_DIMENSIONS = {STATE: 1, ENVIRONMENT_STATE: 1, ACTION: 1, "index": 0, "task_index": 0}


@register_step("to_batch_processor")
class AddBatchDimensionProcessorStep(ProcessorStep):
    """Makes a batch of one from a single observation; a batch is unchanged.

    Images (3, H, W) → (1, 3, H, W), states (D,) → (1, D), one action (A,) → (1, A), `task` str → list of one. A chunk
    of actions (chunk, A) can't be distinguished from a batch of single actions and is unchanged, as in LeRobot.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with a leading dimension everywhere."""
        return {key: self._batched(key, value) for key, value in data.items()}

    @staticmethod
    def _batched(key: str, value: Any) -> Any:
        if key == TASK and isinstance(value, str):
            return [value]
        dimensions = 3 if is_image_key(key) else _SAMPLE_DIMENSIONS.get(key)
        if isinstance(value, Tensor) and value.ndim == dimensions:
            return value.unsqueeze(0)
        return value


@register_step("smolvla_new_line_processor")
class SmolVLANewLineProcessor(ProcessorStep):
    """Ends each task with a newline, as in SmolVLA's training prompts."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with a newline after each task."""
        task = data.get(TASK)
        if isinstance(task, str):
            return {**data, TASK: _with_newline(task)}
        if isinstance(task, (list, tuple)) and all(isinstance(text, str) for text in task):
            return {**data, TASK: [_with_newline(text) for text in task]}
        return dict(data)  # not text: the tokenizer raises


def _with_newline(text: str) -> str:
    return text if text.endswith("\n") else type(text)(text + "\n")  # an EmptyInstruction stays one


@register_step("device_processor")
@dataclass
class DeviceProcessorStep(ProcessorStep):
    """Moves every tensor to a device and, if requested, floating-point ones to a dtype.

    A tensor on a CUDA device stays there when the target is CUDA too: the GPU of this process was chosen earlier.

    Args:
        device: such as `cpu`, `cuda`, `cuda:1`, `mps`. Files store only its type.
        float_dtype: `float32`, `bfloat16`, … or None to keep dtypes.

    Raises:
        DeviceError: this machine does not have the device.
        ConfigError: there is no such dtype.
    """

    device: str = "cpu"
    float_dtype: str | None = None

    def __post_init__(self) -> None:
        self._device = find_device(self.device)
        if self.float_dtype is not None and self.float_dtype not in _FLOATS:
            raise ConfigError(
                f"float_dtype={self.float_dtype!r} is not one of {', '.join(_FLOATS)}, or null."
            )
        self._dtype = getattr(torch, self.float_dtype) if self.float_dtype is not None else None

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch on the device."""
        return {
            key: self._moved(value) if isinstance(value, Tensor) else value for key, value in data.items()
        }

    def _moved(self, tensor: Tensor) -> Tensor:
        device = tensor.device if tensor.is_cuda and self._device.type == "cuda" else self._device
        dtype = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
        if device.type == "mps" and dtype == torch.float64:
            dtype = torch.float32  # MPS has no float64
        return tensor.to(device=device, dtype=dtype, non_blocking=device.type == "cuda")

    def get_config(self) -> dict[str, Any]:
        """Return the device's type and the dtype's name."""
        return {"device": self._device.type, "float_dtype": self.float_dtype}


def find_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        DeviceError: it is not a device, or not of this machine.
    """
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise DeviceError(
            f"'{name}' is not a device: expected cpu, cuda, cuda:0, mps, … (--policy.device)"
        ) from error
    count = {
        "cpu": lambda: 1,
        "cuda": torch.cuda.device_count,
        "mps": torch.mps.device_count,
        "xpu": torch.xpu.device_count,
    }.get(device.type)
    if count is None or (device.index or 0) >= count():
        available = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise DeviceError(
            f"The device '{name}' is not there: this machine has {available}. Choose one with --policy.device, such as "
            "--policy.device=cpu; for a GPU that should be there, run `smolact info`."
        )
    return device


def to_float_image(image: Tensor) -> Tensor:
    """Convert an image to float32 in [0, 1]: uint8 is divided by 255, floating point is unchanged.

    Images stay uint8 for as long as possible (a quarter of the bytes to the GPU), so the normalizer calls this after the
    move to the device.

    Raises:
        FeatureError: another dtype, whose range is unknown.
    """
    if image.dtype == torch.uint8:
        return image.to(torch.float32) / 255
    if image.is_floating_point():
        return image
    raise FeatureError(f"An image came as {image.dtype}: expected uint8, or floating point in [0, 1].")
