from __future__ import annotations

import json
import logging
import pickle
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from smolact.backbones.presets import TOKENIZER_FOLDER
from smolact.errors import CheckpointError, ConfigError, FeatureError, NotFoundError
from smolact.processors.tokenizer import Tokenizer, TokenizerProcessorStep
from smolact.types import LANGUAGE_MASK, LANGUAGE_TOKENS
from tests.processors.conftest import TINY_VLM

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_tokenizer.py"
TEXTS = ["Grasp the lego block.\n", "Go.\n", "Schön: 漢字 🤖 <image>\n"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_VLM, tmp_path / "vlm"))


def test_shorter_texts_are_filled_up_to_the_longest(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.encode_batch(TEXTS)
    lengths = [len(tokenizer.encode(text)) for text in TEXTS]
    assert ids.shape == mask.shape == (3, max(lengths))
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert mask.sum(dim=1).tolist() == lengths
    assert (ids[~mask] == tokenizer.pad_token_id).all()
    assert tokenizer.pad_token_id == tokenizer.token_id("<|im_end|>") == 2
    for text, row, own in zip(TEXTS, ids, mask, strict=True):
        assert tokenizer.decode(row[own].tolist()) == text


def test_padding_on_the_left_moves_the_same_tokens_to_the_right(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.encode_batch(TEXTS, padding_side="left")
    right_ids, right_mask = tokenizer.encode_batch(TEXTS, padding_side="right")
    assert mask[:, -1].all()
    assert torch.equal(ids[mask], right_ids[right_mask])


def test_padding_to_the_full_length(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.encode_batch(TEXTS[:2], max_length=32, padding="max_length")
    assert ids.shape == (2, 32)
    assert mask.any(dim=1).all()


def test_a_longer_text_loses_its_end(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.encode_batch(TEXTS[:2], max_length=4)
    assert ids.shape == (2, 4)
    assert ids[0].tolist() == tokenizer.encode(TEXTS[0])[:4]
    assert mask.sum(dim=1).tolist() == [4, len(tokenizer.encode(TEXTS[1]))]


def test_special_tokens_that_the_tokenizer_adds_survive_truncation(folder: Path) -> None:
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A <end_of_utterance>",
        special_tokens=[("<|im_start|>", 1), ("<end_of_utterance>", 6)],
    )
    inner.enable_truncation(2)
    inner.enable_padding(length=50)
    inner.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    whole, cut = tokenizer.encode(TEXTS[0]), tokenizer.encode(TEXTS[0], max_length=5)
    assert (whole[0], whole[-1]) == (1, 6)
    assert cut == [*whole[:4], 6]
    with pytest.raises(ConfigError, match="do not even hold"):
        tokenizer.encode(TEXTS[0], max_length=1)


def test_the_vocabulary_is_counted_without_and_with_added_tokens(folder: Path) -> None:
    before = Tokenizer.from_folder(folder)
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.add_special_tokens(["<late>"])
    inner.save(str(folder / "tokenizer.json"))
    after = Tokenizer.from_folder(folder)
    assert (after.vocab_size, len(after)) == (before.vocab_size, len(before) + 1)


def test_an_unknown_token_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="'<video>'"):
        tokenizer.token_id("<video>")


def test_a_tokenizer_goes_to_another_process(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(again.encode_batch(TEXTS)[0], tokenizer.encode_batch(TEXTS)[0])


@pytest.mark.parametrize("pad", [{"content": "<|endoftext|>", "special": True}, "<|endoftext|>"])
def test_the_padding_token_may_be_named_in_the_older_file(folder: Path, pad: Any) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    assert Tokenizer.from_folder(folder).pad_token_id == 0


def test_a_folder_without_padding_token_is_an_error(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="no padding token is named"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(CheckpointError, match="'<pad>' is not in the vocabulary"):
        Tokenizer.from_folder(folder)


def test_the_side_that_is_cut_is_the_folders(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode(TEXTS[0], max_length=3) == tokenizer.encode(TEXTS[0])[-3:]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "top"}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: truncation_side='top'"):
        Tokenizer.from_folder(folder)


def test_a_folder_without_tokenizer_says_what_is_near(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokeniser.json")
    with pytest.raises(NotFoundError, match=r"tokenizer\.json is missing.*Did you mean 'tokeniser\.json'"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_an_error_that_names_it(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}|no padding token"):
        Tokenizer.from_folder(folder)


def step(own: Tokenizer, **config: Any) -> TokenizerProcessorStep:
    return TokenizerProcessorStep(**{"max_length": 48, "padding": "longest", "tokenizer": own, **config})


def test_a_text_and_a_list_of_texts_give_the_same_tokens(tokenizer: Tokenizer) -> None:
    alone, listed = (step(tokenizer)({"task": task}) for task in (TEXTS[0], [TEXTS[0]]))
    assert torch.equal(alone[LANGUAGE_TOKENS], listed[LANGUAGE_TOKENS])
    assert alone[LANGUAGE_MASK].all()


def test_a_task_that_is_too_long_is_told_once(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    short = step(tokenizer, max_length=4)
    for _ in range(3):
        batch = short({"task": ["Go.\n", TEXTS[0]]})
    assert batch[LANGUAGE_TOKENS].shape == (2, 4)
    [message] = [record.getMessage() for record in caplog.records]
    assert TEXTS[0].strip() in message
    assert f"{len(tokenizer.encode(TEXTS[0]))} tokens" in message
    assert "--policy.tokenizer_max_length" in message


def test_a_task_that_just_fits_is_not_told(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    step(tokenizer, max_length=len(tokenizer.encode(TEXTS[0])))({"task": TEXTS[0]})
    assert not caplog.records


def test_without_truncation_the_row_grows(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    batch = step(tokenizer, max_length=4, truncation=False)({"task": TEXTS[0]})
    assert batch[LANGUAGE_TOKENS].tolist() == [tokenizer.encode(TEXTS[0])]
    full = step(tokenizer, max_length=20, truncation=False, padding="max_length")({"task": TEXTS[0]})
    assert full[LANGUAGE_TOKENS].shape == (1, 20)
    assert not caplog.records


@pytest.mark.parametrize("task", ["", " ", "\n", ["Go.\n", "\n"]])
def test_an_empty_task_is_an_error(tokenizer: Tokenizer, task: Any) -> None:
    with pytest.raises(ConfigError, match=r"task of sample \d is empty"):
        step(tokenizer)({"task": task})


@pytest.mark.parametrize("task", [3, [3], {"a": "b"}, ["go", None], b"go"])
def test_a_task_that_is_no_text_is_an_error(tokenizer: Tokenizer, task: Any) -> None:
    with pytest.raises(FeatureError, match="expected a text"):
        step(tokenizer)({"task": task})


@pytest.mark.parametrize("data", [{"observation.state": 1}, {"observation.state": 1, "task": None}])
def test_a_missing_task_is_an_error(tokenizer: Tokenizer, data: dict[str, Any]) -> None:
    with pytest.raises(FeatureError, match=r"no 'task'.*observation\.state"):
        step(tokenizer)(data)


def test_a_name_that_is_no_folder_needs_a_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'owner/model' is not a folder.*--policy\.vlm_model_name"):
        TokenizerProcessorStep(tokenizer_name="owner/model")
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        TokenizerProcessorStep()
    assert TokenizerProcessorStep(tokenizer_name="owner/model", tokenizer=tokenizer).get_config() == {
        "max_length": 512,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": "owner/model",
    }


@pytest.mark.parametrize(
    "config",
    [
        {"padding": "shortest"},
        {"padding": True},
        {"padding_side": "top"},
        {"max_length": 0},
        {"max_length": 4.5},
        {"max_length": True},
        {"task_key": 3},
        {"tokenizer": "gpt2"},
    ],
)
def test_a_setting_that_does_not_exist_is_an_error(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(config))):
        step(tokenizer, **config)


def test_the_shipped_tokenizer_is_what_the_script_trains(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["write"](script["train"](), tmp_path)
    assert script["SHIPPED"] == TOKENIZER_FOLDER
    names = sorted(path.name for path in TOKENIZER_FOLDER.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        new, shipped = tmp_path / name, TOKENIZER_FOLDER / name
        if (
            name == "tokenizer.json"
        ):  # another version of the library may write the same vocabulary in another way
            new_model, shipped_model = (tokenizers.Tokenizer.from_file(str(path)) for path in (new, shipped))
            assert new_model.get_vocab() == shipped_model.get_vocab()
        else:
            assert new.read_bytes() == shipped.read_bytes()
    assert sum((TOKENIZER_FOLDER / name).stat().st_size for name in names) < 100_000


def test_the_shipped_tokenizer_holds_any_text_and_is_short_on_instructions() -> None:
    tokenizer = Tokenizer.from_folder(TOKENIZER_FOLDER)
    assert tokenizer.vocab_size == len(tokenizer) == 1024
    assert [tokenizer.token_id(name) for name in ("<|im_end|>", "<image>")] == [2, 4]
    assert tokenizer.pad_token_id == 2
    for text in (*TEXTS, "\x00\t  x\r\n", "Push the red cube 12.5 cm to the left.\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    instruction = "Pick up the red cube and place it on the blue plate.\n"
    assert len(tokenizer.encode(instruction)) <= len(instruction.split()) + 2
