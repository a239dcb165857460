"""Video encoders: software that every machine has, and hardware that some have."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av

from smolact.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

AUTO = "auto"
FLAG = "--dataset.vcodec"


Options = dict[str, str]


class Encoder(NamedTuple):
    """An encoder and its equivalents of LeRobot's `crf` and `preset`."""

    format: str
    """The codec that it writes, as named in `info.json`."""
    quality: Callable[[int], Options]
    """FFmpeg options for a `crf`: lower is better, LeRobot uses 30."""
    preset: int | None = None
    """LeRobot's speed preset; None for the encoder's default."""
    pix_fmt: str = "yuv420p"
    """The pixel format of its input; the file is `yuv420p` in either case."""
    device: str | None = None
    """The required hardware."""


def _software(crf: int) -> Options:
    return {"crf": str(crf)}


def _nvenc(qp: int) -> Options:
    return {"rc": "constqp", "qp": str(qp)}


def _quick_sync(crf: int) -> Options:
    return {"global_quality": str(crf)}


def _video_toolbox(crf: int) -> Options:
    """A quality from 1 to 100 (higher is better) in FFmpeg's quantizer units, 118 per step."""
    return {"flags": "+qscale", "global_quality": str(118 * max(1, 100 - 2 * crf))}


_NVIDIA, _INTEL, _APPLE = "an NVIDIA GPU with NVENC", "an Intel GPU with Quick Sync", "a Mac"

ENCODERS = {
    "libsvtav1": Encoder("av1", _software, preset=12),
    "h264": Encoder("h264", _software),
    "libx264": Encoder("h264", _software),
    "hevc": Encoder("hevc", lambda crf: {**_software(crf), "x265-params": "log-level=none"}),
    "h264_videotoolbox": Encoder("h264", _video_toolbox, device=_APPLE),
    "h264_nvenc": Encoder("h264", _nvenc, device=_NVIDIA),
    "h264_qsv": Encoder("h264", _quick_sync, pix_fmt="nv12", device=_INTEL),
    "hevc_videotoolbox": Encoder("hevc", _video_toolbox, device=_APPLE),
    "hevc_nvenc": Encoder("hevc", _nvenc, device=_NVIDIA),
    "hevc_qsv": Encoder("hevc", _quick_sync, pix_fmt="nv12", device=_INTEL),
    "av1_nvenc": Encoder(
        "av1", lambda crf: _nvenc(4 * crf), device=_NVIDIA
    ),  # its quantizer ranges to 255, AV1's crf to 63
}
"""Software encoders, then hardware ones in the order in which `auto` tries them."""


def encoder_options(codec: str, g: int, crf: int, preset: int | str | None = None) -> Options:
    """FFmpeg options of an encoder: a key frame every `g` frames, quality `crf`, speed `preset` (None for LeRobot's)."""
    encoder = ENCODERS[codec]
    options = {"g": str(g), **encoder.quality(crf)}
    if encoder.format != "av1":
        options["bf"] = "0"  # no B-frames: storage order is display order, so a frame is found without a scan
    if preset is None:
        preset = encoder.preset
    return options if preset is None else {**options, "preset": str(preset)}


def choose_encoder(
    requested: str | None, sizes: Collection[tuple[int, int]], formats: Collection[str] = ()
) -> str:
    """Choose the encoder to write videos with.

    Args:
        requested: a name in `ENCODERS`; `auto` for the first hardware encoder that opens, else software; None for the first
            software encoder.
        sizes: (height, width) of every camera.
        formats: codecs of the existing videos, which the new ones must match; empty if there are none.

    Raises:
        ConfigError: the encoder can't encode these sizes on this machine, or writes another format.
    """
    candidates = [
        name for name, encoder in ENCODERS.items() if not formats or {encoder.format} == set(formats)
    ]
    if not candidates:
        raise ConfigError(
            f"The videos that are there are {' and '.join(sorted(formats))}, a dataset says one codec of all, and nothing here "
            "writes that. Go on with the tool that made them, or record into another folder."
        )
    if requested in ENCODERS and requested not in candidates:
        raise ConfigError(
            f"The videos that are there are {' and '.join(formats)}, a dataset says one codec of all, and '{requested}' writes "
            f"{ENCODERS[requested].format}. Go on with {FLAG}={candidates[0]}, or record into another folder."
        )
    codec = requested or candidates[0]
    if requested == AUTO:
        tried = [name for name in candidates if ENCODERS[name].device]
        codec = next((name for name in tried if _opens(name, sizes)), candidates[0])
        note = "" if ENCODERS[codec].device else f": none of {', '.join(tried)} opens here"
        logger.info("%s=auto uses %s%s.", FLAG, codec, note)
    for height, width in sizes:
        check_encoder(codec, width, height)
    return codec


def check_encoder(codec: str, width: int, height: int) -> None:
    """Raise a `ConfigError` unless `codec` can encode frames of this size on this machine; hardware is tested by opening it."""
    if width % 2 or height % 2:
        raise ConfigError(
            f"A video needs an even height and width, found {height} × {width}. Crop or resize the images, or store "
            "them with the dtype 'image'."
        )
    reason = unavailable_reason(codec, width, height)
    if reason is not None:
        available = ", ".join(name for name in ENCODERS if _opens(name, [(height, width)]))
        suggestion = "" if codec in ENCODERS else did_you_mean(codec, ENCODERS)
        raise ConfigError(
            f"The video codec '{codec}' is not available: {reason}. Here are: {available}.{suggestion}"
        )


def _opens(codec: str, sizes: Collection[tuple[int, int]]) -> bool:
    return all(unavailable_reason(codec, width, height) is None for height, width in sizes)


def unavailable_reason(codec: str, width: int, height: int) -> str | None:
    """The reason why `codec` can't encode frames of this size on this machine; None if it can."""
    if codec not in ENCODERS:
        return "it is not one that smolact writes"
    if codec not in av.codecs_available:
        return "this build of FFmpeg has no such encoder"
    device = ENCODERS[codec].device
    if device is None:
        return None
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, ENCODERS[codec].pix_fmt
    context.time_base, context.framerate = Fraction(1, 30), Fraction(30)
    context.options = encoder_options(codec, 2, 30)
    try:
        with quiet_encoder():
            context.open()
    except (av.FFmpegError, OSError) as error:
        return f"it needs {device}, and could not be opened for {width} × {height} ({error.strerror})"
    return None


@contextlib.contextmanager
def quiet_encoder() -> Iterator[None]:
    """Suppress encoder output: SVT-AV1 reads only this variable, when an encoder opens."""
    previous = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = previous if previous is not None else "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["SVT_LOG"]
