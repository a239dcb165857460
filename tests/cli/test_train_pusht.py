"""The command that SmolAndFAST's authors give for PushT: their words, and what the Hub would give from folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.flags import read_flags
from smolact.parsing import flattened, parse
from smolact.training.config import TrainConfig

SEED = """
    --dataset.repo_id=lerobot/pusht --policy.type=smolandfast --env.type=pusht --policy.push_to_hub=False
    --wandb.enable=True --eval_freq=1000 --steps=30000 --batch_size=64 --log_freq=50 --eval.batch_size=32
    --eval.n_episodes=64
"""
AUTHORS = SEED.split()


def test_the_authors_command_is_taken_word_for_word() -> None:
    config = parse(TrainConfig, AUTHORS)
    config.check_complete()
    assert (config.dataset.repo_id, config.policy.type, config.env.type) == (
        "lerobot/pusht",
        "smolandfast",
        "pusht",
    )
    assert (config.eval_freq, config.eval.batch_size, config.eval.n_episodes) == (1000, 32, 64)
    assert (config.steps, config.batch_size, config.log_freq, config.wandb.enable) == (30_000, 64, 50, True)
    assert len(flattened(TrainConfig, read_flags(AUTHORS))) == len(AUTHORS)


def test_the_authors_command_passes_every_check_with_local_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gym_pusht", reason="needs the extra: pip install '.[pusht]'")
    demos, tokenizer, run = (str(tmp_path / name) for name in ("demos", "tokenizer", "run"))
    made = ["--env.type=pusht", "--episodes=2", "--video=false", f"--output={demos}"]
    assert main(["dataset", "make-demos", *made]) == 0
    fitted = [f"--dataset.root={demos}", "--vocab_size=256", f"--output={tokenizer}"]
    assert main(["train-tokenizer", *fitted]) == 0
    local = [
        f"--dataset.root={demos}",
        "--policy.vlm_checkpoint=tiny",
        f"--policy.fast_tokenizer_path={tokenizer}",
        f"--output_dir={run}",
        "--policy.device=cpu",
    ]
    assert main(["train", *AUTHORS, *local, "--check"]) == 0
    shown = capsys.readouterr()
    assert "observation.image" in shown.out + shown.err
    assert not Path(run).exists()
