from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from smolact.cli.bench import BenchConfig, measure
from smolact.cli.main import main
from smolact.cli.servers import AnyPolicy
from smolact.errors import ConfigError
from smolact.policies.factory import make_pre_post_processors
from tests.policies.tiny import tiny_policy

TINY = [
    "--policy.vlm_model_name=tiny",
    "--policy.resize_imgs_with_padding=[64,64]",
    "--policy.num_vlm_layers=1",
]
TINY += ["--policy.chunk_size=8", "--policy.n_action_steps=8", "--policy.num_steps=1", "--policy.device=cpu"]


def test_the_ways_to_answer_stand_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bench.json"
    argv = [
        "bench",
        "--policy.type=smolvla",
        *TINY,
        "--repeats=2",
        "--int8=true",
        "--fp8=true",
        f"--output={output}",
    ]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    found = json.loads(output.read_text())
    rows = {row["way"]: row for row in found["rows"]}
    assert {"policy", "engine, float32", "engine, int8", "engine, float8"} <= set(rows)
    assert rows["policy"]["difference"] is None
    assert rows["engine, float32"]["difference"] <= 1e-5
    assert 1e-5 < rows["engine, int8"]["difference"] < 5e-2
    assert 1e-5 < rows["engine, float8"]["difference"] < 2e-2
    assert all(row["median"] > 0 and row["p90"] > 0 for row in rows.values())
    assert all(way.split(",")[0] in printed for way in rows)
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["ready"] is None
    assert found["command"].startswith("smolact bench --policy.type=smolvla")


def test_a_checkpoint_is_made_ready_in_a_process_of_its_own(tmp_path: Path) -> None:
    policy = tiny_policy(num_vlm_layers=1, num_steps=1)
    stats = {key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")}
    for part in (policy, *make_pre_post_processors(policy, stats)):
        part.save_pretrained(tmp_path)
    question = AnyPolicy(path=str(tmp_path), settings={"device": "cpu"})
    rows, facts = measure(BenchConfig(policy=question, repeats=1))
    assert len(rows) >= 3
    ready = facts["ready"]
    assert ready["seconds"] > 0
    assert ready["peak_bytes"] > ready["torch_bytes"] > 0
    assert ready["weights_bytes"] <= sum(parameter.nbytes for parameter in policy.parameters())


def test_what_can_not_be_measured_is_refused() -> None:
    for argv, message in (
        ([], r"needs one policy: --policy.path=CHECKPOINT, or --policy.type=smolvla"),
        (["--policy.type=smolvla", "--repeats=0"], r"--repeats=0 is too small"),
        (["--policy.type=smolvla", *TINY, "--triton=true"], r"triton=True needs a GPU with CUDA"),
    ):
        with pytest.raises(ConfigError, match=message):
            main(["--debug", "bench", *argv])
