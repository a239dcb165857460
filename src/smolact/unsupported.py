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
_JOINTS_ALONE = "joints are measured, and no positions of the gripper computed. Leave it out."
_ONE_PICTURE = "one picture of each camera is taken, once the camera has adjusted itself. Leave it out."
_VIDEO = "videos are written as LeRobot writes them by default. Choose with --dataset.vcodec alone."
_UNCOMPILED = "a policy runs in an engine that is not compiled. Leave it out."
_TAKES_OVER = "the tab key, a gamepad or a leader takes over."
_EPISODIC = "episodes with a reset between them are recorded by `smolact record --policy.path=CHECKPOINT`."
_HIGHLIGHT = "episodes are kept whole, with --record-to=FOLDER."
_WARMUP = "the decay grows as min(decay, (1 + step) / (10 + step)). Set --ema.decay and --ema.warmup."


def _only(*values: Any) -> Callable[[Any], bool]:
    """Return a predicate that accepts these values, and null."""
    return lambda value: value is None or value in values


def _anything(_value: Any) -> bool:
    return True


def _is_off_or_empty(value: Any) -> bool:
    return value is None or value == {}


def _display(advice: str) -> dict[str, Unsupported]:
    """Return the refusals of a command that displays nothing."""
    names = "display_data", "display_ip", "display_port", "display_compressed_images"
    mode = Unsupported(advice, _only("rerun"))
    return {"display_mode": mode, **{name: Unsupported(advice) for name in names}}


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
ENV = {
    "disable_env_checker": Unsupported("gymnasium's checker never runs here.", _anything),
    "features": Unsupported("they are read from the environment. Leave it out.", _anything),
    "features_map": Unsupported(
        "name the policy's inputs in a file (--env.mapping=FILE), or rename them (--rename_map)."
    ),
    "max_parallel_tasks": Unsupported(
        "episodes are shared by processes: --cpu_processes=N, or accelerate launch.", _only(1)
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
PLUGIN = {
    "discover_packages_path": Unsupported(
        "an installed plugin of LeRobot (lerobot_robot_…, lerobot_teleoperator_…) is found by its name. Leave it out."
    )
}
UNCALIBRATED = {
    "id": Unsupported("it needs no calibration.", _anything),
    "calibration_dir": Unsupported("it needs no calibration.", _anything),
}
GAMEPAD = {
    **UNCALIBRATED,
    "use_gripper": Unsupported(
        "each stick and trigger moves a number of the action, the gripper's among them. Leave it out.",
        _only(True),
    ),
    "hidapi_fallback": Unsupported("gamepads are read with pygame. Leave it out."),
}
FIND_CAMERAS = {
    "record-time-s": Unsupported(_ONE_PICTURE, _only(2)),
    "warmup-s": Unsupported(_ONE_PICTURE, _only(1)),
}
FIND_JOINT_LIMITS = {
    "warmup_time_s": Unsupported(
        "the arm is moved by hand, with its motors off, and measured at once. Leave it out.", _only(0)
    ),
    "control_loop_fps": Unsupported("the joints are read about 30 times a second. Leave it out.", _only(30)),
    "urdf_path": Unsupported(_JOINTS_ALONE),
    "target_frame_name": Unsupported(_JOINTS_ALONE, _only("gripper")),
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
    "encoder_queue_maxsize": Unsupported(
        "frames that wait to be encoded are limited by their bytes. Leave it out.", _only(30)
    ),
    "encoder_threads": Unsupported("an encoder chooses its number of threads. Leave it out."),
    "rgb_encoder.pix_fmt": Unsupported(_VIDEO, _only("yuv420p")),
    "rgb_encoder.g": Unsupported(_VIDEO, _only(2)),
    "rgb_encoder.crf": Unsupported(_VIDEO, _only(30)),
    "rgb_encoder.preset": Unsupported(_VIDEO, _only(12)),
    "rgb_encoder.fast_decode": Unsupported(_VIDEO, _only(0)),
    "rgb_encoder.video_backend": Unsupported(_VIDEO, _only("pyav")),
    "rgb_encoder.extra_options": Unsupported(_VIDEO, _is_off_or_empty),
    "depth_encoder": Unsupported("depth cameras are not recorded.", _anything),
    "no_stamp": Unsupported("the name is kept as it is given.", _anything),
}
CORRECTIONS_DATASET = {
    **RECORDED_DATASET,
    "reset_time_s": Unsupported(
        "the next episode begins at once. Press space to pause, and again to go on.", _only(0)
    ),
}
STRATEGY = {
    "record_autonomous": Unsupported(
        "whole episodes are recorded, and each frame is marked; `smolact train --dataset.corrections_weight=only` leaves the policy's "
        "frames out.",
        _only(True),
    ),
    "smooth_handover": Unsupported("a person takes over without a jump, always.", _only(True)),
    "smooth_leader_to_follower_handover": Unsupported(_EPISODIC),
    "reset_to_initial_position": Unsupported(_EPISODIC),
    "input_device": Unsupported(_TAKES_OVER, _only("keyboard")),
    "keyboard": Unsupported("tab takes over and gives back, space pauses.", _is_off_or_empty),
    "pedal": Unsupported(_TAKES_OVER, _is_off_or_empty),
    "ring_buffer_seconds": Unsupported(_HIGHLIGHT),
    "ring_buffer_max_memory_mb": Unsupported(_HIGHLIGHT),
    "save_key": Unsupported(_HIGHLIGHT),
    "push_key": Unsupported(_HIGHLIGHT),
    "upload_every_n_episodes": Unsupported(_NOT_UPLOADED, _anything),
    "target_video_file_size_mb": Unsupported("every episode has its own files.", _anything),
}
STRATEGIES = {
    "episodic": _EPISODIC,
    "highlight": _HIGHLIGHT,
    "sentry": "--record-to=FOLDER keeps what the policy drives, and `smolact push` publishes it.",
}
INFERENCE = {
    "queue_threshold": Unsupported(
        "give --inference.refill, the share of a chunk that is left when the next one is asked for."
    ),
    "rtc.prefix_attention_schedule": Unsupported("give --inference.schedule=exp, linear, ones or zeros."),
    "rtc.execution_horizon": Unsupported("all actions that are left guide the next chunk. Leave it out."),
    "rtc.enabled": Unsupported("choose with --inference.type.", _only(True)),
    "rtc.debug": Unsupported("nothing is kept of single steps. Leave it out."),
    "rtc.debug_maxlen": Unsupported("nothing is kept of single steps.", _anything),
}
RTC_CONFIG = {
    "rtc_config": Unsupported(
        "real-time chunking is chosen by `smolact rollout --inference.type=rtc`. Leave it out."
    )
}
TELEOPERATE = _display("nothing is displayed while driving by hand; leave it out.")
ROLLOUT = {
    **RECORD,
    **_display(
        "nothing is displayed here; `smolact record --policy.path=CHECKPOINT --display_data=true` shows what it records."
    ),
    "device": Unsupported("give --policy.device."),
    "policy.type": Unsupported("a checkpoint says its type. Give --policy.path=CHECKPOINT alone."),
    "policy.discover_packages_path": Unsupported(
        "an installed plugin is found by its entry point. Leave it out."
    ),
    "return_to_initial_position": Unsupported(
        "the robot is let go of where it is. Leave it out.", _only(False)
    ),
    "use_torch_compile": Unsupported(_UNCOMPILED),
    "torch_compile_backend": Unsupported(_UNCOMPILED, _only("inductor")),
    "torch_compile_mode": Unsupported(_UNCOMPILED, _only("default")),
    "compile_warmup_inferences": Unsupported(_UNCOMPILED, _only(2)),
}
