"""IL-Studio's `load_model`: a new policy, or a checkpoint for training or evaluation."""

from __future__ import annotations

import logging
from typing import Any

import transformers

from smolact.errors import ConfigError, DeviceError
from smolact.processors.steps import find_device
from smolact_il_studio.fields import THE_TASKS, command_line_settings, settings_from
from smolact_il_studio.modeling import ILStudioPolicy

logger = logging.getLogger(__name__)


def load_policy(args: Any, policy_class: type[ILStudioPolicy]) -> dict[str, Any]:
    """Return a policy's components: `model`, `tokenizer`, `config`, `data_processor`, `data_collator`.

    Args:
        args: IL-Studio's merged arguments. With `is_pretrained`, `model_name_or_path` is loaded with its own configuration,
            which the task's sizes and `--policy.…` override. Otherwise the policy is new. It is moved to `args.device` if that
            is set; in training the trainer moves it.

    Raises:
        NotFoundError, HubError, CheckpointError: the checkpoint or the VLM is missing or corrupt.
        ConfigError: a setting is invalid or unknown.
        DeviceError: the device is not available.
    """
    device = getattr(args, "device", None)
    if device is not None:
        _check_device(str(device))
    settings = settings_from(args, policy_class.config_class.settings_class)
    if getattr(args, "is_pretrained", False):
        model = _load(args, policy_class, settings)
    else:
        config = policy_class.config_class(**settings)
        if not config.load_vlm_weights:
            logger.warning(
                "load_vlm_weights is false: the VLM's weights are random, and few demonstrations do not teach it to see."
            )
        model = policy_class(config)
    if device is not None:
        model.to(device)
    return {
        "model": model,
        "config": model.config,
        "tokenizer": _tokenizer(model),
        "data_processor": model.processor,
        "data_collator": policy_class.data_collator,
    }


def get_data_processor(args: Any, model_components: dict[str, Any]) -> Any:
    """Return the policy's processor of samples."""
    return model_components["model"].processor


def get_data_collator(args: Any, model_components: dict[str, Any]) -> Any:
    """Return the policy's collator."""
    return type(model_components["model"]).data_collator


def _load(args: Any, policy_class: type[ILStudioPolicy], settings: dict[str, Any]) -> ILStudioPolicy:
    path = getattr(args, "model_name_or_path", None)
    if not path:
        raise ConfigError(
            "is_pretrained is true, and model_name_or_path does not say what to open. Set --policy.model_name_or_path=CHECKPOINT."
        )
    is_training = hasattr(args, "config_overrides")
    overridden = {name.removeprefix("model_args.") for name in command_line_settings(args)}
    names = [*(THE_TASKS if is_training else ()), *overridden]
    model = policy_class.from_pretrained(
        path, **{name: settings[name] for name in names if name in settings and settings[name] != []}
    )
    if not is_training and hasattr(args, "chunk_size"):
        # IL-Studio reads chunk_size from the run's folder, which has none before the run ends.
        args.chunk_size = min(int(args.chunk_size), model.config.n_action_steps)
    return model


def _check_device(device: str) -> None:
    try:
        find_device(device)
    except DeviceError as error:
        raise DeviceError(
            f"--device={device} (IL-Studio's default is cuda): this machine does not have it. Choose another, such as --device cpu."
        ) from error


def _tokenizer(model: ILStudioPolicy) -> Any:
    """Return the VLM's tokenizer as a transformers class, which a trainer saves."""
    folder = model.core.vlm.tokenizer_folder()
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
