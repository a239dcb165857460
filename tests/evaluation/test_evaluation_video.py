from __future__ import annotations

import av
import numpy as np
import pytest

from smolact.errors import VideoError
from smolact.evaluation.video import write_video


def test_a_video_shows_its_frames_in_order_even_with_odd_sides(tmp_path):
    frames = [np.full((33, 47, 3), level, np.uint8) for level in (20, 120, 220)]
    path = tmp_path / "new" / "video.mp4"
    write_video(path, frames, 10)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (48, 34)
        shown = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
    assert shown == pytest.approx([20, 120, 220], abs=4)
    assert [entry.name for entry in path.parent.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize("frames", [[], [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)]])
def test_frames_that_make_no_video_are_refused(tmp_path, frames):
    with pytest.raises(VideoError, match="pictures of one size"):
        write_video(tmp_path / "video.mp4", frames, 10)
