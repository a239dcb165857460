"""`smolact train-tokenizer`: fit FAST action tokens on a dataset, and see what they keep and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset
from smolact.cli.progress import announce
from smolact.errors import ConfigError
from smolact.settings import at_least, setting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smolact.datasets.reader import LeRobotDataset
    from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
    from smolact.policies.smolandfast.tokenizer_report import TokenizerReport

USAGE = "smolact train-tokenizer --dataset.root=FOLDER --chunk_size=10 --output=FOLDER [--scale=10] [--vocab_size=1024]"
MODES = ("min_max", "quantiles")
PICTURE = "tokenizer.png"


@dataclass
class TokenizedDataset(WhichDataset):
    """The dataset whose actions are encoded."""

    episodes: list[int] | None = setting(None, "Only these episodes.")


@dataclass
class TokenizerConfig:
    """Settings of `smolact train-tokenizer`."""

    dataset: TokenizedDataset = field(default_factory=TokenizedDataset)
    output: Path | None = setting(None, "The folder of the tokenizer; it must not hold one yet.")
    chunk_size: int = setting(10, "Steps of a chunk: the policy's.")
    scale: float = setting(10.0, "Of the coefficients before rounding: finer, and more tokens.")
    vocab_size: int = setting(1024, "At most so many tokens.")
    normalization: str = setting(
        "min_max", f"What actions are before they are encoded: {' or '.join(MODES)}."
    )
    max_chunks: int = setting(100_000, "Fit on so many chunks at most, drawn at random.")
    seed: int = setting(0, "Of that draw.")

    def __post_init__(self) -> None:
        if self.normalization not in MODES:
            raise ConfigError(
                f"--normalization={self.normalization}: FAST needs actions in about [-1, 1]; use {' or '.join(MODES)}."
            )
        if not self.scale > 0:
            raise ConfigError(f"--scale={self.scale:g}: expected a number above 0.")
        for name in ("chunk_size", "vocab_size", "max_chunks"):
            at_least(name, getattr(self, name), 1)


@command(TokenizerConfig, USAGE)
def run(config: TokenizerConfig) -> None:
    """Fit and save a tokenizer, and print its report."""
    source = config.dataset.root or config.dataset.repo_id
    if source is None or config.output is None:
        missing = "--dataset.root=FOLDER" if source is None else "--output=FOLDER"
        raise ConfigError(f"`smolact train-tokenizer` needs {missing}: {USAGE}")
    from smolact.lock import is_unused, writing_into

    with writing_into(config.output, instead="choose another --output"):
        if not is_unused(config.output):
            raise ConfigError(f"{config.output} is not empty. Choose another --output, or remove it.")
        fit(config, str(source), config.output)


def fit(config: TokenizerConfig, source: str, output: Path) -> None:
    """Fit a tokenizer on the dataset `source`, save it to the folder `output`, and print its report.

    Raises:
        SmolactError: the dataset or its chunks are unusable, or writing fails.
    """
    announce(f"Reading {source} …")
    from smolact import durable
    from smolact.datasets.reader import LeRobotDataset
    from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
    from smolact.policies.smolandfast.tokenizer_report import TokenizerReport

    dataset = LeRobotDataset(
        source,
        root=config.dataset.root,
        episodes=config.dataset.episodes,
        revision=config.dataset.revision,
    )
    chunks = normalized_chunks(dataset, config)
    announce(f"Fitting the tokens of {len(chunks)} chunks …")
    tokenizer = FASTTokenizer.fit(chunks, scale=config.scale, vocab_size=config.vocab_size)
    report = TokenizerReport.of(tokenizer, chunks)
    names = joint_names(dataset)
    tokenizer.save(output)
    durable.write_bytes(output / PICTURE, report.picture(names))
    show(config, tokenizer, report, names, len(chunks))


def normalized_chunks(dataset: LeRobotDataset, config: TokenizerConfig) -> NDArray[Any]:
    """Return the dataset's action chunks, normalized as for a policy, (N, T, D).

    Raises:
        ConfigError: no episode is as long as a chunk, or the dataset lacks a statistic.
    """
    import numpy as np
    import torch

    from smolact.processors.normalize import normalize
    from smolact.processors.quantiles import (
        MINIMUM_AND_MAXIMUM,
        STATISTICS_OF,
        is_degenerate,
        warn_of_degenerate,
        with_usable_quantiles,
    )
    from smolact.types import ACTION, NormalizationMode

    longest = int(dataset.meta.episodes.length[dataset.episodes].max())
    if config.chunk_size > longest:
        raise ConfigError(
            f"--chunk_size={config.chunk_size}: {dataset.repo_id}'s longest episode has {longest} frames. Lower it."
        )
    frames = dataset.frames_before_end(config.chunk_size - 1)
    if len(frames) > config.max_chunks:
        frames = np.sort(np.random.default_rng(config.seed).choice(frames, config.max_chunks, replace=False))
    mode = NormalizationMode[config.normalization.upper()]
    stats = dataset.meta.stats.get(ACTION, {})
    missing = [name for name in STATISTICS_OF[mode] if name not in stats]
    if missing:
        raise ConfigError(
            f"The dataset has no statistic '{missing[0]}' of '{ACTION}', which --normalization={config.normalization} needs. "
            f"Use --normalization={'min_max' if mode is NormalizationMode.QUANTILES else 'quantiles'}, or compute it."
        )
    values = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in stats.items()}
    mask = is_degenerate(values, mode)
    if mask is not None:
        warn_of_degenerate(ACTION, mode, mask, MINIMUM_AND_MAXIMUM)
    low, high = (with_usable_quantiles(values, mode)[name] for name in STATISTICS_OF[mode])
    actions = torch.from_numpy(dataset.windows(ACTION, config.chunk_size, frames)).float()
    return normalize(actions, (low, high), mode).numpy()


def joint_names(dataset: LeRobotDataset) -> list[str]:
    """Return the names of the action's dimensions, or their indices if they have none."""
    from smolact.types import ACTION

    feature = dataset.features[ACTION]
    return feature.dimension_names or [str(number) for number in range(feature.shape[0])]


def show(
    config: TokenizerConfig,
    tokenizer: FASTTokenizer,
    report: TokenizerReport,
    names: Sequence[str],
    chunks: int,
) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    tokens = report.tokens
    console.print(
        f"{chunks} chunks of {config.chunk_size} x {len(names)} numbers: {tokens.mean():.1f} tokens each "
        f"({tokens.min()} to {tokens.max()}), {report.compression:.2f} numbers a token; {tokenizer.vocab_size} tokens in use"
    )
    table = Table("joint", "mean error", "largest error", title="normalized: the range is 2")
    for name, mean, largest in zip(names, report.error, report.largest, strict=True):
        table.add_row(name, f"{mean:.4f}", f"{largest:.4f}")
    console.print(table)
    console.print(f"{config.output}\n{Path(str(config.output)) / PICTURE}", soft_wrap=True)
