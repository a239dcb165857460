"""What is published opens here: the base, its relatives, and the fine-tunes that users made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import smolact
from smolact.cli.main import main
from smolact.errors import ConfigError, NotFoundError, StatisticsError
from tests import published
from tests.parity.recipe import DATA
from tests.policies.test_checkpoint import inputs

DATASET = DATA / "dataset_v30"
SEVERAL = ("base", "old_base")
"""Those that hold the statistics of several datasets."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: make(root / name) for name, make in published.FOLDERS.items()}


@pytest.mark.parametrize("name", published.FOLDERS)
def test_what_is_published_opens_in_every_command(
    name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders[name]
    assert smolact.load_policy(folder, device="cpu").policy.config.type == "smolvla"
    assert main(["info", f"--policy.path={folder}"]) == 0
    assert main(["doctor", str(folder)]) == 0
    said = capsys.readouterr().out
    assert ("note   statistics" in said) == (name in SEVERAL) and "FAULT" not in said
    assert main(["push", str(folder), "me/policy", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "left out" not in listed
    assert main(["convert", str(folder), "--to=smolvla_fast", f"--output={tmp_path / 'fast'}"]) == 0
    assert smolact.load_policy(tmp_path / "fast", device="cpu").policy.config.type == "smolvla"


def test_the_base_is_benchmarked_as_it_is(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", f"--policy.path={folders['base']}", "--repeats=1", "--policy.num_steps=1"]) == 0
    assert "Ready to predict" in capsys.readouterr().out


def test_the_base_predicts_with_a_key_and_a_dataset_and_says_so_without(folders: dict[str, Path]) -> None:
    observation = {f"observation.images.camera{number}": torch.rand(3, 64, 64) for number in (1, 2, 3)}
    observation |= {"observation.state": torch.rand(6), "task": "pick up the cube"}  # type: ignore[dict-item]

    def predict(**settings: object) -> torch.Tensor:
        policy, before, behind = smolact.load_policy(folders["base"], device="cpu", **settings)  # type: ignore[call-overload]
        torch.manual_seed(0)
        return behind(policy.predict_action_chunk(before(observation)))

    with pytest.raises(StatisticsError, match=r"'observation\.state'.*none of it.*--policy\.stats="):
        predict()
    with pytest.raises(StatisticsError, match=r"'observation\.state'.*--policy\.stats="):
        predict(stats_key="so100")
    both = predict(stats_key="so100", stats=str(DATASET))
    blue = predict(stats_key="so100-blue", stats=str(DATASET))
    alone = predict(stats=str(DATASET))
    assert both.shape == (1, 8, 6) and all(torch.isfinite(one).all() for one in (both, blue, alone))
    mean, std = (torch.tensor(values) for values in published.GROUPS["so100"])
    again_mean, again_std = (torch.tensor(values) for values in published.GROUPS["so100-blue"])
    torch.testing.assert_close((both - mean) / std, (blue - again_mean) / again_std, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both, alone)


def test_a_flag_settles_how_a_checkpoint_normalizes(folders: dict[str, Path]) -> None:
    modes = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "MEAN_STD"}
    loaded = smolact.load_policy(
        folders["base"], device="cpu", stats_key="so100", normalization_mapping=modes, tokenizer_max_length=7
    )
    state = torch.arange(6.0)
    batch = loaded.preprocess({"observation.state": state, "task": "go"})
    assert torch.equal(batch["observation.state"], state[None])  # taken as it is
    assert batch["observation.language.tokens"].shape == (1, 7)
    with pytest.raises(StatisticsError, match=r"has no statistics of that name.*so100-blue"):
        smolact.load_policy(folders["base"], device="cpu", stats_key="mine")


@pytest.mark.parametrize("name", ["finetune_of_base", "rtc_enabled", "august_2025", "unnormalizer_second"])
def test_relatives_predict_what_lerobot_predicts(name: str, folders: dict[str, Path]) -> None:
    policy, preprocess, postprocess = smolact.load_policy(folders[name], device="cpu")
    observation, expected = inputs()
    chunk = policy.predict_action_chunk(preprocess(observation), noise=expected["in/noise"])
    # The base's fields pad the instruction, whose masked tokens change rounding only.
    torch.testing.assert_close(postprocess(chunk), expected["out/action_chunk"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_expert_layers": 0, "num_vlm_layers": 0}, {"num_expert_layers": 0, "num_vlm_layers": 0}),
        ({"n_obs_steps": 2}, {"n_obs_steps": 1}),
        ({"attention_mode": "cross"}, {"attention_mode": "cross_attn"}),
        ({"prefix_length": -7, "self_attn_every_n_layers": 0}, {"prefix_length": -7}),
        ({"chunk_size": 8.0, "optimizer_grad_clip_norm": 10}, {"chunk_size": 8}),
        ({"input_features": None}, {"input_features": {}}),
        ({"dtype": "bfloat16", "use_rabc": False, "rabc_head": None, "tolerance_s": 1e-4}, {}),
        ({"pretrained_path": "C:\\Users\\me\\smolvla"}, {"pretrained_path": "C:\\Users\\me\\smolvla"}),
    ],
)
def test_values_that_the_reference_accepts_open(
    fields: dict[str, object], expected: dict[str, object], folders: dict[str, Path]
) -> None:
    raw = json.loads((folders["finetune_of_base"] / "config.json").read_text()) | fields
    config = smolact.SmolVLAConfig.from_dict(raw)
    assert {name: getattr(config, name) for name in expected} == expected
    for name in ("dtype", "use_rabc", "rabc_head", "tolerance_s"):  # what this version does not know is kept
        assert config.to_dict().get(name) == fields.get(name)


@pytest.mark.parametrize(
    ("field", "value", "settled"),
    [
        ("chunk_size", 10**9, 8),
        ("chunk_size", 10**400, 8),
        ("n_action_steps", "many", 8),
        ("max_state_dim", 2**62, 32),
        ("num_steps", 10**12, 2),
        ("empty_cameras", 10**9, 0),
        ("expert_width_multiplier", 1e308, 0.75),
        ("expert_width_multiplier", float("nan"), 0.75),
        ("resize_imgs_with_padding", [10**6, 10**6], (64, 64)),
        ("resize_imgs_with_padding", "x", (64, 64)),
        ("tokenizer_max_length", -1, 48),
        ("input_features", [1], None),
        ("input_features", {"observation.state": {"type": "STATE", "shape": [10**9]}}, None),
        ("input_features", {"observation.state": {"type": "STATE", "shape": [1e400]}}, None),
        ("output_features", {"action": {"type": "ACTION", "shape": []}}, None),
        ("normalization_mapping", "x", {"STATE": "MEAN_STD", "ACTION": "MEAN_STD", "VISUAL": "IDENTITY"}),
        ("normalization_mapping", {"STATE": 3}, {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}),
        ("attention_mode", 5, "cross_attn"),
        ("pad_language_to", "never", "longest"),
        ("use_delta_joint_actions_aloha", True, False),
        ("min_period", -1.0, 4e-3),
    ],
)
def test_an_impossible_value_is_said_and_a_flag_settles_it(
    field: str, value: object, settled: object, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["finetune_of_base"], folder)
    published.edit(folder / "config.json", lambda c: c.update({field: value}))
    plain = smolact.SmolVLAConfig.from_pretrained(folders["finetune_of_base"])
    if field == "attention_mode":
        with pytest.raises(ConfigError, match=r"attention_mode='5'.*--policy\.attention_mode"):
            smolact.SmolVLAConfig.from_pretrained(folder)
    else:
        with pytest.raises(ConfigError, match=rf"{field}.*--policy\.{field}|{field}: .*has the shape"):
            smolact.SmolVLAConfig.from_pretrained(folder)
    right = getattr(plain, field) if settled is None else settled
    assert smolact.SmolVLAConfig.from_pretrained(folder, **{field: right})


def test_a_flag_of_the_command_line_settles_a_file(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["finetune_of_base"], folder)
    published.edit(folder / "config.json", lambda c: c.update(num_steps=10**12))
    for command in (["doctor", str(folder)], ["info", f"--policy.path={folder}"]):
        assert main(command) == 2
        assert "--policy.num_steps" in capsys.readouterr().err
        assert main([*command, "--policy.num_steps=2"]) == 0


def test_a_policy_without_an_action_is_said_by_every_command(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["finetune_of_base"], folder)
    published.edit(folder / "config.json", lambda c: c.update(output_features={}))
    for command in (
        ["doctor", str(folder)],
        ["rollout", "--robot.type=sim", "--robot.env=tabletop", f"--policy.path={folder}"],
        ["serve", f"--policy.path={folder}"],
    ):
        assert main(command) in (1, 2)
        said = capsys.readouterr()
        assert "output_features have no 'action'" in said.out + said.err and "bug in smolact" not in said.err


def test_doctor_takes_the_flags_that_it_names(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(folders["base"])]) == 0
    said = capsys.readouterr().out
    assert "--policy.stats_key=KEY" in said and "--policy.stats=" in said
    flags = ["--policy.stats_key=so100", f"--policy.stats={DATASET}"]
    assert main(["doctor", str(folders["base"]), *flags]) == 0
    assert "statistics: there are all that it needs" in capsys.readouterr().out


def test_a_checkpoint_of_shards_only_says_how_to_merge_them(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["finetune_of_base"], folder, ignore=shutil.ignore_patterns("model*"))
    (folder / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(NotFoundError, match=r"lerobot-convert-dcp --checkpoint_dir=CHECKPOINT"):
        smolact.load_policy(folder, device="cpu")


def test_statistics_that_were_never_set_do_not_keep_a_checkpoint_from_opening(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["finetune_of_base"], folder)
    for name in (published.PRE_STATE, published.POST_STATE):
        state = load_file(folder / name)
        save_file({**state, "action.std": torch.full_like(state["action.std"], torch.inf)}, folder / name)
    loaded = smolact.load_policy(folder, device="cpu")
    with pytest.raises(StatisticsError, match=r"std of 'action' is not finite.*--policy\.stats="):
        loaded.postprocess(torch.zeros(1, 8, 6))
    filled = smolact.load_policy(folder, device="cpu", stats=DATASET)
    assert torch.isfinite(filled.postprocess(torch.zeros(1, 8, 6))).all()


def test_a_flag_for_a_step_that_a_checkpoint_lacks_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["finetune_of_base"], folder)

    def bare(content: dict) -> None:
        content["steps"] = [step for step in content["steps"] if "rename" not in step["registry_name"]]

    published.edit(folder / "policy_preprocessor.json", bare)
    assert smolact.load_policy(folder, device="cpu")
    with pytest.raises(ConfigError, match=r"--rename_map is for the step 'rename_observations_processor'"):
        smolact.load_policy(
            folder, device="cpu", rename_map={"observation.images.top": "observation.images.camera1"}
        )
