"""`--policy.push_to_hub=true`: asked before the first step, published after the last, and nothing is lost if that fails."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml

from smolact.cli.main import main
from smolact.errors import HubError
from smolact.policies.factory import load_policy
from tests.hub_standin import THEIRS, Fault, StandIn
from tests.training.runs import QUICK, run

PUSH = ("--policy.push_to_hub=true", "--policy.repo_id=me/trained")

pytestmark = THEIRS


def test_a_run_publishes_its_policy_with_a_card(
    hub: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path / "run", "--steps=2", *PUSH, "--policy.private=true", "--policy.license=mit")
    repository = hub.model("me/trained")
    assert repository.private and len(repository.messages) == 1
    assert load_policy("me/trained").policy.config.chunk_size == 4
    assert f"Published: {hub.endpoint}/me/trained" in caplog.text
    assert not [name for name in repository.files if "optimizer" in name or "metrics" in name]
    assert not [name for name, data in repository.files.items() if str(tmp_path).encode() in data]
    card = repository.files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    for part in (
        "| steps | 2 |",
        "| samples a step | 2 |",
        "| seed | 1000 |",
        "| weights | random weights |",
        "| episodes | ",
        "--policy.type=smolvla",
        "--policy.init=random",
        "training loss, last",
        "Not evaluated in closed loop",
        'load_policy("me/trained")',
    ):
        assert part in card, part


def test_every_checkpoint_has_a_card_and_where_it_comes_from(tmp_path: Path) -> None:
    run(tmp_path / "run", "--steps=2", "--save_freq=1")
    for step in (1, 2):
        folder = tmp_path / f"run/checkpoints/{step:06d}/pretrained_model"
        kept = json.loads((folder / "provenance.json").read_text())
        assert kept["step"] == step and kept["loss"] > 0 and kept["parameters"]["trained"] > 0
        (dataset,) = kept["datasets"]
        assert dataset["episodes"] > 0 and dataset["tasks"] and "hub_id" not in dataset
        assert "--steps=2" in kept["command"] and "--output_dir" not in kept["command"]
        assert f"{step} of 2 planned" in (folder / "README.md").read_text() or step == 2


def test_what_can_not_be_published_is_told_before_the_first_step(hub: StandIn, tmp_path: Path) -> None:
    hub.role = "read"
    with pytest.raises(HubError, match="Your token only reads"):
        run(tmp_path / "run", "--steps=2", *PUSH)
    assert not (tmp_path / "run").exists()


def test_a_failure_at_the_end_loses_nothing(hub: StandIn, tmp_path: Path) -> None:
    hub.faults.append(Fault("/commit/", 500))
    with pytest.raises(
        HubError, match=r"training is done.*smolact push .*/000001 me/trained --private"
    ) as caught:
        run(tmp_path / "run", "--steps=1", *PUSH, "--policy.private=true")
    words = str(caught.value).rpartition("smolact push ")[2].split()
    assert main(["push", *words]) == 0
    assert "model.safetensors" in hub.model("me/trained").files


def test_a_check_asks_and_makes_nothing(hub: StandIn, tmp_path: Path) -> None:
    run(tmp_path / "run", "--steps=1", "--check", *PUSH)
    assert hub.sent("whoami") and not hub.repositories
    hub.role = "read"
    with pytest.raises(HubError, match="only reads"):
        run(tmp_path / "run", "--steps=1", "--check", *PUSH)


def test_a_run_from_a_published_policy_does_not_go_where_that_one_went(hub: StandIn, tmp_path: Path) -> None:
    run(tmp_path / "run", "--steps=1", *PUSH)
    base = f"--policy.path={tmp_path / 'run'}"
    run(tmp_path / "more", "--steps=1", policy=(base, *QUICK, "--policy.device=cpu"))
    config = json.loads((tmp_path / "more/checkpoints/last/pretrained_model/config.json").read_text())
    assert config["push_to_hub"] is False and config["repo_id"] is None
    assert len(hub.model("me/trained").messages) == 1


def test_a_run_that_is_resumed_can_be_published(hub: StandIn, tmp_path: Path) -> None:
    run(tmp_path / "run", "--steps=1")
    words = ["train", "--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=2", *PUSH]
    assert main(words) == 0
    card = hub.model("me/trained").files["README.md"].decode()
    assert "| steps | 2 |" in card and "training loss, last" in card
    assert main([*words[:-3], "--steps=3"]) == 0  # as the checkpoint says
    assert len(hub.model("me/trained").messages) == 2
