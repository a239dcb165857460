"""The plots and the table of docs/learn/fast.md: python scripts/guide/fast.py

The chunks are those of the tabletop's scripted expert, disturbed while it demonstrates, normalized to [−1, 1].
"""

from __future__ import annotations

import matplotlib
import numpy as np
from numpy.typing import NDArray
from page import GREY, IMAGES, ORANGE, STYLE, TEAL, put, table

from smolact.envs.demonstrations import ActionNoise, demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import env_id, make_env
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer, _dct

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS, SCALE = 16, 10.0


def expert_chunks(episodes: int = 40) -> NDArray[np.float64]:
    """Chunks (N, 16, 2), normalized by their smallest and largest values."""
    with make_env("tabletop") as envs:
        expert = expert_for(env_id("tabletop"))
        assert expert is not None
        shown = [
            np.asarray(each.frames["action"])
            for each in demonstrations(envs[0], expert, episodes, noise=ActionNoise())
        ]
    low, high = np.concatenate(shown).min(0), np.concatenate(shown).max(0)
    scaled = [(actions - low) / (high - low) * 2 - 1 for actions in shown]
    return np.stack([a[i : i + STEPS] for a in scaled for i in range(len(a) - STEPS + 1)]).astype(np.float64)


def plot_waves(chunk: NDArray[np.float64]) -> None:
    """A chunk, its frequencies, and what is left of it when only the first are kept."""
    waves = _dct(STEPS) @ chunk
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.9))
    axes[0].plot(chunk, marker=".")
    axes[0].set(title="a chunk: 16 steps, 2 dimensions", xlabel="step", ylabel="action")
    places = np.arange(STEPS)
    for d in range(chunk.shape[1]):
        axes[1].bar(places + 0.4 * d - 0.2, np.around(waves[:, d] * SCALE), width=0.4)
    axes[1].axhline(0, color=GREY, linewidth=0.5)
    axes[1].set(title="its cosines, times 10, rounded", xlabel="frequency")
    axes[2].plot(chunk[:, 0], color=GREY, marker=".", label="dimension 0")
    for kept, color in ((1, ORANGE), (4, TEAL)):
        cut = np.where(places[:, None] < kept, waves, 0)
        axes[2].plot(
            (_dct(STEPS).T @ cut)[:, 0],
            color=color,
            label=f"{kept} frequenc{'y' if kept == 1 else 'ies'} of 16",
        )
    axes[2].set(title="low frequencies carry the motion", xlabel="step")
    axes[2].legend(fontsize=7)
    figure.savefig(IMAGES / "fast_waves.png")


def plot_scales(chunks: NDArray[np.float64]) -> list[list[str]]:
    """Tokens against error over the scale; and the rows of the table."""
    rows = [["`--scale`", "tokens a chunk, mean", "most", "mean error", "largest"]]
    scales = (2.0, 5.0, 10.0, 20.0, 40.0)
    counts, errors = [], []
    for scale in scales:
        tokenizer = FASTTokenizer.fit(chunks, scale=scale, vocab_size=1024)
        ids = tokenizer.encode(chunks)
        error = np.abs(tokenizer.decode(ids) - chunks)
        lengths = [len(each) for each in ids]
        counts.append(float(np.mean(lengths)))
        errors.append(float(error.mean()))
        rows.append(
            [f"{scale:g}", f"{counts[-1]:.1f}", str(max(lengths)), f"{errors[-1]:.4f}", f"{error.max():.3f}"]
        )
    figure, axis = plt.subplots(figsize=(5.6, 2.9))
    axis.semilogy(counts, errors, marker="o", markersize=4)
    for scale, count, error in zip(scales, counts, errors, strict=True):
        axis.annotate(
            f"scale {scale:g}",
            (count, error),
            textcoords="offset points",
            xytext=(6, 4),
            color=GREY,
            fontsize=8,
        )
    axis.axvline(STEPS * 2, color=ORANGE, linewidth=1, linestyle=":")
    axis.text(STEPS * 2, max(errors), "one token a value ", color=ORANGE, fontsize=8, ha="right", va="top")
    axis.set(xlabel="tokens a chunk", ylabel="mean error", title="what a token buys")
    figure.savefig(IMAGES / "fast_scale.png")
    return rows


def walk(chunks: NDArray[np.float64]) -> str:
    """One chunk on its way to tokens, in numbers."""
    tokenizer = FASTTokenizer.fit(chunks, scale=SCALE, vocab_size=1024)
    chunk = chunks[:1]
    coefficients = np.around(_dct(STEPS) @ chunk * SCALE).astype(int)[0]
    ids = tokenizer.encode(chunk)
    error = np.abs(tokenizer.decode(ids) - chunk).max()
    return table(
        [
            ["a chunk", ""],
            ["values", str(chunk.size)],
            ["coefficients, low frequencies first", " ".join(map(str, coefficients.flatten()))],
            ["of them not 0", str(int((coefficients != 0).sum()))],
            [
                "tokens",
                f"{' '.join(map(str, ids[0]))} ({len(ids[0])} of a vocabulary of {tokenizer.vocab_size})",
            ],
            ["largest error after decoding", f"{error:.3f} of a range of 2"],
        ]
    )


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    all_chunks = expert_chunks()
    plot_waves(all_chunks[0])
    put("learn/fast.md", {"walk": walk(all_chunks), "scales": table(plot_scales(all_chunks))})
