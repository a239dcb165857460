"""Prompts and tiles against what the reference's processor gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from smolact.errors import CheckpointError
from smolact.policies.smolandfast.prompts import (
    chat_template,
    image_tokens,
    instruction,
    prompt,
    state_bins,
)
from smolact.policies.smolandfast.tiles import split

DATA = Path(__file__).parents[2] / "parity" / "data"
CASE = json.loads((DATA / "smolandfast" / "case.json").read_text())
EXPECTED = load_file(DATA / "smolandfast" / "expected.safetensors")
TEMPLATE = chat_template(DATA / "tiny_vlm")
TOKENIZER = Tokenizer.from_file(str(DATA / "tiny_vlm" / "tokenizer.json"))


def test_bins_and_prompts_are_the_references() -> None:
    bins, outside = state_bins(EXPECTED["state"], CASE["n_state_bins"])
    assert torch.equal(bins, EXPECTED["state_bins"])
    assert outside == 0
    for row, task in enumerate(CASE["tasks"]):
        text = instruction(task, bins[row].tolist())
        assert prompt(text, ["<image>"], TEMPLATE) == CASE["prompts"][row]
        ids = TOKENIZER.encode(prompt(text, [image_tokens(4)], TEMPLATE), add_special_tokens=False).ids
        answer = len(CASE["fast_tokens"][row]) + 1
        whole = EXPECTED["input_ids"][row][EXPECTED["attention_mask"][row].bool()]
        assert ids == whole[:-answer].tolist()


def test_states_outside_the_range_are_clipped_and_counted() -> None:
    bins, outside = state_bins(torch.tensor([[-1.0, 1.0], [-3.0, 7.0]]), 16)
    assert bins.tolist() == [[0, 15], [0, 15]]
    assert outside == 2


@pytest.mark.parametrize("name", ["single", "split"])
def test_images_become_the_references_pixels_and_tokens(name: str) -> None:
    expected = load_file(DATA / "smolvlm" / f"{name}.safetensors")
    picture = expected["image"].numpy()
    tiles = split(picture, 64, 128 if name == "split" else 64)
    if name == "split":
        pixels = torch.from_numpy(tiles.pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        torch.testing.assert_close(pixels, expected["pixel_values"][0], atol=1e-6, rtol=0)
    tokens = image_tokens(4, tiles.rows, tiles.columns)
    decoded = TOKENIZER.decode(expected["input_ids"][0].tolist(), skip_special_tokens=False)
    assert tokens in decoded
    text = decoded.split("<fake_token_around_image>")[-1].split("<end_of_utterance>")[0]
    ids = TOKENIZER.encode(prompt(text, [tokens], TEMPLATE), add_special_tokens=False).ids
    assert ids == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (300, 40), (1, 1), (63, 65)])
def test_any_shape_becomes_whole_tiles(size: tuple[int, int]) -> None:
    tiles = split(torch.zeros(*size, 3, dtype=torch.uint8).numpy(), 64, 128)
    assert len(tiles.pictures) == tiles.rows * tiles.columns + 1
    assert tiles.pictures.shape[1:] == (64, 64, 3)


def test_several_cameras_stand_one_after_the_other() -> None:
    written = prompt("Go", ["A", "B"])
    assert written == "<|im_start|>User:ABGo<end_of_utterance>\nAssistant:"


def test_a_template_is_found_in_any_of_its_places(tmp_path: Path) -> None:
    assert "Assistant" in chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "T"}))
    assert chat_template(tmp_path) == "T"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "C"}))
    assert chat_template(tmp_path) == "C"
    (tmp_path / "chat_template.json").write_text("[")
    with pytest.raises(CheckpointError, match="damaged"):
        chat_template(tmp_path)


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{% for", "no place", "{{ messages.append(1) }}"]
)
def test_a_template_that_does_not_fit_or_reaches_out_is_refused(template: str) -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        prompt("x", ["A"], template)
