"""IL-Studio's `load_model`: a new policy, a checkpoint to go on from, or one to drive with."""

from __future__ import annotations

import logging
from typing import Any

from smolact.errors import ConfigError, DeviceError, optional_import
from smolact.integrations.il_studio.fields import THE_TASKS, settings_from, typed_by_hand
from smolact.integrations.il_studio.modeling import ILStudioPolicy
from smolact.processors.steps import find_device

transformers = optional_import("transformers", extra="hf")
logger = logging.getLogger(__name__)


def load_policy(args: Any, policy_class: type[ILStudioPolicy]) -> dict[str, Any]:
    """A policy and what belongs to it: `model`, `tokenizer`, `config`, `data_processor`, `data_collator`.

    Args:
        args: as IL-Studio has merged them. With `is_pretrained`, `model_name_or_path` is opened: its configuration holds, and
            over it the task's sizes and what was typed as `--policy.…`. Otherwise the policy is new. It is moved to
            `args.device` where that is said; in training the trainer moves it.
        policy_class: which policy.

    Raises:
        NotFoundError, HubError, CheckpointError: the checkpoint or the VLM is not there, or damaged.
        ConfigError: a setting can't work, or does not exist.
        DeviceError: the device is not there.
    """
    device = getattr(args, "device", None)
    if device is not None:
        _check_device(str(device))
    settings = settings_from(args, policy_class.config_class.settings_class)
    if getattr(args, "is_pretrained", False):
        model = _opened(args, policy_class, settings)
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
    """What makes a sample ready for the collator."""
    return model_components["model"].processor


def get_data_collator(args: Any, model_components: dict[str, Any]) -> Any:
    """What makes a batch of samples."""
    return type(model_components["model"]).data_collator


def _opened(args: Any, policy_class: type[ILStudioPolicy], settings: dict[str, Any]) -> ILStudioPolicy:
    path = getattr(args, "model_name_or_path", None)
    if not path:
        raise ConfigError(
            "is_pretrained is true, and model_name_or_path does not say what to open. Set --policy.model_name_or_path=CHECKPOINT."
        )
    is_training = hasattr(args, "config_overrides")
    by_hand = {name.removeprefix("model_args.") for name in typed_by_hand(args)}
    chosen = [*(THE_TASKS if is_training else ()), *by_hand]
    model = policy_class.from_pretrained(
        path, **{name: settings[name] for name in chosen if name in settings and settings[name] != []}
    )
    if not is_training and hasattr(args, "chunk_size"):
        # IL-Studio reads chunk_size from the run's folder, where there is none before its end.
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
    """The VLM's, as transformers has it: a trainer that is given one saves it."""
    folder = model.core.vlm.tokenizer_folder()
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
