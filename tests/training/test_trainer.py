"""A run from flags to checkpoint, on a real dataset; stopped, resumed, and refused."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smolact.cli.main import main
from smolact.cli.train import read_settings
from smolact.envs.demonstrations import demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import env_id, make_env
from smolact.errors import (
    ConfigError,
    DeviceError,
    EnvironmentNotFoundError,
    FeatureError,
    MissingDependencyError,
    NotFoundError,
    TrainingError,
    VideoError,
)
from smolact.evaluation.rollout import evaluate
from smolact.policies.factory import load_policy
from smolact.policies.smolvla.engine import SmolVLAEngine
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.recording.demonstrations import record_demonstrations
from smolact.runtime.local import LocalPolicy
from smolact.training import train as training
from smolact.training.config import TrainConfig
from smolact.training.data import TrainDataset, make_loader, map_with_workers, next_batch
from smolact.training.meter import Meter
from smolact.training.run_folder import find_checkpoint
from smolact.training.saved_settings import to_dict
from smolact.training.signals import stop_signals
from smolact.training.sources import find_sources
from smolact.training.tracking import Ended, Evaluated, MetricsFile, Saved, Started, Stepped
from smolact.training.train import train
from tests.training.runs import DATASET, QUICK, SMALL, Recorder, run, settings


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A run of six steps, with a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    _, recorder = run(folder, "--steps=6", "--save_freq=3")
    return folder, recorder


def resume(folder: Path, *argv: str) -> tuple[Ended, Recorder]:
    from smolact.training.train import train

    config = read_settings(["--resume=true", f"--config_path={folder}", *argv])
    recorder = Recorder()
    return train(config, listeners=[recorder]), recorder


def same_files(one: Path, other: Path) -> None:
    for name in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    state = "training_state/rng_state.safetensors"
    assert all(
        torch.equal(load_file(one / state)[k], load_file(other / state)[k]) for k in load_file(one / state)
    )


def test_a_run_tells_its_story(straight: tuple[Path, Recorder]) -> None:
    folder, recorder = straight
    assert [event.step for event in recorder.of(Stepped)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in recorder.of(Saved)] == [3, 6]
    (ended,) = recorder.of(Ended)
    assert ended == Ended(6, folder / "checkpoints" / "000006", True)
    assert 0 < ended.data_wait < 1
    assert "random weights" in recorder.of(Started)[0].facts["policy"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["loss"] for line in lines} == recorder.losses
    rates = [line["lr"] for line in lines]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(2.5e-6)  # the schedule ends with the run
    assert lines[-1].keys() >= {"loss", "grad_norm", "lr", "samples_per_second", "data_wait"}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    straight: tuple[Path, Recorder], tmp_path: Path
) -> None:
    _, again = run(tmp_path / "again", "--steps=3")
    first = dict(itertools.islice(straight[1].losses.items(), 2))
    assert {step: again.losses[step] for step in (1,)} == {1: first[1]}
    _, other = run(tmp_path / "other", "--steps=1", "--seed=7")
    assert other.losses[1] != first[1]


def test_the_checkpoint_predicts(straight: tuple[Path, Recorder]) -> None:
    policy, preprocess, postprocess = load_policy(straight[0] / "checkpoints" / "last", device="cpu")
    config = settings(*SMALL)
    sample = find_sources(config.dataset, {})[0].open(policy.config)[0]
    actions = postprocess(policy.select_action(preprocess(sample)))
    assert actions.shape == (1, 6)
    assert torch.isfinite(actions).all()


def test_resuming_is_the_same_run_bit_for_bit(straight: tuple[Path, Recorder], tmp_path: Path) -> None:
    folder, recorder = straight
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    ended, resumed = resume(copy / "checkpoints" / "000003")
    assert ended.checkpoint == (copy / "checkpoints" / "000006").resolve()
    assert resumed.losses == {step: loss for step, loss in recorder.losses.items() if step > 3}
    same_files(folder / "checkpoints" / "000006", copy / "checkpoints" / "000006")
    steps = [json.loads(line)["step"] for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_complete_and_more_steps_go_on(
    straight: tuple[Path, Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(straight[0], copy, symlinks=True)
    ended, resumed = resume(copy)
    assert ended.is_complete and not resumed.of(Stepped)
    ended, resumed = resume(copy, "--steps=7", "--policy.optimizer_lr=1e-3")
    assert (ended.step, list(resumed.losses)) == (7, [7])
    assert "ends at step 7, not 0 and 6" in caplog.text
    assert (
        json.loads((copy / "checkpoints/last/pretrained_model/config.json").read_text())["optimizer_lr"]
        == 1e-3
    )


def test_the_flags_that_keep_a_schedule_keep_it(
    straight: tuple[Path, Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(straight[0], copy, symlinks=True)
    resume(copy, "--steps=7")
    hint = caplog.text.partition("To keep it, add ")[2].partition(".\n")[0].split()
    assert [word.partition("=")[0] for word in hint] == [
        "--policy.scheduler_warmup_steps",
        "--policy.scheduler_decay_steps",
    ]
    caplog.clear()
    shutil.rmtree(copy)
    shutil.copytree(straight[0], copy, symlinks=True)
    resume(copy, "--steps=7", *hint)
    assert "The schedule is not the one" not in caplog.text


def test_a_run_that_goes_on_with_other_data_says_so(
    straight: tuple[Path, Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(straight[0], copy, symlinks=True)
    resume(copy / "checkpoints" / "000003")
    assert "The data is not what it was" not in caplog.text
    shutil.rmtree(copy)
    shutil.copytree(straight[0], copy, symlinks=True)
    resume(copy / "checkpoints" / "000003", "--dataset.episodes=[0, 1]")
    assert "The data is not what it was: dataset_v30 with 2 episodes" in caplog.text


def test_fine_tuning_normalizes_with_the_datasets_statistics(
    straight: tuple[Path, Recorder], tmp_path: Path
) -> None:
    checkpoint = straight[0] / "checkpoints" / "last"
    flags = (f"--policy.path={checkpoint}", "--policy.device=cpu")
    ended, recorder = run(tmp_path / "fine", "--steps=1", "--dataset.episodes=[0, 1]", policy=flags)
    assert str(checkpoint) in recorder.of(Started)[0].facts["policy"]
    assert ended.checkpoint is not None
    name = "pretrained_model/policy_preprocessor_step_5_normalizer_processor.safetensors"
    from smolact.datasets.metadata import LeRobotDatasetMetadata

    mean = torch.from_numpy(LeRobotDatasetMetadata(DATASET).stats["action"]["mean"]).float()
    assert torch.allclose(load_file(ended.checkpoint / name)["action.mean"].float(), mean)
    base, fine = (load_file(c / "pretrained_model/model.safetensors") for c in (checkpoint, ended.checkpoint))
    moved = [key for key in base if not torch.equal(base[key], fine[key])]
    assert moved
    assert (
        max((base[key] - fine[key]).abs().max().item() for key in moved) < 1e-3
    )  # one small step, not new weights


def test_workers_load_the_same_samples(straight: tuple[Path, Recorder], tmp_path: Path) -> None:
    flags = (
        "--steps=2",
        "--num_workers=1",
        "--dataloader_multiprocessing_context=forkserver",
        "--save_checkpoint=false",
    )
    ended, recorder = run(tmp_path / "workers", *flags)
    assert recorder.losses[1] == straight[1].losses[1]
    assert ended.checkpoint is None
    assert not (tmp_path / "workers" / "checkpoints").exists()


def test_ctrl_c_finishes_the_step_saves_and_the_run_resumes(tmp_path: Path) -> None:
    config = settings(*SMALL, *QUICK, f"--output_dir={tmp_path / 'run'}", "--steps=100")
    from smolact.training.train import train

    def press(event: Any) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    ended = train(config, listeners=[press])
    assert signal.getsignal(signal.SIGINT) is handler
    assert not ended.is_complete
    assert ended.checkpoint is not None
    assert find_checkpoint(tmp_path / "run").name == f"{ended.step:06d}"
    again, _ = resume(tmp_path / "run", f"--steps={ended.step + 1}")
    assert again.is_complete


def test_a_second_signal_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals() as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.received == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_saves(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"3 steps in a row were not finite, the last of them step 4"
    ) as caught:
        run(
            tmp_path / "run",
            "--steps=6",
            "--policy.optimizer_lr=1e30",
            "--policy.scheduler_decay_lr=1e30",
            "--log_freq=2",
            "--save_freq=1",
            "--max_bad_steps=3",
            "--report=true",
        )
    page = (tmp_path / "run" / "report.html").read_text()  # a run that fails leaves its report too
    assert "stopped by" in page and "3 steps in a row were not finite" in page
    (kept,) = (tmp_path / "run").glob("bad_batch_*.safetensors")
    assert kept.name == "bad_batch_000004.safetensors" and str(kept) in str(caught.value)
    assert load_file(kept)["action"].shape[0] == 2
    for checkpoint in (tmp_path / "run").glob("checkpoints/*/pretrained_model/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint).values())


def test_the_meter_leaves_bad_steps_out_and_counts_them() -> None:
    meter = Meter(samples_per_step=2)
    for step, loss, norm in (
        (11, 1.0, 1.0),
        (12, float("nan"), 1.0),
        (13, 2.0, float("inf")),
        (14, 3.0, 3.0),
    ):
        meter.add(step, torch.tensor(loss), torch.tensor(norm), 0.0)
    assert meter.read_new(most=3) == [12, 13]
    assert meter.bad_in_a_row == 0
    metrics = meter.read(0.1)
    assert (metrics["loss"], metrics["grad_norm"], metrics["bad_steps"], metrics["lr"]) == (2.0, 2.0, 2, 0.1)
    for step in (15, 16, 17):
        meter.add(step, torch.tensor(float("nan")), torch.tensor(1.0), 0.0)
        meter.read_new(most=2)
        if meter.bad_in_a_row == 2:
            break
    assert step == 16


@pytest.mark.parametrize("on_device", [True, False])
def test_a_bad_step_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_device: bool) -> None:
    from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    forward, calls = SmolVLAPolicy.forward, itertools.count(1)

    def poisoned(self: SmolVLAPolicy, *args: Any, **kwargs: Any) -> Any:
        loss, counted = forward(self, *args, **kwargs)
        return (loss * float("nan") if next(calls) == 2 else loss), counted

    before = run(tmp_path / "before", "--steps=1")[0].checkpoint
    calls = itertools.count(1)
    monkeypatch.setattr(SmolVLAPolicy, "forward", poisoned)
    if not on_device:  # as on MPS, whose optimizer can't skip a step by itself
        monkeypatch.setattr(training, "SKIPS_BAD_STEPS", ())
    ended, _ = run(tmp_path / "run", "--steps=2", "--save_freq=1", "--log_freq=1")
    assert before is not None and ended.checkpoint is not None
    first, second = (
        load_file(
            tmp_path / "run" / "checkpoints" / f"00000{step}" / "pretrained_model" / "model.safetensors"
        )
        for step in (1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    moments = [
        load_file(
            tmp_path
            / "run"
            / "checkpoints"
            / f"00000{step}"
            / "training_state"
            / "optimizer_state.safetensors"
        )
        for step in (1, 2)
    ]
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[0])
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"bad_steps": 1') == 1


def test_a_folder_that_holds_something_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="holds something already"):
        run(tmp_path, "--steps=1")


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    with pytest.raises(DeviceError):
        run(tmp_path / "run", "--steps=1", "--policy.device=cuda")


def test_a_damaged_video_is_named_without_a_traceback_from_the_worker(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(DATASET, broken)
    video = next((broken / "videos").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:999])
    flags = (
        "--steps=2",
        "--num_workers=1",
        "--dataloader_multiprocessing_context=fork",
        f"--dataset.root={broken}",
    )
    with pytest.raises(VideoError) as caught:
        run(tmp_path / "run", *flags)
    assert video.name in str(caught.value)
    assert "Traceback" not in str(caught.value)


class Broken:
    """Data whose worker is killed, or hangs."""

    def __init__(self, hangs: bool) -> None:
        self.hangs = hangs

    def __len__(self) -> int:
        return 4

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if self.hangs:
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
        return []


@pytest.mark.parametrize(
    ("hangs", "advice"), [(False, "died.*--num_workers"), (True, "--dataloader_timeout")]
)
def test_a_worker_that_dies_or_hangs_is_told(hangs: bool, advice: str) -> None:
    config = settings("--num_workers=1", "--batch_size=2", "--dataloader_timeout=10")
    loader = make_loader(TrainDataset(Broken(hangs), 0), config, start=0, pin_memory=False)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=advice):
        next_batch(iter(loader))


class Large:
    """Items that take a while to be sent."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [torch.zeros(50_000) for _ in range(300)]


def test_workers_that_are_stopped_while_they_send_end_in_peace(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        items = map_with_workers(Large(), settings("--num_workers=2"))  # type: ignore[arg-type]
        next(items)
        items.close()  # type: ignore[attr-defined]
    assert "terminate" not in capfd.readouterr().err


def test_an_environment_that_does_not_fit_is_told_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="not in the environment"):
        run(tmp_path / "run", "--steps=2", "--env.type=tabletop", "--eval_freq=1")
    with pytest.raises(EnvironmentNotFoundError, match="tabletop"):
        run(tmp_path / "run", "--steps=2", "--env.type=tabeltop", "--eval_freq=1")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def tabletop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tabletop") / "dataset"
    with make_env("tabletop") as envs:
        shown = demonstrations(envs[0], expert_for(env_id("tabletop")), 2, seed=0)
        record_demonstrations(shown, folder, fps=envs.fps or 10, use_videos=False)
    return folder


def test_evaluating_on_the_way_changes_nothing_of_the_run(tabletop: Path, tmp_path: Path) -> None:
    flags = (f"--dataset.root={tabletop}", "--steps=2", "--save_checkpoint=false")
    env = (
        "--env.type=tabletop",
        "--eval_freq=1",
        "--eval.n_episodes=2",
        "--env.kwargs={max_episode_steps: 3}",
    )
    _, without = run(tmp_path / "without", *flags)
    _, evaluated = run(tmp_path / "with", *flags, *env)
    assert evaluated.losses == without.losses
    results = evaluated.of(Evaluated)
    assert [event.step for event in results] == [1, 2]
    assert results[0].metrics["success_rate"] == 0.0
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval/success_rate"] for line in lines if "eval/success_rate" in line] == [0.0, 0.0]


def test_an_evaluation_on_the_way_is_played_by_an_engine_as_the_saved_policy_would(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: dict[type, list[torch.Tensor]] = {SmolVLAEngine: [], SmolVLAPolicy: []}
    for kind, found in chunks.items():
        predict = kind.predict_action_chunk

        def noted(*given: Any, predict: Any = predict, found: Any = found, **more: Any) -> torch.Tensor:
            found.append(predict(*given, **more))
            return found[-1]

        monkeypatch.setattr(kind, "predict_action_chunk", noted)
    env = {"max_episode_steps": 4}  # one chunk
    flags = ("--steps=2", "--save_freq=1", "--ema.enable=true", "--policy.optimizer_lr=0.01")
    more = ("--env.type=tabletop", "--eval_freq=1", "--eval.n_episodes=2", f"--env.kwargs={env}")
    run(tmp_path / "run", f"--dataset.root={tabletop}", *flags, *more, "--policy.scheduler_warmup_steps=0")
    assert not chunks[SmolVLAPolicy]
    with make_env("tabletop", 2, render=None, **env) as envs:
        for step in (1, 2):
            saved = load_policy(tmp_path / "run" / "checkpoints" / f"{step:06d}", device="cpu")
            evaluate(LocalPolicy(*saved), envs, n_episodes=2, seed=1000)
    first, second = chunks[SmolVLAEngine]
    for found, expected in zip((first, second), chunks[SmolVLAPolicy], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (first - second).abs().max() > 1e-3  # the weights had changed, and so had their average


def test_weights_and_biases_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, Any]] = []
    stand_in = types.SimpleNamespace(
        init=lambda **arguments: logged.append(("init", arguments)) or stand_in,
        log=lambda numbers, step: logged.append(("log", (step, set(numbers)))),
        finish=lambda exit_code: logged.append(("finish", exit_code)),
        Video=lambda path, format: path,
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)  # type: ignore[arg-type]
    flags = ("--wandb.enable=true", "--wandb.project=p", "--wandb.mode=offline", "--save_checkpoint=false")
    run(tmp_path / "run", "--steps=1", *flags)
    kinds = [kind for kind, _ in logged]
    assert kinds == ["init", "log", "finish"]
    assert (logged[0][1]["project"], logged[0][1]["mode"]) == ("p", "offline")
    assert "smolvla" in logged[0][1]["tags"]
    assert logged[1][1][0] == 1
    assert "train/loss" in logged[1][1][1]


def test_weights_and_biases_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", _no_wandb(importlib.import_module))
    with pytest.raises(MissingDependencyError, match=r"smolact\[wandb\]"):
        run(tmp_path / "run", "--steps=1", "--wandb.enable=true")


def _no_wandb(real: Any) -> Any:
    def import_module(name: str, package: str | None = None) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
        return real(name, package)

    return import_module


def test_all_episodes_excluded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leaves no episode"):
        run(tmp_path / "run", "--steps=1", "--dataset.exclude_episodes=[0, 1, 2, 3]")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--resume"], "Which run"),
        (["--resume", "--output_dir=RUN", "--rename_map={a: b}"], "--rename_map can't change"),
        (["--resume", "--config_path=RUN", "--output_dir=elsewhere"], "goes on in its own folder"),
    ],
)
def test_resuming_what_can_not_be_resumed(
    straight: tuple[Path, Recorder], capsys: pytest.CaptureFixture[str], flags: list[str], part: str
) -> None:
    words = [flag.replace("RUN", str(straight[0])) for flag in flags]
    assert main(["train", *words, "--steps=9"]) == 2
    assert part in capsys.readouterr().err


def test_the_command_trains_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert (
        main(["train", f"--dataset.root={DATASET}", *SMALL, *QUICK, "--steps=1", f"--output_dir={folder}"])
        == 0
    )
    shown = capsys.readouterr().err
    assert "step 1/1  loss" in shown
    assert "0:00:00 left" in shown
    assert f"smolact eval --policy.path={folder / 'checkpoints' / '000001'}" in shown


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 5}\n{"ste')
    MetricsFile(tmp_path, step=3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_run_with_an_average_and_rates_by_part_resumes_bit_for_bit(tmp_path: Path) -> None:
    flags = (
        "--steps=4",
        "--save_freq=2",
        "--ema.enable=true",
        "--ema.decay=0.9",
        '--lr_multipliers={"lm_expert": 0.5}',
        "--gradient_accumulation_steps=2",
    )
    straight, recorder = run(tmp_path / "straight", *flags)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "straight", copy, symlinks=True)
    ended, resumed = resume(copy / "checkpoints" / "000002")
    assert straight.checkpoint is not None and ended.checkpoint is not None
    assert resumed.losses == {step: loss for step, loss in recorder.losses.items() if step > 2}
    same_files(straight.checkpoint, ended.checkpoint)
    # What is saved to be used is the average, not the trained weights.
    state = load_file(ended.checkpoint / "training_state" / "ema_state.safetensors")
    saved = load_file(ended.checkpoint / "pretrained_model" / "model.safetensors")
    name = "model.action_out_proj.weight"
    assert torch.equal(saved[name], state[f"average/{name}"])
    assert not torch.equal(saved[name], state[f"trained/{name}"])


def test_a_run_with_renamed_cameras_resumes_as_it_began(tmp_path: Path) -> None:
    renamed = '--rename_map={"observation.images.top": "observation.images.front"}'
    flags = ("--steps=2", "--save_freq=1", renamed, "--policy.scheduler_decay_steps=7")
    run(tmp_path / "straight", *flags)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "straight", copy, symlinks=True)
    for again in (1, 2):  # what was recorded is recorded again
        ended, _ = resume(copy / "checkpoints" / "000001")
        assert ended.checkpoint is not None
        same_files(tmp_path / "straight" / "checkpoints" / "000002", ended.checkpoint)
        shutil.copytree(copy / "checkpoints" / "000001", tmp_path / f"kept{again}")
    with pytest.raises(ConfigError, match="--rename_map can't change"):
        resume(copy / "checkpoints" / "000001", "--rename_map={}")


def test_check_stops_before_the_first_step_and_writes_nothing(tmp_path: Path) -> None:
    ended, recorder = run(tmp_path / "run", "--steps=4", "--check=true")
    assert ended.is_complete and ended.checkpoint is None
    assert not (tmp_path / "run").exists()
    assert not recorder.of(Stepped)
    with pytest.raises(FeatureError, match="cameras are not in the dataset"):
        features = '{"observation.images.front": {"type": "VISUAL", "shape": [3, 64, 96]}}'
        run(tmp_path / "run", "--check=true", f"--policy.input_features={features}")


def test_a_run_that_never_saved_says_that_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    run(tmp_path / "run", "--steps=1", "--save_checkpoint=false")
    with pytest.raises(NotFoundError, match="has no checkpoint"):
        resume(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"nothing to go on from. Remove the folder"):
        run(tmp_path / "run", "--steps=1")


def test_a_dataset_without_a_state_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    renamed = '--rename_map={"observation.state": "observation.pose"}'
    with pytest.raises(FeatureError, match=r"needs 'observation.state', the dataset has .*observation.pose"):
        run(tmp_path / "run", "--steps=1", renamed)
    assert not (tmp_path / "run").exists()


def test_recomputed_activations_are_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--steps=2", "--save_checkpoint=false")
    _, plain = run(tmp_path / "plain", *flags)
    asked = []
    recompute = SmolVLAPolicy.recompute_activations
    monkeypatch.setattr(
        SmolVLAPolicy, "recompute_activations", lambda self: asked.append(1) or recompute(self)
    )
    _, again = run(tmp_path / "again", *flags, "--gradient_checkpointing=true")
    assert asked and again.losses == plain.losses


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_step_is_the_same_run_but_for_rounding(tmp_path: Path) -> None:
    flags = ("--steps=2", "--save_checkpoint=false")
    _, plain = run(tmp_path / "plain", *flags)
    precision = torch.get_float32_matmul_precision()
    try:
        compiled = ("--policy.compile_model=true", "--policy.compile_mode=default")
        _, found = run(tmp_path / "compiled", *flags, *compiled)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert found.losses == pytest.approx(plain.losses, rel=1e-4)


def test_a_run_of_before_settings_json_resumes_bit_for_bit(
    straight: tuple[Path, Recorder], tmp_path: Path
) -> None:
    """Older checkpoints have the names that were given in one file, and what `train_config.json` lacks in another."""
    folder = shutil.copytree(straight[0], tmp_path / "run", symlinks=True)
    shutil.rmtree(folder / "checkpoints" / "000006")
    (folder / "checkpoints" / "last").unlink()
    state = folder / "checkpoints" / "000003" / "training_state"
    given = json.loads((state / "settings.json").read_text())
    (state / "settings.json").unlink()
    words = (*SMALL, *QUICK, f"--dataset.root={DATASET}", "--steps=6", "--save_freq=3")
    names = {word[2:].partition("=")[0]: word for word in words}
    own = {
        "report": False,
        "cpu_processes": None,
        "train_minutes": None,
        "ema": {"enable": False, "decay": 0.999},
    }
    (state / "explicit_settings.json").write_text(json.dumps(names))
    (state / "own_settings.json").write_text(json.dumps(own))
    config = read_settings(["--resume=true", f"--config_path={folder}"])
    kept = to_dict(config)
    assert {name for name in given if given[name] != kept.get(name)} <= {"ema.decay", "policy.init"}
    ended, recorder = resume(folder)
    assert set(recorder.losses) == {4, 5, 6}
    assert ended.checkpoint is not None
    same_files(straight[0] / "checkpoints" / "000006", ended.checkpoint)


def test_a_run_resumes_with_changes_from_python(straight: tuple[Path, Recorder], tmp_path: Path) -> None:
    folder = shutil.copytree(straight[0], tmp_path / "run", symlinks=True)
    config = TrainConfig.resume(
        folder, steps=8, policy={"optimizer_lr": 1e-5}, lr_multipliers={"lm_expert": 0.5}
    )
    assert (config.steps, config.save_freq, config.policy.settings["chunk_size"]) == (8, 3, 4)
    assert config.changed == {"steps", "policy.optimizer_lr", "lr_multipliers"}
    with pytest.raises(ConfigError, match="--rename_map can't change"):
        TrainConfig.resume(folder, rename_map={"a": "b"})
    with pytest.raises(ConfigError, match=r"--peft\.r=4 can't change"):
        TrainConfig.resume(folder, **{"peft.r": 4})
    with pytest.raises(ConfigError, match="--steps=x: expected an integer"):
        TrainConfig.resume(folder, steps="x")
    config = TrainConfig.resume(folder, steps=8, policy={"optimizer_lr": 1e-5})
    ended = train(config)
    assert ended.step == 8 and ended.checkpoint is not None
    policy = json.loads((ended.checkpoint / "pretrained_model" / "config.json").read_text())
    assert policy["optimizer_lr"] == 1e-5
    again = TrainConfig.resume(folder)
    assert (again.steps, again.policy.settings["optimizer_lr"]) == (8, 1e-5)
