"""The page and the picture that a run leaves, from records of all kinds."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from smolact.errors import WriteError
from smolact.pages import command_and_versions, flat_settings
from smolact.training.curves import drawing, panels, picture
from smolact.training.metrics import Series, downsample, read_metrics, smoothed
from smolact.training.report import figures, write_report
from tests.pages import Page

MEASURED = {"loss": 1.0, "grad_norm": 2.0, "lr": 1e-4, "samples_per_second": 50.0, "data_wait": 0.1}
EVALUATED = {"eval/success_rate": 0.5, "eval/success_low": 0.3, "eval/success_high": 0.7}


def record(run: Path, *lines: Any) -> Path:
    run.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (run / "metrics.jsonl").write_text("".join(text + "\n" for text in texts))
    return run


def test_the_page_stands_alone(tmp_path: Path) -> None:
    run = record(
        tmp_path / "run", *({"step": step, **MEASURED} for step in range(1, 30)), {"step": 29, **EVALUATED}
    )
    text = write_report(
        run, {"steps": 29, "policy": {"type": "smolvla"}}, {"command": "smolact train"}
    ).read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if not link.startswith("#")} == {"metrics.jsonl", "curves.png"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(name in page.ids for name in re.findall(r"url\(#([^)]*)\)", text))
    assert text.count("<svg") == 6
    assert "Complete: 29 steps" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"#[0-9a-f]{6}", text.split("</style>")[1])  # each colour is the page's
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG"


def test_names_and_values_are_text_and_not_markup(tmp_path: Path) -> None:
    run = record(tmp_path / "run", {"step": 1, **MEASURED})
    bad = "<script>alert(1)</script>"
    text = write_report(run, {"job_name": bad, bad: {"a": bad}}, {bad: bad, "command": bad}).read_text()
    Page(text)
    assert "<script" not in text


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, **MEASURED}],
        [{"step": 1, "loss": float("nan"), "lr": float("inf")}],
        [{"step": 1, "loss": 0.0, "grad_norm": 0.0, "lr": 0.0, "samples_per_second": 0.0}],
        [
            {"step": 1, "loss": None, "lr": "fast", "note": [1], "flag": True},
            "[1]",
            "3",
            '{"loss": 1}',
            '{"st',
        ],
        [{"step": 5, **EVALUATED}],
        [{"step": 5, "eval/success_rate": 0.5}],
        [{"step": 5, "validation_loss": 0.5}],
        [{"step": 1, "loss": -1.0}, {"step": 2, "loss": 1e30}],
        [{"step": 1, "unheard_of": 1.0}],
    ],
    ids=str,
)
def test_any_record_makes_a_page(tmp_path: Path, lines: list[Any]) -> None:
    run = record(tmp_path / "run", *lines)
    Page(write_report(run, {}).read_text())
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_a_record_says_that_nothing_was_measured(tmp_path: Path) -> None:
    text = write_report(tmp_path, {"steps": 10}).read_text()
    assert "Nothing was measured" in text
    assert "Stopped after 0 of 10 steps" in text


def test_steps_that_were_done_again_replace_what_was_there(tmp_path: Path) -> None:
    first = [{"step": step, "loss": float(step)} for step in range(1, 7)]
    again = [{"step": step, "loss": 10.0 * step} for step in (4, 5)]
    loss = read_metrics(record(tmp_path, *first, {"step": 6, **EVALUATED}, *again))["loss"]
    assert loss.steps.tolist() == [1, 2, 3, 4, 5]
    assert loss.values.tolist() == [1, 2, 3, 40, 50]
    assert "eval/success_rate" not in read_metrics(tmp_path)


def test_an_evaluation_shares_its_step_with_a_measurement(tmp_path: Path) -> None:
    metrics = read_metrics(record(tmp_path, {"step": 3, **MEASURED}, {"step": 3, **EVALUATED}))
    assert metrics["loss"].last == 1.0
    assert metrics["eval/success_rate"].last == 0.5


def test_what_is_not_finite_is_a_gap() -> None:
    values = np.array([1.0, np.nan, 1.0, np.nan])
    assert smoothed(values).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert np.isnan(smoothed(np.array([np.nan, np.nan]))).all()
    assert Series(np.arange(4.0), values).last == 1.0
    assert downsample(Series(np.arange(4.0), values), most=2).values.tolist() == [1.0, 1.0]


def test_smoothing_keeps_a_line_where_it_is() -> None:
    rising = np.arange(1000.0)
    middle = slice(200, 800)
    np.testing.assert_allclose(smoothed(rising)[middle], rising[middle], rtol=1e-3)
    noise = np.random.default_rng(0).normal(size=1000)
    assert smoothed(noise).std() < 0.4


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1 / step} for step in range(1, 20_001)]
    metrics = read_metrics(record(tmp_path, *lines))
    assert len(downsample(metrics["loss"]).steps) == 1000
    assert len(drawing(panels(metrics)[0], metrics, "p")) < 100_000


def test_the_figures_are_those_of_the_end(tmp_path: Path) -> None:
    lines = [
        {"step": 1, **MEASURED, "validation_loss": 0.5},
        {"step": 2, **EVALUATED},
        {"step": 3, **MEASURED, "loss": 0.25, "validation_loss": 0.7, "bad_steps": 2},
        {"step": 4, "loss": float("nan")},
    ]
    assert figures(read_metrics(record(tmp_path, *lines))) == {
        "loss, last": "0.25",
        "validation loss, best": "0.5",
        "success, last (95%: 30% to 70%)": "50%",
        "samples a second, median": "50",
        "waiting for data": "10%",
        "steps that were not finite": "2",
    }


def test_the_newest_films_are_shown_by_relative_links(tmp_path: Path) -> None:
    run = record(tmp_path / "run", {"step": 1, **MEASURED})
    for name in ("step_000010/episode_000_success", "step_000020/episode 1#failure"):
        film = run / "videos" / f"{name}.mp4"
        film.parent.mkdir(parents=True)
        film.touch()
    page = Page(write_report(run, {}).read_text())
    assert [link for link in page.links if link.startswith("videos")] == [
        "videos/step_000020/episode%201%23failure.mp4"
    ]


def test_the_same_record_makes_the_same_files(tmp_path: Path) -> None:
    run = record(tmp_path / "run", {"step": 1, **MEASURED}, {"step": 2, **MEASURED})
    once = [write_report(run, {}).read_bytes(), (run / "curves.png").read_bytes()]
    assert [write_report(run, {}).read_bytes(), (run / "curves.png").read_bytes()] == once


def test_a_full_disk_leaves_the_former_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(tmp_path / "run", {"step": 1, **MEASURED})
    former = write_report(run, {}).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WriteError, match="The disk is full"):
        write_report(run, {"steps": 9})
    assert (run / "report.html").read_bytes() == former


def test_settings_have_the_names_of_flags() -> None:
    nested = {"policy": {"type": "smolvla", "input_features": {}}, "steps": 3}
    assert dict(flat_settings(nested)) == {
        "policy.type": "smolvla",
        "policy.input_features": "{}",
        "steps": "3",
    }


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/smolact", "train", "--rename_map={a: b}"])
    assert command_and_versions()["command"] == "smolact train '--rename_map={a: b}'"
    assert "torch" in command_and_versions()["versions"]


values = st.floats(width=32) | st.none() | st.text(max_size=3)
records = st.lists(
    st.dictionaries(st.sampled_from(["step", *MEASURED, *EVALUATED, "validation_loss"]), values, max_size=5),
    max_size=6,
)


@hypothesis_settings(max_examples=8)
@given(records)
def test_no_record_breaks_the_curves(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    metrics = read_metrics(record(tmp_path_factory.mktemp("run"), *lines))
    assert Image.open(io.BytesIO(picture(metrics))).size[0] == 1200
