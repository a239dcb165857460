"""Write a dataset as an HTML page: videos, plots with a shared cursor, tasks and the list of episodes.

The page needs no network; its videos are embedded, or in a folder next to it.
"""

from __future__ import annotations

import re
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from smolact import durable, pages
from smolact.datasets.faults import Progress, no_progress
from smolact.datasets.format import DEFAULT_FEATURES, Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.remux import Joiner, PacketIndex
from smolact.datasets.sources import Source
from smolact.datasets.video import Image, VideoWriter
from smolact.errors import ConfigError, DatasetError

PAGE, VIDEO_FOLDER = "index.html", "films"
MAX_MB = 100
MAX_LINES = 8  # per plot
PLOTTED_DTYPES = re.compile(r"(float|int|uint)\d+|bool")
BROWSER_DECODERS = {"h264", "av1", "libdav1d", "libaom-av1", "vp9", "libvpx-vp9"}
"""PyAV's decoders of codecs that browsers play."""
BROWSER_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}
KEYFRAME_INTERVAL, CRF = 12, 23


def write_page(
    root: str | Path,
    output: str | Path,
    episodes: Sequence[int] | None = None,
    most_mb: float = MAX_MB,
    progress: Progress = no_progress,
) -> Path:
    """Write the dataset in folder `root` as an HTML page, and return its path.

    Args:
        root: the dataset, of any version.
        output: a .html file with everything embedded, or a folder for `index.html` and the videos.
        episodes: the episodes to show; all when None.
        most_mb: the size limit of the page in MB, without separate videos.

    Raises:
        ConfigError: the dataset lacks an episode, or the page would be too large.
        NotFoundError: there is no such dataset.
        DatasetError: the dataset is damaged.
        WriteError: the disk is full or refused.
    """
    source, output = Source(root, locked=True), Path(output)
    chosen = list(range(source.meta.total_episodes)) if episodes is None else list(episodes)
    outside = [number for number in chosen if not 0 <= number < source.meta.total_episodes]
    if outside or not chosen:
        raise ConfigError(
            f"{source.meta.root} has {source.meta.total_episodes} episodes, numbered from 0; "
            + (f"episode {outside[0]} is asked for." if outside else "none is chosen.")
        )
    embedded = output.suffix == ".html"
    films, signals = BrowserVideos(source), signal_names(source.meta)
    descriptions: list[dict[str, Any]] = []
    videos: dict[str, str] = {}
    size = 0
    for done, number in enumerate(chosen):
        progress("episodes", done, len(chosen))
        episode = describe_episode(source, number, list(signals))
        size += len(episode["numbers"])
        for camera, key in enumerate(source.meta.color_keys):
            video = films.encode_episode(key, number)
            name = f"episode_{number:06d}_{camera}"
            if embedded:
                videos[name] = b64encode(video).decode("ascii")
                size += len(videos[name])
            else:
                durable.write_bytes(output / VIDEO_FOLDER / f"{name}.mp4", video)
            episode["films"].append(name if embedded else f"{VIDEO_FOLDER}/{name}.mp4")
        descriptions.append(episode)
        if size > most_mb * 1e6:
            raise ConfigError(_too_large(most_mb, done, chosen, embedded))
    progress("episodes", len(chosen), len(chosen))
    path = output if embedded else output / PAGE
    durable.write_text(path, page(source.meta, descriptions, signals, videos))
    return path


def _too_large(most_mb: float, done: int, chosen: Sequence[int], embedded: bool) -> str:
    advice = (
        f"Choose fewer (--episodes={chosen[0]}:{chosen[0] + done})" if done else "Raise the limit (--most_mb)"
    )
    alternative = (
        ", or give a folder (--output=FOLDER): films lie beside the page then, and don't count"
        if embedded
        else ""
    )
    return (
        f"{done + 1} of {len(chosen)} episodes make the page larger than {most_mb:g} MB, where browsers get slow. "
        f"{advice}{alternative}."
    )


def page(
    meta: LeRobotDatasetMetadata,
    episodes: Sequence[dict[str, Any]],
    signals: dict[str, list[str]],
    videos: Mapping[str, str],
) -> str:
    """The HTML text of the page; `videos` are those that are embedded, name to base64."""
    data = {
        "fps": meta.fps,
        "cameras": [key.removeprefix("observation.images.") for key in meta.color_keys],
        "plots": plots(signals),
        "columns": sum(map(len, signals.values())),
        "episodes": episodes,
    }
    robot = f" · {meta.robot_type}" if meta.robot_type else ""
    subtitle = (
        f"{len(episodes)} of {meta.total_episodes} episodes · {meta.total_frames:,} frames at {meta.fps:g} a second"
        f" · {meta.codebase_version}{robot}"
    )
    return pages.render(
        "dataset.html.jinja", title=meta.root.resolve().name, subtitle=subtitle, videos=videos, data=data
    )


def describe_episode(source: Source, number: int, signals: Sequence[str]) -> dict[str, Any]:
    """The page's data of an episode, with float32 numbers by column in base64.

    Raises:
        DatasetError: the episode's table is damaged.
    """
    meta, path, length = source.meta, source.data_file(number), source.table(number).num_rows
    columns = [source.values(name, number).reshape(length, -1) for name in signals]
    joined = np.concatenate(
        [np.empty((length, 0), dtype=np.float32), *columns], axis=1, dtype=np.float32, casting="unsafe"
    )
    numbers = np.ascontiguousarray(joined.T, dtype="<f4")
    tasks = source.values("task_index", number).reshape(-1)
    begins = np.flatnonzero(np.diff(tasks, prepend=tasks[0] - 1))
    unknown = set(tasks.tolist()) - set(meta.tasks)
    if unknown:
        raise DatasetError(
            f"{path}: task_index {min(unknown)} in episode {number} is none of the dataset's {len(meta.tasks)} tasks. "
            f"See what is wrong: smolact dataset check --dataset.root={meta.root}"
        )
    return {
        "index": number,
        "length": length,
        "tasks": [[int(begin), meta.tasks[int(tasks[begin])]] for begin in begins],
        "numbers": b64encode(numbers.tobytes()).decode("ascii"),
        "films": [],
    }


def signal_names(meta: LeRobotDatasetMetadata) -> dict[str, list[str]]:
    """The features to plot, with their dimension names."""
    return {
        name: dimension_names(feature)
        for name, feature in meta.features.items()
        if name not in DEFAULT_FEATURES and not feature.is_image and PLOTTED_DTYPES.fullmatch(feature.dtype)
    }


def dimension_names(feature: Feature) -> list[str]:
    """The name of each dimension of a feature; "" if unnamed."""
    return feature.dimension_names or [""] * int(np.prod(feature.shape, dtype=np.int64))


def plots(signals: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Group numbers into plots by shared name (a joint's state and action), otherwise by feature.

    Each plot has a `title` and `lines`, pairs of a label and a column of the numbers.
    """
    columns = [
        (feature, name, column)
        for column, (feature, name) in enumerate(
            (feature, name) for feature, names in signals.items() for name in names
        )
    ]
    owners: dict[str, set[str]] = {}
    for feature, name, _ in columns:
        owners.setdefault(name, set()).add(feature)
    shared = {name for name, features in owners.items() if name and len(features) > 1}
    plots: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for feature, name, column in columns:
        if name in shared:
            plots.setdefault(("name", name), []).append((feature.removeprefix("observation."), column))
        else:
            lines = plots.setdefault(("feature", feature), [])
            scalar = len(signals[feature]) == 1
            lines.append((name or (feature if scalar else str(len(lines))), column))
    return [
        {"title": title, "joint": kind == "name", "lines": lines[first : first + MAX_LINES]}
        for (kind, title), lines in plots.items()
        for first in range(0, len(lines), MAX_LINES)
    ]


class BrowserVideos:
    """The episodes of a dataset as browser videos; each video file's index is read once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._indices: dict[Path, PacketIndex] = {}

    def encode_episode(self, key: str, episode: int) -> bytes:
        """An episode of camera `key` as mp4; frame i is shown from i/fps to (i + 1)/fps.

        Raises:
            DatasetError: the images can't be decoded, or are not as many as the rows.
            ConfigError: encoding is needed, and this build of FFmpeg has no encoder for browsers.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            if not self._remux(key, episode, path):
                self._encode(key, episode, path)
            return path.read_bytes()

    def _remux(self, key: str, episode: int, path: Path) -> bool:
        if self._source.meta.features[key].dtype != "video":
            return False
        cut = self._source.cut(key, episode)
        if cut.path not in self._indices:
            self._indices[cut.path] = PacketIndex(cut.path)
        index = self._indices[cut.path]
        decoder, _, _, pixels, _ = index.codec
        packets = index.packets(cut)
        if decoder not in BROWSER_DECODERS or pixels not in BROWSER_PIXEL_FORMATS or packets is None:
            return False
        joiner = Joiner(path, self._source.meta.fps)
        try:
            joiner.add(index, *packets)
        finally:
            joiner.close()
        return True

    def _encode(self, key: str, episode: int, path: Path) -> None:
        images = map(pad_to_even, self._source.images(key, episode))
        first = next(images)
        height, width, _ = first.shape
        codec = browser_encoder()
        with VideoWriter(
            path, self._source.meta.fps, width, height, codec, g=KEYFRAME_INTERVAL, crf=CRF
        ) as writer:
            for image in chain([first], images):
                writer.write(image)


def browser_encoder() -> str:
    """The encoder for browser videos: H.264, which every browser plays, or else AV1.

    Raises:
        ConfigError: this build of FFmpeg has neither.
    """
    for name in ("libx264", "h264", "libsvtav1"):
        if name in av.codecs_available:
            return name
    raise ConfigError(
        "The pictures must be encoded for the browser, and this build of FFmpeg has no encoder for it (libx264, "
        "libsvtav1). Install PyAV from its wheels: pip install --force-reinstall av"
    )


def pad_to_even(image: Image) -> Image:
    """An image (H, W, 3), padded to an even height and width, as video requires."""
    height, width, _ = image.shape
    if height % 2 == 0 and width % 2 == 0:
        return image
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
