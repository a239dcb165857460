"""A dataset as a page: what is in it, what can't be, and what a real browser makes of it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from smolact.datasets.format import Feature
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.sources import Source
from smolact.datasets.video import VideoReader
from smolact.datasets.viz import BrowserVideos, dimension_names, pad_to_even, plots, write_page
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError
from tests.browser import CHROMIUM, chromium
from tests.datasets import make

EVIL = "Pick </script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & place"
JOINTS = ["pan.pos", "</script><b>lift"]
RED = """(() => { const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
  context.drawImage(document.querySelector('video'), 0, 0); return context.getImageData(20, 20, 1, 1).data[0] })()"""
CAMERAS = ("observation.images.top", "observation.images.wrist")


def arm(root: Path, lengths: tuple[int, ...] = (12, 8), dtype: str = "image") -> Path:
    """Two joints that state and action share, two tasks in the first episode, one of them hostile."""
    features: dict[str, Any] = {
        **{name: {"dtype": dtype, "shape": (32, 48, 3)} for name in CAMERAS},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": JOINTS},
        "action": {"dtype": "float32", "shape": (2,), "names": JOINTS},
        "next.reward": {"dtype": "float32", "shape": (1,)},
    }
    with DatasetWriter.create(root, fps=make.FPS, features=features) as writer:
        for episode, length in enumerate(lengths):
            for number in range(length):
                frame = {
                    **{name: make.image(episode, number, place) for place, name in enumerate(CAMERAS)},
                    "observation.state": np.array([number, -number], dtype=np.float32),
                    "action": np.array([number + 1, 100 * episode], dtype=np.float32),
                    "next.reward": np.array([0], dtype=np.float32),
                }
                writer.add_frame(frame, task=EVIL if number < 5 else make.TASKS[0])
            writer.save_episode()
    return root


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found
    return dict(json.loads(found[1]))


def test_the_page_holds_numbers_tasks_and_films(tmp_path: Path) -> None:
    page = write_page(arm(tmp_path / "arm"), tmp_path / "arm.html")
    data = data_of(page)
    first = data["episodes"][0]
    assert [each["length"] for each in data["episodes"]] == [12, 8]
    assert first["tasks"] == [[0, EVIL], [5, make.TASKS[0]]]
    numbers = np.frombuffer(base64.b64decode(first["numbers"]), dtype="<f4").reshape(data["columns"], 12)
    assert numbers[0].tolist() == list(range(12)) and numbers[2].tolist() == list(range(1, 13))
    for name in first["films"]:
        found = re.search(rf'id="{name}">([^<]*)<', page.read_text())
        assert found and base64.b64decode(found[1])[4:8] == b"ftyp"


def test_no_text_of_a_dataset_becomes_html(tmp_path: Path) -> None:
    text = write_page(arm(tmp_path / "<i>arm"), tmp_path / "arm.html").read_text()
    assert "<script>window.hacked" not in text and "<img" not in text and "<b>lift" not in text
    assert "<i>arm" not in text and "&lt;i&gt;arm" in text


def test_the_page_names_no_other_place(tmp_path: Path) -> None:
    text = write_page(arm(tmp_path / "arm"), tmp_path / "arm.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name of the SVG elements; nothing is fetched there
    assert "default-src 'none'" in text


def test_a_folder_has_the_films_beside_the_page(tmp_path: Path) -> None:
    page = write_page(arm(tmp_path / "arm"), tmp_path / "out", episodes=[1])
    assert page == tmp_path / "out/index.html"
    (episode,) = data_of(page)["episodes"]
    assert episode["index"] == 1 and len(episode["films"]) == 2
    for film in episode["films"]:
        assert len(VideoReader(tmp_path / "out" / film)) == 8


def test_films_of_h264_are_copied_frame_for_frame(tmp_path: Path) -> None:
    root = make.write(tmp_path / "set", video_codec="h264")
    films, dataset = BrowserVideos(Source(root)), LeRobotDataset(root, return_uint8=True)
    start = 0
    for episode, length in enumerate((7, 4, 5)):
        film = tmp_path / f"{episode}.mp4"
        film.write_bytes(films.encode_episode(CAMERAS[0], episode))
        shown = VideoReader(film).frames(range(length))
        stored = np.stack([dataset[start + number][CAMERAS[0]].numpy() for number in range(length)])
        assert (shown.transpose(0, 3, 1, 2) == stored).all()
        start += length


def test_films_of_images_are_encoded_for_browsers(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(
        BrowserVideos(Source(make.write(tmp_path / "set", dtype="image"))).encode_episode(CAMERAS[0], 0)
    )
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p" and stream.frames == 7
        assert float(stream.average_rate) == make.FPS
    shown = VideoReader(film).frames([6])[0].astype(int)
    assert abs(shown - make.image(0, 6)).mean() < 12


def test_odd_images_get_even() -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    padded = pad_to_even(picture)
    assert (
        padded.shape == (6, 8, 3)
        and (padded[:5, :7] == picture).all()
        and (padded[5, :7] == picture[4]).all()
    )


def test_what_has_one_name_is_drawn_together() -> None:
    drawn = plots({"observation.state": ["pan", "lift"], "action": ["pan", "grip"], "force": [""] * 9})
    assert drawn[0] == {"title": "pan", "joint": True, "lines": [("state", 0), ("action", 2)]}
    assert [(each["title"], [label for label, _ in each["lines"]]) for each in drawn[1:]] == [
        ("observation.state", ["lift"]),
        ("action", ["grip"]),
        ("force", [str(number) for number in range(8)]),
        ("force", ["8"]),
    ]
    assert plots({"next.reward": [""]})[0]["lines"] == [("next.reward", 0)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x", "y"], ["x", "y"]),
        ({"motors": ["x", "y"]}, ["x", "y"]),
        (None, ["", ""]),
        (["x"], ["", ""]),
        (["x", "x"], ["", ""]),
    ],
)
def test_names_of_numbers_are_found_in_every_form(names: Any, expected: list[str]) -> None:
    assert dimension_names(Feature("float32", (2,), names)) == expected


def test_a_page_that_would_be_too_large_says_what_to_do(tmp_path: Path) -> None:
    root = arm(tmp_path / "arm")
    with pytest.raises(ConfigError, match=r"2 of 2 episodes .*--episodes=0:1\).*--output=FOLDER"):
        write_page(root, tmp_path / "arm.html", most_mb=0.007)
    assert not (tmp_path / "arm.html").exists()
    with pytest.raises(ConfigError, match=r"2 episodes, numbered from 0; episode 2"):
        write_page(root, tmp_path / "arm.html", episodes=[2])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("name", ["arm.html", "folder"])
def test_a_browser_plays_seeks_and_searches(tmp_path: Path, name: str) -> None:
    page = write_page(arm(tmp_path / "arm", (12, 8)), tmp_path / name)
    with chromium(tmp_path / "profile") as browser:
        browser.open(page)
        browser.until("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        assert browser.run("document.querySelectorAll('video').length") == 2
        assert browser.run("document.querySelector('video').videoWidth") == 48
        assert browser.run("document.getElementById('task').textContent") == EVIL

        browser.run("document.getElementById('scrub').value = 6, document.getElementById('scrub').oninput()")
        assert browser.run("document.getElementById('task').textContent") == make.TASKS[0]
        assert browser.run("document.querySelector('.plot i').style.left") == f"{6.5 / 12 * 100:.4f}%"
        assert browser.run("document.querySelector('.line').textContent") == "All state"
        browser.until(
            "[...document.querySelectorAll('video')].every(video => Math.abs(video.currentTime - .65) < .01"
            " && !video.seeking && video.readyState >= 2)"
        )

        if name == "arm.html":  # a browser lets no page look into the pixels of another file
            assert abs(browser.run(RED) - int(make.image(0, 6)[20, 20, 0])) < 6

        browser.run("document.getElementById('play').click()")
        browser.until("document.getElementById('scrub').value === '11'")
        browser.until("document.getElementById('play').textContent === 'Play'")

        browser.run(
            "document.getElementById('search').value = '1', document.getElementById('search').oninput()"
        )
        assert browser.run("document.querySelectorAll('#list button:not([hidden])').length") == 1
        browser.run("document.querySelector('#list button:not([hidden])').click()")
        assert browser.run("document.getElementById('where').textContent").startswith("0 / 7")

        browser.open(page, width=390, height=844)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.run("window.hacked === undefined")
        assert browser.complaints == []
        assert all(address.startswith(("file:", "blob:", "data:")) for address in browser.requests)
