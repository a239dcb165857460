"""A report of an action tokenizer on a dataset's chunks: the number of tokens, and the error after decoding."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer

LINE, PALE = "#2f6fde", "#a9c4f5"


@dataclass(frozen=True)
class TokenizerReport:
    """Statistics over some chunks.

    Attributes:
        tokens: of each chunk, (N,).
        error: mean error of decoded chunks, by dimension, (D,), normalized.
        largest: the largest error, by dimension, (D,).
        example, decoded: the chunk with the median error, (T, D), and its decoded form.
    """

    tokens: NDArray[np.int64]
    numbers: int
    error: NDArray[np.float64]
    largest: NDArray[np.float64]
    example: NDArray[Any]
    decoded: NDArray[Any]

    @classmethod
    def of(cls, tokenizer: FASTTokenizer, chunks: NDArray[Any]) -> TokenizerReport:
        """Encode and decode chunks (N, T, D)."""
        ids = tokenizer.encode(chunks)
        steps, size = chunks.shape[1:]
        decoded = tokenizer.decode(ids, steps, size)
        error = np.abs(decoded - chunks)
        median = int(np.argsort(error.mean((1, 2)))[len(chunks) // 2])
        return cls(
            np.array([len(row) for row in ids]),
            steps * size,
            error.mean((0, 1)),
            error.max((0, 1)),
            chunks[median],
            decoded[median],
        )

    @property
    def compression(self) -> float:
        """Numbers per token."""
        return float(self.numbers / self.tokens.mean())

    def picture(self, names: Sequence[str]) -> bytes:
        """Draw a PNG: tokens per chunk, error by dimension, and a chunk before and after."""
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        left.hist(self.tokens, bins=np.arange(self.tokens.min(), self.tokens.max() + 2) - 0.5, color=LINE)
        left.set(title="Tokens a chunk", xlabel=f"tokens for {self.numbers} numbers", ylabel="chunks")
        rows = np.arange(len(names))
        middle.barh(rows, self.largest, color=PALE, label="largest")
        middle.barh(rows, self.error, color=LINE, label="mean")
        middle.set(title="Error by joint, normalized", yticks=rows, yticklabels=names)
        middle.invert_yaxis()
        middle.set_xlim(0, 1.25 * max(self.largest.max(), 1e-6))
        middle.legend(frameon=False, loc="lower right")
        for dimension, name in enumerate(names[:8]):
            (line,) = right.plot(self.example[:, dimension], label=name)
            right.plot(self.decoded[:, dimension], color=line.get_color(), linestyle="--", alpha=0.7)
        right.set(title="A chunk, and what is decoded (dashed)", xlabel="step")
        right.legend(frameon=False, fontsize="small")
        for axes in (left, middle, right):
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        return buffer.getvalue()
