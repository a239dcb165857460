"""SmolAndFAST's prompts: the user's turn with images, task and state as numbers, in SmolVLM's format."""

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

IMAGE_TOKEN, FAKE_TOKEN, GLOBAL_TOKEN = "<image>", "<fake_token_around_image>", "<global-img>"
"""SmolVLM's special tokens: for a part of an image, around an image, and in front of a global image."""

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The published SmolVLM2's template, for folders without one."""

FETCH_HINT = "Fetch or copy it again."


def state_bins(state: Tensor, n_bins: int) -> tuple[Tensor, int]:
    """Return the bin of each normalized state value, and the number of values outside of [−1, 1].

    Args:
        state: (B, D).
        n_bins: of equal width over [−1, 1], counted from 0; values outside fall into the first or last.
    """
    edges = torch.linspace(-1, 1, n_bins + 1, device=state.device)[:-1]
    bins = torch.bucketize(state, edges) - 1
    outside = int(((state < -1) | (state > 1)).sum())
    return bins.clamp(0, n_bins - 1), outside


def instruction(task: str, bins: Sequence[int]) -> str:
    """Write task and state as text."""
    words = task.lower().strip().replace("_", " ")
    return f"Task: {words}, State: {' '.join(map(str, bins))}, Action: "


def prompt(text: str, images: Sequence[str], template: str = CHAT_TEMPLATE) -> str:
    """Write the user's turn, followed by the start of the answer: `images` are those of `image_tokens`, `text` comes after them.

    Raises:
        CheckpointError: the VLM's chat template can't be rendered, or does not have one placeholder for each image.
    """
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    try:
        rendered: str = _compile_template(template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
    except TemplateError as error:
        raise CheckpointError(f"The VLM's chat template can't be rendered: {error}") from error
    parts = rendered.split(IMAGE_TOKEN)
    if len(parts) != len(images) + 1:
        raise CheckpointError(
            f"The VLM's chat template has {len(parts) - 1} places for {len(images)} images: expected one each."
        )
    return parts[0] + "".join(image + rest for image, rest in zip(images, parts[1:], strict=True))


def image_tokens(count: int, rows: int = 0, columns: int = 0) -> str:
    """Write the tokens of an image: `count` of the global image, after as many of each tile of a rows × columns grid."""
    pieces = IMAGE_TOKEN * count
    tiles = "".join(
        "".join(f"{FAKE_TOKEN}<row_{row + 1}_col_{column + 1}>{pieces}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    return f"{tiles}{chr(10) if tiles else ''}{FAKE_TOKEN}{GLOBAL_TOKEN}{pieces}{FAKE_TOKEN}"


def chat_template(folder: Path) -> str:
    """Return the chat template of a VLM's folder; the published one where the folder has none.

    Raises:
        CheckpointError: a file is damaged.
    """
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            template = read_json_object(path, FETCH_HINT).get("chat_template")
            if isinstance(template, str):
                return template
    return CHAT_TEMPLATE


@lru_cache(maxsize=8)
def _compile_template(template: str) -> Any:
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
