"""What is kept of a dataset changes nothing but the time that a run takes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from smolact.errors import ConfigError
from smolact.training.cache import dequantize, quantize
from smolact.training.data import prefetch
from smolact.training.run_inputs import encode
from smolact.training.tracking import Ended, Event, Prepared, Started
from smolact.training.train import train
from tests.training.runs import DATASET, QUICK, SMALL, Recorder, plain_settings

FROZEN = (
    *SMALL,
    "--policy.train_expert_only=true",
    "--policy.freeze_vision_encoder=true",
    "--policy.allow_frozen_random=true",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATASET, tmp_path / "set"))


def run(root: Path, output: Path, *argv: str, policy: tuple[str, ...] = FROZEN) -> tuple[Ended, Recorder]:
    config = plain_settings(
        f"--dataset.root={root}", *policy, *QUICK, "--steps=4", f"--output_dir={output}", *argv
    )
    recorder = Recorder()
    return train(config, listeners=[recorder]), recorder


def made(recorder: Recorder) -> int:
    """How many pictures or tokens had to be made."""
    return sum(
        event.done == event.of and event.of for event in recorder.of(Prepared) if "keeping" in event.what
    )


def test_kept_pictures_are_the_same_run(root: Path, tmp_path: Path) -> None:
    changes = ("--dataset.image_transforms.enable=true", "--dataset.eval_split=0.3", "--eval_steps=2")
    _, plain = run(root, tmp_path / "plain", *changes)
    _, kept = run(root, tmp_path / "kept", *changes, "--dataset.cache=frames")
    assert kept.losses == plain.losses
    assert "pictures of 63 frames" in kept.of(Started)[0].facts["kept"]
    assert made(kept) == 63 * 2
    _, again = run(root, tmp_path / "again", *changes, "--dataset.cache=frames")
    assert (again.losses, made(again)) == (plain.losses, 0)


@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-6), ("bfloat16", 1e-2), ("float8", 3e-2)])
def test_kept_tokens_are_the_same_run_but_for_rounding(
    root: Path, tmp_path: Path, dtype: str, within: float
) -> None:
    changes = ("--dataset.eval_split=0.3", "--eval_steps=2")
    _, plain = run(root, tmp_path / "plain", *changes)
    _, kept = run(root, tmp_path / "kept", *changes, "--cache.features=true", f"--cache.dtype={dtype}")
    assert kept.losses == pytest.approx(plain.losses, rel=within)
    assert (kept.losses == plain.losses) is False or dtype == "float32"
    shutil.rmtree(root / "videos")  # nobody looks at pictures any more, but for the name of what is kept
    assert "vision tokens of 63 frames" in kept.of(Started)[0].facts["kept"]


def test_tokens_are_made_once_and_a_damaged_one_again(root: Path, tmp_path: Path) -> None:
    _, first = run(root, tmp_path / "first", "--cache.features=true")
    (arrays,) = (tmp_path / "set.cache").glob("features-*/observation.images.top.arrays")
    data = bytearray(arrays.read_bytes())
    data[10] ^= 0xFF
    arrays.write_bytes(bytes(data))
    _, second = run(root, tmp_path / "second", "--cache.features=true", "--num_workers=1")
    assert (made(first), made(second)) == (63 * 2, 1)
    assert second.losses == first.losses


def encoded(root: Path, *argv: str) -> tuple[str, Recorder]:
    """`smolact dataset encode`, with the flags of the runs here."""
    config = plain_settings(f"--dataset.root={root}", *FROZEN, *QUICK, "--steps=4", *argv)
    recorder = Recorder()
    return encode(config, listeners=[recorder]), recorder


def test_what_was_encoded_ahead_is_what_a_training_reads(root: Path, tmp_path: Path) -> None:
    kept, recorder = encoded(root, "--cache.features=true")
    assert kept.startswith("vision tokens of 63 frames") and str(tmp_path / "set.cache") in kept
    assert made(recorder) == 63 * 2
    _, trained = run(root, tmp_path / "run", "--cache.features=true")
    assert made(trained) == 0 and trained.of(Started)[0].facts["kept"] == kept
    assert made(encoded(root, "--dataset.cache=frames")[1]) == 63 * 2
    _, trained = run(root, tmp_path / "pictures", "--dataset.cache=frames")
    assert made(trained) == 0


def test_encoding_goes_on_where_it_was_stopped(root: Path, tmp_path: Path) -> None:
    config = plain_settings(f"--dataset.root={root}", *FROZEN, *QUICK, "--steps=4", "--cache.features=true")
    kept = 0

    def press_ctrl_c(event: Event) -> None:
        nonlocal kept
        if isinstance(event, Prepared) and "keeping" in event.what and event.done > 50:
            kept = event.done
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(config, listeners=[press_ctrl_c])
    assert 50 < kept < 126
    assert made(encoded(root, "--cache.features=true")[1]) == 126 - kept
    assert made(encoded(root, "--cache.features=true")[1]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "What is to be kept"),
        (["--cache.features=true", "--policy.freeze_vision_encoder=false", "--policy.train_expert_only=false"], "stay"),
        (["--cache.features=true", "--cache.max_gb=0.00001"], "cache.max_gb"),
    ],
)  # fmt: skip
def test_encoding_refuses_what_training_refuses(root: Path, flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        encoded(root, *flags)


def test_what_is_seen_otherwise_is_kept_apart(root: Path) -> None:
    encoded(root, "--cache.features=true")
    smaller = "--policy.resize_imgs_with_padding=[32, 32]"
    assert made(encoded(root, "--cache.features=true", smaller)[1]) == 63 * 2
    assert len(list(root.parent.glob("set.cache/features-*"))) == 2


def test_a_changed_dataset_is_encoded_anew(root: Path) -> None:
    encoded(root, "--cache.features=true")
    info = root / "meta/info.json"
    info.write_text(info.read_text() + " ")
    assert made(encoded(root, "--cache.features=true")[1]) == 63 * 2


def test_eight_bits_and_a_scale_keep_a_token_to_a_sixteenth() -> None:
    tokens = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]  # fmt: skip
    tokens[0, 0] = 0
    kept = quantize(tokens, "float8")
    assert kept.shape == (3, 5, 68) and kept.dtype.name == "uint8"
    found = dequantize(kept, "float8").float()
    # Rounded to 3 bits behind the point; below 2**-6 of e4m3's scale of 448 steps are even.
    assert ((found - tokens).abs() <= tokens.abs() / 15 + tokens.abs().amax(-1, keepdim=True) / 2**17).all()
    assert found[0, 0].eq(0).all()
    assert not torch.equal(found, tokens)


def test_another_tower_never_reads_them(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "first", "--cache.features=true", "--steps=1")
    _, other = run(
        root, tmp_path / "second", "--cache.features=true", "--steps=1", "--seed=7"
    )  # random weights
    assert made(other) == 63 * 2
    _, third = run(root, tmp_path / "third", "--cache.features=true", "--steps=1", "--cache.dtype=float32")
    assert made(third) == 63 * 2


def test_a_resumed_run_goes_on_with_what_is_kept(root: Path, tmp_path: Path) -> None:
    _, straight = run(root, tmp_path / "straight", "--cache.features=true")
    ended, _ = run(
        root, tmp_path / "run", "--cache.features=true", "--steps=2", "--policy.scheduler_decay_steps=4"
    )
    from smolact.cli.train import read_settings

    config = read_settings(["--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=4"])
    assert config.cache.features and config.checkpoint is not None
    assert ended.checkpoint == config.checkpoint.resolve()
    recorder = Recorder()
    train(config, listeners=[recorder])
    assert made(recorder) == 0 and set(recorder.losses) == {3, 4}
    assert set(straight.losses) == {1, 2, 3, 4}


def test_datasets_that_are_mixed_keep_theirs(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root, tmp_path / "other")
    mix = ("--dataset.root=", f"--dataset.mix={{{root}: 1, {other}: 1}}")
    _, plain = run(root, tmp_path / "plain", *mix)
    _, kept = run(root, tmp_path / "kept", *mix, "--cache.features=true", "--cache.dtype=float32")
    assert kept.losses == pytest.approx(plain.losses, rel=1e-6)
    assert (tmp_path / "other.cache").is_dir() and (tmp_path / "set.cache").is_dir()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--policy.freeze_vision_encoder=false", "--policy.train_expert_only=false"],
            "vision tower.*that stay",
        ),
        (["--dataset.image_transforms.enable=true"], "changes them each time"),
        (["--dataset.cache=frames"], "Drop one of them"),
        (["--cache.max_gb=0.00001"], "cache.max_gb"),
        (
            ["--policy.normalization_mapping={VISUAL: MEAN_STD, STATE: MEAN_STD, ACTION: MEAN_STD}"],
            "normalized",
        ),
    ],
)
def test_what_does_not_go_together_is_said_before_the_first_step(
    root: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(root, tmp_path / "run", "--cache.features=true", *flags)
    assert not (tmp_path / "run").exists()


def test_resized_pictures_are_nearly_the_same_run(root: Path, tmp_path: Path) -> None:
    small = ("--policy.resize_imgs_with_padding=[32, 32]",)
    _, plain = run(root, tmp_path / "plain", *small)
    _, kept = run(root, tmp_path / "kept", *small, "--dataset.cache=resized")
    assert kept.losses == pytest.approx(plain.losses, rel=1e-2)


def test_what_is_only_copied_is_loaded_by_a_thread_and_is_the_same_run(root: Path, tmp_path: Path) -> None:
    _, plain = run(root, tmp_path / "plain", "--dataset.cache=frames")
    _, prefetch = run(root, tmp_path / "ahead", "--dataset.cache=frames", "--num_workers=1")
    assert prefetch.losses == plain.losses
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("smolact data")]


def test_a_thread_hands_over_what_went_wrong_and_ends_when_nobody_asks() -> None:
    def items(fails_at: int) -> Iterator[int]:
        for number in range(100):
            if number == fails_at:
                raise ConfigError("broken")
            yield number

    made = prefetch(items(3), 2)
    assert [next(made), next(made), next(made)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="broken"):
        next(made)
    assert list(prefetch(range(5), 2)) == [0, 1, 2, 3, 4]
    left = prefetch(items(1000), 2)
    next(left)
    left.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("smolact data")]
