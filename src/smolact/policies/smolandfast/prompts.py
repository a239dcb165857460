"""What SmolAndFAST reads: the user's turn with its images, the task and the state as numbers, written as SmolVLM writes it."""

# B batch, D state values.

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from torch import Tensor

from smolact.errors import CheckpointError
from smolact.files import read_json_object

IMAGE, FAKE, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
"""SmolVLM's tokens: a piece of an image, what stands around an image, and the name of the whole one."""

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The published SmolVLM2's, for folders that come without one."""


FETCH = "Fetch or copy it again."


def state_bins(state: Tensor, n_bins: int) -> tuple[Tensor, int]:
    """The bin of each normalized state value, and how many values lay outside of [−1, 1].

    Args:
        state: (B, D).
        n_bins: of equal width over [−1, 1], counted from 0; what lies outside falls into the first or last.
    """
    edges = torch.linspace(-1, 1, n_bins + 1, device=state.device)[:-1]
    bins = torch.bucketize(state, edges) - 1
    outside = int(((state < -1) | (state > 1)).sum())
    return bins.clamp(0, n_bins - 1), outside


def instruction(task: str, bins: Sequence[int]) -> str:
    """Task and state as text."""
    words = task.lower().strip().replace("_", " ")
    return f"Task: {words}, State: {' '.join(map(str, bins))}, Action: "


def prompt(text: str, images: Sequence[str], template: str = CHAT_TEMPLATE) -> str:
    """The user's turn, open for the answer: `images` are those of `image_tokens`, `text` comes after them.

    Raises:
        CheckpointError: the VLM's chat template can't be rendered, or has not one place for each image.
    """
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    try:
        rendered: str = _compiled(template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
    except TemplateError as error:
        raise CheckpointError(f"The VLM's chat template can't be rendered: {error}") from error
    places = rendered.split(IMAGE)
    if len(places) != len(images) + 1:
        raise CheckpointError(
            f"The VLM's chat template has {len(places) - 1} places for {len(images)} images: expected one each."
        )
    return places[0] + "".join(image + rest for image, rest in zip(images, places[1:], strict=True))


def image_tokens(count: int, rows: int = 0, columns: int = 0) -> str:
    """The tokens of an image: `count` of it whole, and before them as many of each tile of a rows × columns grid."""
    pieces = IMAGE * count
    tiles = "".join(
        "".join(f"{FAKE}<row_{row + 1}_col_{column + 1}>{pieces}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    return f"{tiles}{chr(10) if tiles else ''}{FAKE}{WHOLE}{pieces}{FAKE}"


def chat_template(folder: Path) -> str:
    """The chat template of a VLM's folder; the published one where the folder has none.

    Raises:
        CheckpointError: a file is damaged.
    """
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            found = read_json_object(path, FETCH).get("chat_template")
            if isinstance(found, str):
                return found
    return CHAT_TEMPLATE


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
