"""`smolact dataset …` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolact.cli.dataset import COMMANDS
from smolact.cli.dataset_preview_transforms import PreviewedDataset, read_pictures
from smolact.cli.main import main
from tests.datasets import make

CAMERAS = ("observation.images.top", "observation.images.wrist")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.write(tmp_path_factory.mktemp("data") / "set", dtype="image", cameras=CAMERAS)


def preview(root: Path, *flags: str) -> int:
    return main(["dataset", "preview-transforms", f"--dataset.root={root}", *flags])


def test_dataset_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert main(["dataset"]) == 2
    assert capsys.readouterr().out == shown


def test_an_unknown_command_of_dataset_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "preview-transform"]) == 2
    shown = capsys.readouterr().err
    assert "no command 'dataset preview-transform'. Did you mean 'preview-transforms'?" in shown


def test_the_help_spells_the_default_transforms_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "preview-transforms", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--dataset.image_transforms.max_num_transforms=3" in shown
    assert "{brightness: {weight: 1.0, type: ColorJitter, kwargs: {brightness: [0.8, 1.2]}}" in shown


def test_a_picture_is_drawn_and_its_place_printed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "picture.png"
    flags = (f"--output={output}", "--frames=[0, 9]", "--samples=2")
    tfs = "{b: {type: ColorJitter, kwargs: {brightness: 0.5}}}"
    assert preview(root, *flags, f"--dataset.image_transforms.tfs={tfs}") == 0
    assert capsys.readouterr().out == f"{output}\n"
    first = output.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert preview(root, *flags, f"--dataset.image_transforms.tfs={tfs.replace('0.5', '0.1')}") == 0
    assert output.read_bytes() != first


def test_the_frames_are_those_that_were_asked_for(root: Path) -> None:
    pictures = read_pictures(
        PreviewedDataset(root=str(root)), [0, 9]
    )  # 7 frames, then the third of episode 1
    assert list(pictures) == list(CAMERAS)
    for place, camera in enumerate(CAMERAS):
        for number, (episode, frame) in {0: (0, 0), 9: (1, 2)}.items():
            shown = pictures[camera][number].permute(1, 2, 0).numpy()
            assert (shown == make.image(episode, frame, place)).all()
    spread = read_pictures(PreviewedDataset(root=str(root)), None)
    assert list(spread[CAMERAS[0]]) == [2, 8, 13]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--frames=[16]"], "16 frames, numbered 0 to 15"),
        (["--frames=[-1]"], "--frames has -1"),
        (["--frames=[]"], "names no frame"),
        (["--samples=1"], "--samples=1 is too small"),
        (["--output=picture.jpg"], "must end in .png"),
        (["--dataset.image_transforms.tfs={a: {type: Blur}}"], "the type 'Blur', which is none of"),
        (["--dataset.image_transforms.tfs={a: {tipe: Blur}}"], "Did you mean 'type'?"),
        (["--dataset.image_transforms.enabel=true"], "Did you mean '--dataset.image_transforms.enable'?"),
        (["--dataset.root="], "Which dataset?"),
    ],
)
def test_what_can_not_work_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], part: str
) -> None:
    assert preview(root, *flags) == 2
    assert part in capsys.readouterr().err
