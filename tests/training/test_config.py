"""The settings of `smolact train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smolact.cli.train import read_settings
from smolact.errors import ConfigError
from smolact.parsing import parse
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.training.config import TrainConfig, given_flags, resolve, to_json
from smolact.training.saved_settings import to_dict
from tests.training.runs import DATA, settings

LEROBOT = DATA / "lerobot_checkpoint" / "pretrained_model" / "train_config.json"


def test_the_commands_of_the_seeds_parse_word_for_word() -> None:
    for line in (
        "--policy.type=smolvla --policy.optimizer_lr=2e-4 --policy.scheduler_warmup_steps=2000 --dataset.repo_id=your_dataset",
        "--policy.type=smolvla --policy.optimizer_lr=5e-4 --batch_size=32 --dataset.repo_id=your_dataset --steps=100000",
        "--policy.type=smolvla --policy.num_vlm_layers=12 --policy.expert_width_multiplier=0.5 "
        "--policy.attention_mode=self_attn --dataset.repo_id=your_dataset",
        "--policy.type=smolvla --policy.load_vlm_weights=False --policy.train_expert_only=False --dataset.repo_id=your_dataset",
        "--dataset.repo_id=lerobot/pusht --policy.type=smolvla --env.type=pusht --policy.push_to_hub=False "
        "--wandb.enable=True --eval_freq=1000 --steps=30000 --batch_size=64 --log_freq=50 --eval.batch_size=32 "
        "--eval.n_episodes=64",
    ):
        config = parse(TrainConfig, line.split())
        config.check_complete()


def test_lerobots_own_train_config_opens() -> None:
    config = read_settings([f"--config_path={LEROBOT}", "--steps=9"])
    assert (config.steps, config.batch_size, config.dataset.root, config.policy.type) == (
        9,
        4,
        "dataset_v30",
        "smolvla",
    )
    assert config.policy.settings["num_vlm_layers"] == 4


def test_what_a_run_saves_opens_again_as_the_same_settings(tmp_path: Path) -> None:
    config = settings(
        "--policy.type=smolvla", "--policy.chunk_size=8", "--policy.n_action_steps=8", "--eval_freq=7"
    )
    policy = SmolVLAConfig(**config.policy.settings)
    data = to_json(resolve(config), policy, policy.get_optimizer_preset(), policy.get_scheduler_preset())
    (tmp_path / "train_config.json").write_text(json.dumps(data))
    again = read_settings([f"--config_path={tmp_path / 'train_config.json'}"])
    assert SmolVLAConfig(**again.policy.settings) == policy
    assert again.eval_freq == 7
    for name in ("dataset", "eval", "wandb", "seed", "steps", "rename_map", "save_freq"):
        assert getattr(again, name) == getattr(resolve(config), name)


def test_it_holds_only_keys_that_lerobot_knows() -> None:
    config = settings("--policy.type=smolvla")
    policy = SmolVLAConfig()
    ours = to_json(resolve(config), policy, policy.get_optimizer_preset(), policy.get_scheduler_preset())
    lerobots = json.loads(LEROBOT.read_text())
    assert ours.keys() <= lerobots.keys()
    for section in ("dataset", "policy", "eval", "wandb", "optimizer", "scheduler"):
        assert ours[section].keys() <= lerobots[section].keys()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--steps=0"], "--steps=0 is too small"),
        (["--batch_size=0"], "--batch_size=0 is too small"),
        (["--eval.n_episodes=0"], "--eval.n_episodes=0 is too small"),
        (["--dataset.episodes=[0, 0]"], "lists [0] more than once"),
        (["--dataset.episodes=[-1]"], "episodes count from 0"),
        (["--dataset.streaming=true"], "can't be used"),
        (
            ["--dataset.image_transforms={enable: true, tfs: {a: {type: Blur}}}"],
            "the type 'Blur', which is none of",
        ),
        (["--dataset.image_transforms.tfs={a: {wieght: 2}}"], "Did you mean 'weight'?"),
        (["--policy.type=smolvla", "--policy.push_to_hub=true"], "--policy.repo_id=OWNER/NAME"),
        (
            [
                "--policy.type=smolvla",
                "--policy.push_to_hub=true",
                "--policy.repo_id=a/b",
                "--save_checkpoint=false",
            ],
            "--save_checkpoint=false writes none",
        ),
        (["--policy.init=base"], "--policy.path"),
        (["--policy.type=smolvlaa"], "Did you mean 'smolvla'?"),
        (["--wandb.enable=true", "--wandb.mode=disabled"], "contradict"),
        (["--policy.type=smolvla", "--policy.chunk_sise=3"], "Did you mean '--policy.chunk_size'?"),
    ],
)
def test_what_can_not_work_is_refused(flags: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(TrainConfig, flags)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "part"), [([], "Which dataset"), (["--dataset.repo_id=a/b"], "Which policy")]
)
def test_a_new_run_needs_a_dataset_and_a_policy(flags: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse(TrainConfig, flags).check_complete()


def test_what_was_not_given_follows_from_the_rest() -> None:
    plain = resolve(TrainConfig())
    assert (plain.steps, plain.log_freq, plain.ema.decay) == (100_000, 200, 0.999)
    assert resolve(TrainConfig(steps=400)).log_freq == 10
    timed = resolve(TrainConfig(train_minutes=1.0))
    assert (timed.steps, timed.log_freq) == (None, 200)
    assert resolve(plain) == plain


def test_steps_and_minutes_are_one_or_the_other_and_a_flag_replaces_a_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both say how long the run goes"):
        read_settings(["--steps=5", "--train_minutes=1"])
    file = tmp_path / "run.yaml"
    file.write_text("steps: 5\n")
    config = read_settings([f"--config_path={file}", "--train_minutes=2"])
    assert (config.steps, config.train_minutes) == (None, 2.0)


def test_the_flags_of_a_run_make_its_settings_again() -> None:
    words = [
        "--dataset.root=data",
        "--policy.path=base",
        "--policy.chunk_size=8",
        "--policy.resize_imgs_with_padding=[64, 64]",
        "--peft.method_type=LORA",
        "--peft.r=4",
        "--lr_multipliers={vision_model: 0.1}",
        "--train_minutes=1.5",
        "--env.type=pusht",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smolact.training.sections.policy_type_at", lambda path: "smolvla")
        config = read_settings(words)
        flags = given_flags(to_dict(config))
        assert read_settings(flags) == config
    assert sorted(flags) == sorted(word.replace("{vision_model", '{"vision_model"') for word in words)
