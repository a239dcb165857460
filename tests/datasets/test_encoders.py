"""Choosing an encoder, with the hardware that this machine has or lacks."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from smolact.datasets import encoders
from smolact.datasets.encoders import (
    ENCODERS,
    check_encoder,
    choose_encoder,
    encoder_options,
    unavailable_reason,
)
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.video import VideoReader, VideoWriter
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError

SIZE = [(64, 96)]


def lacking() -> list[str]:
    return [name for name, encoder in ENCODERS.items() if encoder.device and unavailable_reason(name, 96, 64)]


@pytest.mark.parametrize("codec", [name for name, encoder in ENCODERS.items() if not encoder.device])
def test_what_a_program_writes_is_read_back_in_order(tmp_path: Path, codec: str) -> None:
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * 30 + np.zeros((7, 64, 96, 3), np.uint8)
    with VideoWriter(tmp_path / "a.mp4", 10, 96, 64, codec) as writer:
        for image in images:
            writer.write(image)
    reader = VideoReader(tmp_path / "a.mp4")
    assert len(reader) == 7
    assert np.abs(reader.frames([6, 0, 3]).astype(int) - images[[6, 0, 3]]).max() <= 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == ENCODERS[codec].format
        assert stream.codec_context.pix_fmt == "yuv420p"
        times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    assert times == sorted(times)


def test_hardware_that_is_not_there_is_an_error_that_lists_what_is() -> None:
    missing = lacking()
    if not missing:
        pytest.skip("this machine has them all")
    with pytest.raises(ConfigError, match="Here are: libsvtav1, h264, libx264, hevc") as caught:
        check_encoder(missing[0], 96, 64)
    assert missing[0] in str(caught.value)
    assert "no such encoder" in str(caught.value) or "it needs" in str(caught.value)


def test_auto_takes_hardware_that_opens_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # An entry that says it is hardware and that any machine opens: the choice is made by opening it.
    monkeypatch.setitem(encoders.ENCODERS, "libx264", ENCODERS["libx264"]._replace(device="a test"))
    with caplog.at_level(logging.INFO):
        assert choose_encoder("auto", SIZE) == "libx264"
        assert choose_encoder("auto", SIZE, ["h264"]) == "libx264"
    assert "uses libx264" in caplog.text


def test_auto_without_hardware_takes_a_program_of_the_format_that_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    if len(lacking()) < sum(bool(encoder.device) for encoder in ENCODERS.values()):
        pytest.skip("this machine has hardware that encodes")
    with caplog.at_level(logging.INFO):
        assert choose_encoder("auto", SIZE) == "libsvtav1"
        assert choose_encoder("auto", SIZE, ["hevc"]) == "hevc"
    assert "none of h264_videotoolbox" in caplog.text and "opens here" in caplog.text


def test_a_dataset_keeps_one_format() -> None:
    assert choose_encoder(None, SIZE, ["h264"]) == "h264"
    assert choose_encoder("libx264", SIZE, ["h264"]) == "libx264"
    with pytest.raises(ConfigError, match=r"are h264, .*'libsvtav1' writes av1.*--dataset.vcodec=h264"):
        choose_encoder("libsvtav1", SIZE, ["h264"])
    with pytest.raises(ConfigError, match=r"are vp9, .*nothing here"):
        choose_encoder(None, SIZE, ["vp9"])
    with pytest.raises(ConfigError, match="are av1 and h264, "):
        choose_encoder(None, SIZE, ["h264", "av1"])


def test_quality_is_told_in_each_encoders_own_scale() -> None:
    assert encoder_options("libsvtav1", 2, 30) == {"g": "2", "crf": "30", "preset": "12"}
    assert encoder_options("h264", 2, 30) == {"g": "2", "crf": "30", "bf": "0"}
    assert encoder_options("h264_nvenc", 2, 30) == {"g": "2", "rc": "constqp", "qp": "30", "bf": "0"}
    assert encoder_options("av1_nvenc", 2, 30)["qp"] == "120"
    assert encoder_options("hevc_qsv", 2, 30)["global_quality"] == "30"
    assert encoder_options("h264_videotoolbox", 2, 30)["global_quality"] == str(40 * 118)
    assert encoder_options("h264_videotoolbox", 2, 60)["global_quality"] == "118"


def test_a_dataset_recorded_with_auto_says_what_was_written(tmp_path: Path) -> None:
    features = {"observation.images.top": {"dtype": "video", "shape": (64, 96, 3), "names": None}}
    with DatasetWriter.create(tmp_path / "d", fps=10, features=features, video_codec="auto") as writer:
        for _ in range(3):
            writer.add_frame({"observation.images.top": np.zeros((64, 96, 3), np.uint8)}, "Look around.")
        writer.save_episode()
    path = next((tmp_path / "d").rglob("*.mp4"))
    with av.open(str(path)) as container:
        written = container.streams.video[0].codec_context.codec.canonical_name
    info = LeRobotDatasetMetadata(tmp_path / "d").features["observation.images.top"].info
    assert info["video.codec"] == written
