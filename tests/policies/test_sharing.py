"""A policy that is published: what goes, what stays, what its card says; and that it is the same policy when it is fetched."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smolact.cards import CARD, is_unedited
from smolact.errors import ConfigError, NotFoundError
from smolact.policies.card import model_card
from smolact.policies.factory import load_policy
from smolact.policies.sharing import card_of, contents, read_evaluation
from tests.evaluation.test_suite import checkpoint
from tests.hub_standin import THEIRS, TOKEN, StandIn

PARITY = Path(__file__).parents[1] / "parity/data/lerobot_checkpoint/pretrained_model"
EVALUATION: dict[str, Any] = {
    "success_rate": 0.91,
    "confidence_interval": [0.87, 0.94],
    "successes": 273,
    "episodes": 300,
    "per_task": {
        "put | on": {"success_rate": 0.5, "confidence_interval": [0.4, 0.6], "episodes": 100},
        "push": {"success_rate": 1.0, "confidence_interval": [0.98, 1.0], "episodes": 200},
    },
    "n_action_steps": 4,
    "chunk_size": 8,
    "seed": 7,
}
PROVENANCE: dict[str, Any] = {
    "smolact": "0.1.0",
    "torch": "2.13.0",
    "command": "smolact train --dataset.root=/home/zoe_q/data/push --steps=50",
    "weights": "random weights",
    "parameters": {"total": 2_400_000, "trained": 1_000_000},
    "samples_per_step": 16,
    "processes": 2,
    "step": 40,
    "loss": 0.0123,
    "datasets": [
        {
            "name": "push",
            "hub_id": "me/push",
            "episodes": 50,
            "frames": 12_345,
            "fps": 10,
            "robot_type": "so101",
            "cameras": ["observation.image"],
            "tasks": [f"push block {number}" for number in range(25)],
        }
    ],
}

pytestmark = THEIRS


def test_a_folder_here_is_no_id_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ckpt/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = {"type": "smolvla", "pretrained_path": "ckpt/base"}
    assert "base_model" not in model_card(config, {}, {})
    assert "base_model: me/base" in model_card({**config, "pretrained_path": "me/base"}, {}, {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(checkpoint(tmp_path_factory.mktemp("made"), 0))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A checkpoint in a run, with much beside it that is nobody's business."""
    policy = tmp_path / "run/checkpoints/000040/pretrained_model"
    shutil.copytree(made, policy)
    (policy.parent / "training_state").mkdir()
    (policy.parent / "training_state/optimizer_state.safetensors").write_bytes(b"x")
    for name in ("train.log", ".tmp-1-x.json", "notes.txt", "keys.json", "vlm/notes.md"):
        (policy / name).write_text("x")
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"vlm_model_name": "HuggingFaceTB/SmolVLM"}))
    training = {
        "job_name": "pusher",
        "steps": 50,
        "batch_size": 8,
        "seed": 3,
        "output_dir": "/home/zoe_q/runs/secret project/x",
        "dataset": {"repo_id": "me/push", "root": "~/data/push", "revision": "and/or"},
        "optimizer": {"betas": [0.9, 0.95], "weight_decay": 1e-10, "grad_clip_norm": 10},
        "scheduler": {"peak_lr": 1e-4, "num_warmup_steps": 10, "decay_lr": 2.5e-6, "num_decay_steps": 50},
    }
    (policy / "train_config.json").write_text(json.dumps(training))
    (policy / "provenance.json").write_text(json.dumps(PROVENANCE))
    return policy


def head_of(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def published_card(folder: Path, **options: Any) -> str:
    content = contents(folder, **options).files[CARD]
    assert isinstance(content, bytes)
    return content.decode()


def test_it_is_the_same_policy_when_it_is_fetched(hub: StandIn, made: Path) -> None:
    policy, preprocess, postprocess = load_policy(made)
    page = policy.push_to_hub("me/x", processors=(preprocess, postprocess), license="mit", tags=["blocks"])
    assert page == f"{hub.endpoint}/me/x"
    fetched = load_policy("me/x")
    observation = {
        **{key: torch.rand(1, *feature.shape) for key, feature in policy.config.input_features.items()},
        "task": ["push"],
    }
    noise = torch.randn(1, 8, 32)
    chunks = [
        one.postprocess(one.policy.predict_action_chunk(one.preprocess(dict(observation)), noise=noise))
        for one in (load_policy(made), fetched)
    ]
    assert torch.equal(*chunks)
    assert {"README.md", "config.json", "model.safetensors"} <= hub.model("me/x").files.keys()
    head = head_of(hub.model("me/x").files["README.md"].decode())
    assert head["license"] == "mit" and "blocks" in head["tags"]
    assert json.loads(hub.model("me/x").files["config.json"])["license"] == "mit"


def test_only_what_belongs_to_the_policy_goes(folder: Path) -> None:
    upload = contents(folder)
    assert {"README.md", "config.json", "model.safetensors", "train_config.json"} <= upload.files.keys()
    assert "vlm/tokenizer.json" in upload.files
    assert not [name for name in upload.files if re.search("optimizer|notes|keys|log", name)]
    assert "left out: .tmp-1-x.json, keys.json, notes.txt, train.log, vlm/notes.md" in upload.notes
    (folder.parents[1] / "last").symlink_to("000040")
    assert contents(folder.parents[2]).files.keys() == upload.files.keys()  # of a run, the last checkpoint


def test_no_path_of_this_machine_goes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vlm_model_name": "/home/zoe_q/models/tiny"}))
    upload = contents(folder, name="me/x")
    texts = [content for content in upload.files.values() if isinstance(content, bytes)]
    assert texts and not any(b"zoe_q" in text or b"~/" in text for text in texts)
    training = json.loads(upload.files["train_config.json"])  # type: ignore[arg-type]
    assert training["output_dir"] == "x"
    assert training["dataset"] == {"repo_id": "me/push", "root": "push", "revision": "and/or"}
    told = "\n".join(upload.notes)
    assert "config.json: of paths of this machine only the last part is published (vlm_model_name)" in told
    assert "(output_dir, dataset.root)" in told and "(command)" in told
    assert "/home/zoe_q" in (folder / "train_config.json").read_text()  # here it stays


def test_a_policy_whose_vlm_was_a_folder_opens_elsewhere(hub: StandIn, folder: Path) -> None:
    from smolact.uploads import publish

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vlm_model_name": "/nowhere/tiny"}))
    publish(contents(folder), "me/x")
    assert load_policy("me/x").policy.config.vlm_name == "tiny"


def test_the_card_says_what_the_files_say(folder: Path) -> None:
    card = published_card(folder, name="me/pusher", evaluations=[{"environment": "tabletop", **EVALUATION}])
    head = head_of(card)
    assert head["library_name"] == "lerobot" and head["pipeline_tag"] == "robotics"
    assert head["datasets"] == ["me/push"] and "license" not in head and "base_model" not in head
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "tabletop"
    assert result["metrics"][0]["value"] == 0.91
    for part in (
        "# pusher",
        "2.4M parameters",
        "| takes | `observation.state` | state | 2 |",
        "| gives | `action` | action | 2 |",
        "| episodes | 50 |",
        "| frames | 12,345 |",
        "- push block 19\n- … and 5 more",
        "| steps | 40 of 50 planned |",
        "| samples a step | 16 (8 a process, 2 processes) |",
        "| parameters | 2,400,000, of which 1,000,000 trained |",
        "0.0001 after 10 steps, cosine to 2.5e-06 at step 50",
        "smolact train --dataset.root=push --steps=50",
        "| **tabletop** | **91%** | 87% to 94% | 300 |",
        "| put \\| on | 50% | 40% to 60% | 100 |",
        "| training loss, last | 0.0123 |",
        "smolact eval --policy.path=me/pusher --env.type=tabletop",
        'load_policy("me/pusher")',
        "lerobot-rollout --strategy.type=base --policy.path=me/pusher",
    ):
        assert part in card, part
    assert "None" not in card and "not been evaluated" not in card


def test_what_is_not_known_is_left_out(made: Path) -> None:
    card = published_card(made)
    assert "Not evaluated in closed loop" in card and "It has not been evaluated" in card
    for part in ("## Data", "## Recipe", "None", "nan", "huggingface.co"):
        assert part not in card
    assert "model-index" not in head_of(card)


def test_lerobots_own_checkpoint_has_a_card_too() -> None:
    upload = contents(PARITY, name="me/x")
    assert {"model-00001-of-00003.safetensors", "model.safetensors.index.json"} <= upload.files.keys()
    card = published_card(PARITY, name="me/x")
    assert head_of(card)["datasets"] == ["mini/so101"]
    assert "| steps | 4 |" in card and "| frozen | the VLM |" in card


@pytest.mark.parametrize(
    "changes", [{"relative_step": 0.5}, {"type": "smolvla_fast"}, {"vlm_model_name": "tiny"}]
)
def test_a_policy_that_lerobot_does_not_know_does_not_say_so(folder: Path, changes: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    card = published_card(folder)
    assert head_of(card)["library_name"] == "smolact" and "lerobot" not in head_of(card)["tags"]
    assert "LeRobot opens it" not in card


@pytest.mark.parametrize(
    ("changes", "base", "relation"),
    [
        ({"pretrained_path": "lerobot/smolvla_base"}, "lerobot/smolvla_base", "finetune"),
        ({"pretrained_path": "/home/zoe_q/base"}, None, None),
        ({"pretrained_path": "a/b", "use_peft": True}, "a/b", "adapter"),
        ({"load_vlm_weights": True, "vlm_model_name": "HuggingFaceTB/V"}, "HuggingFaceTB/V", "finetune"),
    ],
)
def test_the_card_names_the_base(
    folder: Path, changes: dict[str, Any], base: str | None, relation: str | None
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    head = head_of(published_card(folder))
    assert (head.get("base_model"), head.get("base_model_relation")) == (base, relation)


def test_a_card_is_written_anew_until_somebody_works_on_it(folder: Path) -> None:
    written = card_of(folder)
    assert is_unedited(written)
    (folder / CARD).write_text(written)
    assert "me/other" in published_card(folder, name="me/other")
    mine = written.replace("## Limits", "## My limits")
    (folder / CARD).write_text(mine)
    assert not is_unedited(mine)
    assert published_card(folder, name="me/other") == mine
    assert "README.md is yours, and published as it is" in contents(folder).notes


def test_adapters_of_a_policy_of_this_machine_are_refused(folder: Path, made: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(made)}))
    with pytest.raises(ConfigError, match=r"on this machine only.*merge-adapters"):
        contents(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
    assert "adapter_config.json" in contents(folder).files


def test_a_token_in_the_settings_is_found(folder: Path) -> None:
    (folder / "train_config.json").write_text(json.dumps({"env": {"kwargs": {"key": TOKEN}}}))
    with pytest.raises(ConfigError, match=r"train_config\.json holds what looks like a token"):
        contents(folder)


def test_what_is_no_policy_here_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is no folder here"):
        contents("me/x")
    with pytest.raises(NotFoundError, match="not a policy checkpoint"):
        contents(tmp_path)


def test_an_evaluation_must_be_of_this_policy(folder: Path, made: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps(EVALUATION | {"policy": str(folder.parents[2]), "results": [1]}))
    (tmp_path / "evaluation.json").write_text(json.dumps({"environment": "tabletop"}))
    assert folder.parents[2].name == "run"
    (folder.parents[1] / "last").symlink_to("000040")
    found = read_evaluation(tmp_path, folder)
    assert found["environment"] == "tabletop" and "results" not in found
    metrics.write_text(json.dumps(EVALUATION | {"policy": str(made)}))
    with pytest.raises(ConfigError, match="is an evaluation of"):
        read_evaluation(tmp_path, folder)
    metrics.write_text("{}")
    with pytest.raises(ConfigError, match="lacks confidence_interval, episodes, success_rate"):
        read_evaluation(tmp_path, folder)
    with pytest.raises(NotFoundError, match="holds no evaluation"):
        read_evaluation(folder, folder)


def test_action_tokens_go_along(tmp_path: Path) -> None:
    from tests.policies.smolandfast.test_policy import policy_of

    policy_of()[0].save_pretrained(tmp_path)
    upload = contents(tmp_path, name="me/x")
    assert {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    } <= upload.files.keys()
    assert "A SmolAndFAST policy" in published_card(tmp_path)
