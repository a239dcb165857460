"""Random damage, some hundred times; scripts/torture does it longer."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from smolact.datasets.remux import PacketIndex
from smolact.errors import VideoError
from tests.datasets.fuzz import Bench, watching

SEED = Path(__file__).parent.parent / "parity/data/dataset_v21"


def test_damaged_datasets_are_named_errors_or_datasets(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    results = [bench.run_case(seed) for seed in range(100)]
    assert 10 < sum(result.named for result in results) < 90


# Each was something else than a named error once.
@pytest.mark.parametrize(
    "seed",
    [258, 411, 4014, 10484, 35354, 35738, 38605, 50185, 50641, 52295, 52809, 52896, 57218, 77077, 81395],
)
def test_what_was_found_stays_mended(bench: Bench, seed: int) -> None:
    assert bench.run_case(seed).became in ("a named error", "a dataset, or a list of its faults")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_what_is_outside_is_seen(tmp_path: Path) -> None:
    """That the watch barks: by Python's own open, by PyArrow's, and when something is imported."""
    (tmp_path / "set").mkdir()
    (tmp_path / "outside").write_text("secret")
    for look in (
        lambda: (tmp_path / "outside").read_text(),
        lambda: pq.ParquetFile(tmp_path / "outside"),
        lambda: pq.ParquetFile(str(tmp_path / "set/../outside")),
        lambda: os.system("true"),
        lambda: __import__("this"),
    ):
        with pytest.raises(AssertionError), watching(tmp_path / "set", tmp_path / "made/new"):
            look()


@pytest.mark.skipif(os.name == "nt", reason="needs a limit of memory")
def test_damaged_videos_are_named_errors_or_frames(tmp_path: Path) -> None:
    from tests.datasets.fuzz_video import run_in_child

    cases, named, _ = run_in_child(0, 60, tmp_path)
    assert 20 < named < cases


def test_a_video_of_an_unknown_codec_is_a_named_error(tmp_path: Path) -> None:
    content = next(SEED.rglob("*.mp4")).read_bytes()
    path = tmp_path / "video.mp4"
    path.write_bytes(content.replace(b"av01", b"zz01"))
    with pytest.raises(VideoError, match="no picture that FFmpeg can decode"):
        PacketIndex(path)
