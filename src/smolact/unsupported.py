"""LeRobot's settings that have no effect here: each with the reason, and its alternative.

Its commands and files may contain them, with values that ask for nothing; any other value is an error. Each table belongs to a
class of settings, as its `UNSUPPORTED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smolact.settings import Unsupported

_LATER = "this release has no such feature yet. Leave it out."
_NOT_UPLOADED = "nothing is uploaded."
_STREAMED = "frames are always encoded while they are recorded, and never staged as images. Leave it out."
_WARMUP = "the decay grows as min(decay, (1 + step) / (10 + step)). Set --ema.decay and --ema.warmup."


def _only(*values: Any) -> Callable[[Any], bool]:
    """Return a predicate that accepts these values, and null."""
    return lambda value: value is None or value in values


def _anything(_value: Any) -> bool:
    return True


def _is_off_or_empty(value: Any) -> bool:
    return value is None or value == {}


def _has_no_target(job: Any) -> bool:
    return job is None or (isinstance(job, Mapping) and job.get("target") is None)


def _is_single(sizes: Any) -> bool:
    return sizes is None or (isinstance(sizes, Mapping) and set(sizes.values()) <= {1})


TRAIN = {
    "persistent_workers": Unsupported("workers live as long as the run.", _anything),
    "tolerance_s": Unsupported(
        "frames are found by number here, not by time. Leave it out.", _only(1e-4, "1e-4")
    ),
    "checkpoint_format": Unsupported("checkpoints are always safetensors.", _only("safetensors")),
    "save_checkpoint_to_hub": Unsupported(
        "the last checkpoint is published (--policy.push_to_hub=true), not each. Use `smolact push`."
    ),
    "checkpoint_path": Unsupported("give --config_path=CHECKPOINT/pretrained_model/train_config.json."),
    "reward_model": Unsupported(_LATER),
    "sample_weighting": Unsupported(_LATER),
    "job": Unsupported("runs start on this machine.", _has_no_target),
    "accelerator": Unsupported(_LATER),
}
DATASET = {
    "video_backend": Unsupported("videos are decoded with PyAV. Leave it out.", _only("pyav", "torchcodec")),
    "repo_type": Unsupported("only Hub repositories of type 'dataset' are read.", _only("dataset")),
    "return_uint8": Unsupported("pictures always travel as uint8 here. Leave it out.", _anything),
    "depth_output_unit": Unsupported("depth cameras are not read.", _only("mm")),
    "streaming": Unsupported("datasets are read from the disk. Leave it out."),
}
POLICY = {
    "stats_key": Unsupported(
        "training normalizes with the dataset's statistics. It is a flag of `smolact eval` and its like."
    ),
}
EVAL = {
    "use_async_envs": Unsupported("environments are stepped in this process.", _anything),
    "recording": Unsupported(_LATER),
    "recording_repo_id": Unsupported(_LATER),
    "recording_private": Unsupported(_LATER),
}
WANDB = {"disable_artifact": Unsupported("checkpoints are never uploaded.", _anything)}
PARALLELISM = {
    "context_parallel": Unsupported(_LATER, _is_single),
    "cfg_parallel": Unsupported(_LATER, _only(1)),
}
EMA = {
    "update_after_step": Unsupported(_WARMUP, _only(0)),
    "inv_gamma": Unsupported(_WARMUP, _only(1.0)),
    "power": Unsupported(_WARMUP, _only(0.75)),
    "min_decay": Unsupported(_WARMUP, _only(0.0)),
    "max_decay": Unsupported(_WARMUP, _only(0.9999)),
    "use_for_eval": Unsupported(
        "the averaged policy is what is saved, and so what is evaluated.", _only(True)
    ),
}
RECORD = {"play_sounds": Unsupported("nothing is spoken.", _anything)}
RECORDED_DATASET = {
    "push_to_hub": Unsupported(
        "recording makes no network call. Publish what is finished: smolact push FOLDER OWNER/NAME"
    ),
    "private": Unsupported(_NOT_UPLOADED, _anything),
    "tags": Unsupported(_NOT_UPLOADED, _anything),
    "num_image_writer_processes": Unsupported(_STREAMED, _anything),
    "num_image_writer_threads_per_camera": Unsupported(_STREAMED, _anything),
    "video_encoding_batch_size": Unsupported(_STREAMED, _only(1)),
    "streaming_encoding": Unsupported(_STREAMED, _anything),
    "no_stamp": Unsupported("the name is kept as it is given.", _anything),
}
STRATEGY = {
    "record_autonomous": Unsupported(
        "whole episodes are recorded, and each frame is marked; `smolact train --dataset.corrections_weight=only` leaves the policy's "
        "frames out.",
        _only(True),
    ),
    "smooth_handover": Unsupported("a person takes over without a jump, always.", _only(True)),
    "input_device": Unsupported("the tab key, a gamepad or a leader takes over.", _only("keyboard")),
    "keyboard": Unsupported("tab takes over and gives back, space pauses.", _is_off_or_empty),
    "pedal": Unsupported("the tab key, a gamepad or a leader takes over.", _is_off_or_empty),
    "upload_every_n_episodes": Unsupported(_NOT_UPLOADED, _anything),
    "target_video_file_size_mb": Unsupported("every episode has its own files.", _anything),
}
TELEOPERATE = {
    "display_data": Unsupported("nothing is displayed while driving by hand; leave it out."),
}
