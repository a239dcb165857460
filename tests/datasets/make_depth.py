"""Depth cameras as LeRobot stores them, put into the small datasets of `make`: 12-bit grey HEVC, or 16-bit images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from smolact.datasets.metadata import LeRobotDatasetMetadata
from tests.datasets.make import FPS

COLOR, DEPTH = "observation.images.top", "observation.images.depth"
HEIGHT, WIDTH = 64, 96  # libx265 of PyAV 18 writes beyond its memory for pictures much smaller
QUANTIZED = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5, "video.use_log": True}
STATISTICS = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")


def distances(episode: int, number: int) -> NDArray[np.uint16]:
    """Each frame another, of numbers that need all of their 12 bits."""
    steps = np.arange(HEIGHT * WIDTH, dtype=np.int64).reshape(HEIGHT, WIDTH)
    return ((steps * 37 + 911 * episode + 13 * number) % 4096).astype(np.uint16)


def add_video(
    root: Path, marked: dict[str, Any] | None = None, shape: tuple[int, ...] = (HEIGHT, WIDTH, 1), g: int = 2
) -> Path:
    """Give the dataset in `root` a depth camera stored as video, marked as `marked` (what is added to its description)."""
    meta = LeRobotDatasetMetadata(root)
    by_file: dict[str, list[int]] = {}
    for episode, place in enumerate(meta.episodes.video_path[COLOR]):
        by_file.setdefault(place.replace(COLOR, DEPTH), []).append(episode)
    for place, episodes in by_file.items():
        frames = [
            distances(episode, number)
            for episode in episodes
            for number in range(int(meta.episodes.length[episode]))
        ]
        encode(root / place, frames, g)
    info = {
        "video.codec": "hevc",
        "video.pix_fmt": "gray12le",
        "video.fps": FPS,
        "depth_unit": "mm",
        **QUANTIZED,
    }
    described = {"dtype": "video", "shape": list(shape), "names": None, "info": info}
    for name, value in ({"info": {"is_depth_map": True}} if marked is None else marked).items():
        described[name] = {**described.get(name, {}), **value}
    _describe(root, described)
    for path in (root / "meta/episodes").glob("*/*.parquet"):
        table = pq.read_table(path)
        for name in [name for name in table.column_names if name.startswith(f"videos/{COLOR}/")]:
            table = table.append_column(name.replace(COLOR, DEPTH), table.column(name))
        pq.write_table(_with_statistics(table), path)
    return root


def add_images(root: Path, kind: str = "PNG", described: dict[str, Any] | None = None) -> Path:
    """Give the dataset in `root` a depth camera stored as 16-bit images in its data files."""
    marked = {"info": {"is_depth_map": True, "depth_unit": "mm"}} if described is None else described
    _describe(root, {"dtype": "image", "shape": [HEIGHT, WIDTH, 1], "names": None, **marked})
    for path in (root / "data").glob("*/*.parquet"):
        table = pq.read_table(path)
        rows = zip(table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True)
        images = [{"bytes": encoded(distances(*row), kind), "path": None} for row in rows]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(table.append_column(DEPTH, pa.array(images, type=struct)), path)
    for path in (root / "meta/episodes").glob("*/*.parquet"):
        pq.write_table(_with_statistics(pq.read_table(path)), path)
    return root


def encoded(image: NDArray[Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


def encode(path: Path, frames: list[NDArray[np.uint16]], g: int) -> None:
    """What LeRobot does: HEVC of 12-bit grey without loss, a key frame every `g` frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"g": str(g), "x265-params": f"lossless=1:keyint={g}:log-level=none"}
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx265", FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gray12le"
        for frame in frames:
            container.mux(stream.encode(as_frame(frame)))
        container.mux(stream.encode(None))


def as_frame(distances: NDArray[np.uint16]) -> av.VideoFrame:
    """A frame of 12-bit grey; not every PyAV makes one of an array by itself."""
    frame = av.VideoFrame(WIDTH, HEIGHT, "gray12le")
    plane = frame.planes[0]
    rows = np.zeros((HEIGHT, plane.line_size // 2), dtype="<u2")
    rows[:, :WIDTH] = distances
    plane.update(rows.tobytes())
    return frame


def video_distances(root: Path) -> list[list[NDArray[np.uint16]]]:
    """What is in the depth video of each episode, decoded by hand."""
    meta = LeRobotDatasetMetadata(root)
    found = []
    for episode, place in enumerate(meta.episodes.video_path[DEPTH]):
        with av.open(str(root / place)) as container:
            frames = sorted(container.decode(video=0), key=lambda frame: frame.pts or 0)
            assert {frame.format.name for frame in frames} == {"gray12le"}
            planes = [frame.planes[0] for frame in frames]
            all_of_file = [
                np.frombuffer(bytes(plane), "<u2").reshape(HEIGHT, plane.line_size // 2)[:, :WIDTH]
                for plane in planes
            ]
        first = round(meta.episodes.from_timestamp[DEPTH][episode] * FPS)
        found.append(all_of_file[first : first + int(meta.episodes.length[episode])])
    return found


def image_bytes(root: Path) -> list[bytes]:
    """The encoded depth images, in order."""
    paths = dict.fromkeys(LeRobotDatasetMetadata(root).episodes.data_path)
    return [row["bytes"] for path in paths for row in pq.read_table(root / path)[DEPTH].to_pylist()]


def _describe(root: Path, described: dict[str, Any]) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][DEPTH] = described
    (root / "meta/info.json").write_text(json.dumps(info))
    stats = json.loads((root / "meta/stats.json").read_text())
    stats[DEPTH] = _statistics(sum(1 for _ in range(info["total_frames"])))
    (root / "meta/stats.json").write_text(json.dumps(stats))


def _statistics(count: int) -> dict[str, Any]:
    """In millimetres, as they were recorded: nothing that could be computed from the 12-bit numbers."""
    return (
        {name: [[[500.0 + place]]] for place, name in enumerate(("min", "q01", "q10", "mean", "q50", "std"))}
        | {name: [[[900.0 + place]]] for place, name in enumerate(("q90", "q99", "max"))}
        | {"count": [count]}
    )


def _with_statistics(table: pa.Table) -> pa.Table:
    for name, value in _statistics(0).items():
        column = [[length] if name == "count" else value for length in table["length"].to_pylist()]
        table = table.append_column(f"stats/{DEPTH}/{name}", pa.array(column))
    return table
