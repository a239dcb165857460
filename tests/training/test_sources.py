"""What a run learns from: several datasets mixed by weight, and frames at the ends of episodes left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, FeatureError
from smolact.training import train as training
from smolact.training.sources import MixedDataset, find_sources, training_statistics
from smolact.training.train import train
from tests.training.runs import DATA, DATASET, Recorder, plain_settings, run, settings

V21 = DATA / "dataset_v21"


def write(root: Path, *, camera: str, value: float, dims: int = 6, fps: int = 10, size: int = 32) -> Path:
    """Two episodes of eight frames whose states and actions are `value`."""
    names = [f"joint_{index}" for index in range(dims)]
    features = {
        f"observation.images.{camera}": {
            "dtype": "image",
            "shape": (size, size, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (dims,), "names": names},
        "action": {"dtype": "float32", "shape": (dims,), "names": names},
    }
    with DatasetWriter.create(root, fps=fps, features=features) as writer:
        for _ in range(2):
            for frame in range(8):
                vector = np.full(dims, value, dtype=np.float32) + np.float32(0.01 * frame)
                picture = np.full((size, size, 3), 10 * frame, dtype=np.uint8)
                writer.add_frame(
                    {f"observation.images.{camera}": picture, "observation.state": vector, "action": vector},
                    task=f"do {value:g}",
                )
            writer.save_episode()
    return root


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write(folder / "a", camera="top", value=1.0), write(folder / "b", camera="front", value=5.0)


POLICY = (
    "--policy.type=smolvla",
    "--policy.vlm_model_name=tiny",
    "--policy.init=random",
    "--policy.num_vlm_layers=2",
    "--policy.chunk_size=4",
    "--policy.n_action_steps=4",
    "--policy.device=cpu",
    "--batch_size=2",
    "--num_workers=0",
    "--log_freq=20",
    "--save_freq=0",
    "--report=false",
)


SAME_NAME = '--rename_map={"observation.images.top": "observation.images.camera1", "observation.images.front": "observation.images.camera1"}'


def test_two_datasets_of_one_robot_train_as_a_mixture(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    step = training.train_step

    def watched(run: object, batches: object, stop: bool) -> object:
        def passing() -> object:
            for batch in batches:  # type: ignore[attr-defined]
                seen.update(batch["task"])
                yield batch

        return step(run, passing(), stop)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train_step", watched)
    mix = f'--dataset.mix={{"{two[0]}": 3, "{two[1]}": 1}}'
    recorder = Recorder()
    config = plain_settings(mix, SAME_NAME, *POLICY, "--steps=40", f"--output_dir={tmp_path / 'run'}")
    train(config, listeners=[recorder])
    assert sum(seen.values()) == 80
    assert 10 <= seen["do 5"] <= 30 and seen["do 1"] + seen["do 5"] == 80
    (started,) = recorder.of(type(recorder.events[0]))
    assert f"75% {two[0]}: 2 episodes, 16 frames" in started.facts["dataset"]
    assert "observation.images.camera1 (3, 32, 32)   observation.images.front (3, 32, 32)" in started.features
    assert "joint_0, joint_1" in started.features


def test_statistics_are_those_of_the_mixture(two: tuple[Path, Path]) -> None:
    config = plain_settings(f'--dataset.mix={{"{two[0]}": 3, "{two[1]}": 1}}', SAME_NAME)
    sources = find_sources(config.dataset, config.rename_map)
    found = training_statistics(sources, imagenet=False)
    frames = np.concatenate(
        [np.tile(value + 0.01 * np.arange(8), share) for value, share in ((1.0, 3), (5.0, 1))]
    )
    np.testing.assert_allclose(found["action"]["mean"], frames.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["action"]["std"], frames.std(), rtol=1e-5)
    np.testing.assert_allclose([found["action"]["min"][0], found["action"]["max"][0]], [1.0, 5.07], rtol=1e-6)
    assert set(found) >= {"observation.images.camera1", "observation.state", "action"}
    imagenet = training_statistics(sources, imagenet=True)
    np.testing.assert_allclose(imagenet["observation.images.camera1"]["mean"].ravel(), [0.485, 0.456, 0.406])


def test_versions_mix_and_samples_are_those_of_the_datasets() -> None:
    config = plain_settings(f'--dataset.mix={{"{DATASET}": 1, "{V21}": 1}}')
    sources = find_sources(config.dataset, {})
    datasets = [
        LeRobotDataset(source.section.name, delta_timestamps={"action": [0.0, 0.1]}) for source in sources
    ]
    mixed = MixedDataset(datasets, sources)
    assert len(mixed) == len(datasets[0]) + len(datasets[1])
    picked = mixed.__getitems__([len(mixed) - 1, 0, len(datasets[0]), 3])
    expected = [datasets[1][-1], datasets[0][0], datasets[1][0], datasets[0][3]]
    for one, other in zip(picked, expected, strict=True):
        assert one.keys() <= other.keys() and "action_is_pad" in one
        for key, value in one.items():
            assert (value == other[key]) if isinstance(value, str) else bool((value == other[key]).all())


@pytest.mark.parametrize(
    ("difference", "part"),
    [
        ({"dims": 7}, r"'action' has the shape \(6,\) in .* and \(7,\) in"),
        ({"fps": 20}, "10 frames a second in .*, 20 in"),
        ({"size": 48}, r"images.top' has the shape \(3, 32, 32\) in"),
    ],
)
def test_datasets_of_different_robots_are_refused_with_what_differs(
    two: tuple[Path, Path], tmp_path: Path, difference: dict[str, int], part: str
) -> None:
    other = write(tmp_path / "other", camera="top", value=2.0, **difference)  # type: ignore[arg-type]
    config = plain_settings(f'--dataset.mix={{"{two[0]}": 1, "{other}": 1}}')
    with pytest.raises(FeatureError, match=part):
        find_sources(config.dataset, {})


def test_flags_that_do_not_go_with_a_mixture_are_refused(two: tuple[Path, Path]) -> None:
    mix = f'--dataset.mix={{"{two[0]}": 1, "{two[1]}": 1}}'
    with pytest.raises(ConfigError, match="is another one"):
        settings(mix)
    with pytest.raises(ConfigError, match="whole datasets"):
        plain_settings(mix, "--dataset.episodes=[0]")
    config = plain_settings(mix)
    names = {
        "observation.images.top": "observation.images.front",
        "observation.images.front": "observation.images.top",
    }
    with pytest.raises(ConfigError, match="away from it"):
        find_sources(config.dataset, names)
    with pytest.raises(ConfigError, match="side', which none"):
        find_sources(config.dataset, {"observation.images.side": "x"})


def test_the_last_frames_of_episodes_can_be_left_out(tmp_path: Path) -> None:
    whole = LeRobotDataset("parity", root=DATASET)
    kept = whole.frames_before_end(3)
    lengths = [whole.meta.episodes[number].length for number in range(4)]
    assert len(kept) == sum(lengths) - 3 * len(lengths)
    last = whole.frames_before_end(0)
    assert len(last) == len(whole)
    for frame in kept:
        assert whole[int(frame)]["episode_index"] == whole[int(frame) + 3]["episode_index"]
    with pytest.raises(ConfigError, match="leaves nothing"):
        whole.frames_before_end(max(lengths))
    ended, _ = run(tmp_path / "run", "--steps=1", "--dataset.drop_n_last_frames=3")
    assert ended.is_complete
