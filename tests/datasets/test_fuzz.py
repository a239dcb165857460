"""Random damage, a few hundred times; scripts/torture does it longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolact.datasets.remux import Index
from smolact.errors import VideoError
from tests.datasets.fuzz import SEEDS, run_case


@pytest.mark.parametrize("begin", range(0, 120, 40))
def test_damaged_datasets_are_named_errors_or_datasets(tmp_path: Path, begin: int) -> None:
    for seed in range(begin, begin + 40):
        run_case(seed, tmp_path)


def test_a_video_of_an_unknown_codec_is_a_named_error(tmp_path: Path) -> None:
    content = next(SEEDS[0].rglob("*.mp4")).read_bytes()
    path = tmp_path / "video.mp4"
    path.write_bytes(content.replace(b"av01", b"zz01"))
    with pytest.raises(VideoError, match="no picture that FFmpeg can decode"):
        Index(path)
