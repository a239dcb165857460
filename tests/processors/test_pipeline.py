from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from smolact.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    NotFoundError,
    SmolactError,
    StatisticsError,
)
from smolact.processors import step as registry
from smolact.processors.factory import make_default_steps, make_pipelines
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.step import ProcessorStep, find_step, register_step, registered_steps
from smolact.processors.steps import SmolVLANewLineProcessor
from smolact.processors.tokenizer import Tokenizer, TokenizerProcessorStep
from smolact.types import LANGUAGE_MASK, LANGUAGE_TOKENS, FeatureType, NormalizationMode, PolicyFeature
from tests.processors.conftest import CHECKPOINT, DATA, same

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
PRE_STATE = "policy_preprocessor_step_5_normalizer_processor.safetensors"
POST_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


@pytest.fixture
def load(tokenizer: Tokenizer) -> Callable[..., ProcessorPipeline]:
    """Opens a preprocessor with the tiny tokenizer: the name in the file is not a folder here."""

    def open_it(folder: Path, **overrides: Any) -> ProcessorPipeline:
        return ProcessorPipeline.from_pretrained(
            folder, PRE, overrides={"tokenizer_processor": {"tokenizer": tokenizer}, **overrides}
        )

    return open_it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (PRE, POST, PRE_STATE, POST_STATE):
        shutil.copyfile(CHECKPOINT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    known = dict(registry._REGISTRY)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(known)


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def observation() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path = DATA / "lerobot_checkpoint" / "expected_pipeline.safetensors"
    with safe_open(path, "pt") as file:
        task = file.metadata()["task"]
    tensors = safetensors.torch.load_file(path)
    data = {
        key.removeprefix("in/"): value for key, value in tensors.items() if key.startswith("in/observation.")
    }
    return {**data, "task": task}, tensors


def test_a_checkpoint_of_lerobot_gives_its_tokens_and_state(load: Callable[..., ProcessorPipeline]) -> None:
    data, expected = observation()
    before = copy.deepcopy(data)
    batch = load(CHECKPOINT)(data)
    assert torch.equal(batch[LANGUAGE_TOKENS], expected["out/tokens"])
    assert torch.equal(batch[LANGUAGE_MASK], expected["out/token_mask"])
    torch.testing.assert_close(batch["observation.state"], expected["out/normalized_state"])
    assert torch.equal(batch["observation.images.top"], data["observation.images.top"][None])
    assert same(data, before)


def test_a_checkpoint_of_lerobot_gives_its_actions() -> None:
    _, expected = observation()
    chunk = expected["out/normalized_chunk"]
    before = chunk.clone()
    actions = ProcessorPipeline.from_pretrained(CHECKPOINT, POST)(chunk)
    torch.testing.assert_close(actions, expected["out/action_chunk"])
    assert torch.equal(chunk, before)


def test_saving_writes_the_bytes_that_were_read(
    load: Callable[..., ProcessorPipeline], tmp_path: Path
) -> None:
    load(CHECKPOINT).save_pretrained(tmp_path / "new")
    ProcessorPipeline.from_pretrained(CHECKPOINT, POST).save_pretrained(tmp_path / "new")
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert written == {name: (CHECKPOINT / name).read_bytes() for name in (PRE, POST, PRE_STATE, POST_STATE)}


def test_new_pipelines_have_the_form_of_lerobots(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cameras = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 96))
        for name in ("top", "wrist")
    }
    modes = {
        FeatureType.VISUAL: NormalizationMode.IDENTITY,
        FeatureType.STATE: NormalizationMode.MEAN_STD,
        FeatureType.ACTION: NormalizationMode.MEAN_STD,
    }
    stats: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in safetensors.torch.load_file(CHECKPOINT / PRE_STATE).items():
        feature, _, name = key.rpartition(".")
        stats.setdefault(feature, {})[name] = tensor
    steps = make_default_steps(
        {**cameras, "observation.state": PolicyFeature(FeatureType.STATE, (6,))},
        {"action": PolicyFeature(FeatureType.ACTION, (6,))},
        modes,
        stats,
    )
    tokens = TokenizerProcessorStep(
        max_length=48, padding="longest", tokenizer_name="tiny_vlm", tokenizer=tokenizer
    )
    before = [
        steps.rename_observations,
        steps.add_batch_dimension,
        SmolVLANewLineProcessor(),
        tokens,
        steps.to_device,
        steps.normalize,
    ]
    for pipeline in make_pipelines(before, [steps.unnormalize, steps.to_cpu]):
        pipeline.save_pretrained(tmp_path)
    for name in (PRE, POST, PRE_STATE):
        assert (tmp_path / name).read_bytes() == (CHECKPOINT / name).read_bytes()


def test_statistics_are_found_under_the_names_that_a_map_gives() -> None:
    features = {"observation.joints": PolicyFeature(FeatureType.STATE, (1,))}
    steps = make_default_steps(
        features,
        {},
        {FeatureType.STATE: NormalizationMode.MEAN_STD},
        {"observation.state": {"mean": [1.0], "std": [2.0]}},
        rename_map={"observation.state": "observation.joints"},
    )
    pipeline, _ = make_pipelines([steps.rename_observations, steps.add_batch_dimension, steps.normalize], [])
    assert pipeline({"observation.state": torch.tensor([5.0])})["observation.joints"].tolist() == [2.0]


def test_an_override_replaces_what_the_file_says(load: Callable[..., ProcessorPipeline]) -> None:
    data, _ = observation()
    stats = {name: {"mean": [0.0] * 6, "std": [1.0] * 6} for name in ("observation.state", "action")}
    batch = load(CHECKPOINT, normalizer_processor={"stats": stats})(data)
    torch.testing.assert_close(batch["observation.state"], data["observation.state"][None])
    with pytest.raises(DeviceError, match="cuda:97"):
        load(CHECKPOINT, device_processor={"device": "cuda:97"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"normaliser_processor": {}},
            r"no step 'normaliser_processor'.*Did you mean 'normalizer_processor'",
        ),
        ({"device_processor": {"devise": "cpu"}}, r"no field 'devise'.*Did you mean 'device'"),
    ],
)
def test_an_override_that_fits_nothing_is_an_error(
    load: Callable[..., ProcessorPipeline], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(CHECKPOINT, **overrides)


def test_unknown_fields_are_kept_and_told(
    folder: Path, load: Callable[..., ProcessorPipeline], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def add(config: dict[str, Any]) -> None:
        config["version"] = 2
        config["steps"][4]["config"]["non_blocking"] = True

    change(folder / PRE, add)
    load(folder).save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / PRE).read_text())
    assert saved == json.loads((folder / PRE).read_text())
    [message] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "device_processor" in message
    assert "non_blocking" in message


def test_an_unknown_step_is_an_error_that_says_how_to_register_it(
    folder: Path, load: Callable[..., ProcessorPipeline]
) -> None:
    change(folder / PRE, lambda config: config["steps"][1].update(registry_name="to_bach_processor"))
    with pytest.raises(CheckpointError, match=r"to_bach_processor") as caught:
        load(folder)
    for part in (
        PRE,
        "step 1",
        "Did you mean 'to_batch_processor'",
        "tokenizer_processor",
        '@register_step("to_bach',
    ):
        assert part in str(caught.value)


def test_a_step_given_by_its_python_path_is_not_imported(
    folder: Path, load: Callable[..., ProcessorPipeline]
) -> None:
    change(
        folder / PRE,
        lambda config: config["steps"].insert(0, {"class": "os.system", "config": {"command": "true"}}),
    )
    with pytest.raises(CheckpointError, match=r"os\.system.*nothing in a checkpoint is run.*@register_step"):
        load(folder)


@pytest.mark.usefixtures("no_leftovers")
def test_a_step_of_ones_own_is_saved_and_found_again(tmp_path: Path) -> None:
    @register_step("add_processor")
    class Add(ProcessorStep):
        def __init__(self, amount: float = 1.0) -> None:
            self.amount = torch.tensor(amount)

        def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
            return {**data, "action": data["action"] + self.amount}

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"amount": self.amount}

        def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
            self.amount = state["amount"]

    ProcessorPipeline([Add(2.5)], "mine").save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.json",
        "mine_step_0_add_processor.safetensors",
    ]
    again = ProcessorPipeline.from_pretrained(tmp_path, "mine.json")
    assert again(torch.tensor([1.0])).tolist() == [3.5]
    assert "add_processor" in registered_steps()
    with pytest.raises(ConfigError, match="'add_processor' belongs to"):
        register_step("add_processor")(type("Other", (Add,), {}))


def test_the_steps_of_smolvla_are_registered_under_lerobots_names() -> None:
    names = [
        entry["registry_name"]
        for name in (PRE, POST)
        for entry in json.loads((CHECKPOINT / name).read_text())["steps"]
    ]
    assert [find_step(name).registry_name for name in names] == names


@pytest.mark.parametrize("missing", [PRE, PRE_STATE])
def test_a_missing_file_is_an_error_that_names_it(
    folder: Path, load: Callable[..., ProcessorPipeline], missing: str
) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        load(folder)


def test_a_pipeline_is_saved_under_the_file_name_that_it_was_read_from(folder: Path) -> None:
    change(folder / POST, lambda config: config.update(name="../Away"))
    ProcessorPipeline.from_pretrained(folder, POST).save_pretrained(folder / "new")
    assert sorted(path.name for path in (folder / "new").iterdir()) == [POST, POST_STATE]


def test_the_name_of_a_pipeline_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    ProcessorPipeline([], "../Away").save_pretrained(tmp_path / "new")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")] == [
        "new/___away.json"
    ]


def test_a_missing_folder_says_what_is_near(folder: Path, load: Callable[..., ProcessorPipeline]) -> None:
    (folder / "checkpoint").mkdir()
    with pytest.raises(NotFoundError, match=r"chekpoint does not exist.*Did you mean 'checkpoint'"):
        load(folder / "chekpoint")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"[]",
        b"3",
        b"{}",
        b'{"steps": 3}',
        b'{"steps": [3]}',
        b'{"steps": [{}]}',
        b'{"steps": [], "name": 3}',
        b'{"steps": [{"registry_name": "device_processor", "config": 3}]}',
    ],
)
def test_a_damaged_configuration_is_an_error_that_names_it(folder: Path, content: bytes) -> None:
    (folder / PRE).write_bytes(content)
    with pytest.raises(CheckpointError, match=PRE):
        ProcessorPipeline.from_pretrained(folder, PRE)


@pytest.mark.parametrize(
    ("place", "config"),
    [
        (0, {"rename_map": 3}),
        (3, {"padding": "sideways"}),
        (3, {"tokenizer": "abc"}),
        (4, {"float_dtype": []}),
        (5, {"eps": "x"}),
        (5, {"features": {"a": 1}}),
        (5, {"norm_map": {"STATE": "GUESS"}}),
    ],
)
def test_a_step_with_a_bad_configuration_is_an_error_that_names_file_and_step(
    folder: Path, place: int, config: dict[str, Any], tokenizer: Tokenizer
) -> None:
    change(folder / PRE, lambda whole: whole["steps"][place]["config"].update(config))
    overrides = {} if "tokenizer" in config else {"tokenizer_processor": {"tokenizer": tokenizer}}
    with pytest.raises(CheckpointError, match=rf"{PRE}, step {place} \("):
        ProcessorPipeline.from_pretrained(folder, PRE, overrides)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "..", "", "sub/file", "C:\\x", "a\0b", 3]
)
@pytest.mark.parametrize("field", ["state_file", "artifacts"])
def test_a_file_outside_the_folder_is_not_read(
    folder: Path, load: Callable[..., ProcessorPipeline], field: str, name: Any
) -> None:
    shutil.copyfile(CHECKPOINT / PRE_STATE, folder.parent / "secret")
    value = name if field == "state_file" else {"tokenizer_name": name}
    change(folder / PRE, lambda config: config["steps"][5].update({field: value}))
    with pytest.raises(CheckpointError, match="name of a file in the same folder"):
        load(folder)


def test_a_tokenizer_that_lies_in_the_checkpoint_is_opened(folder: Path) -> None:
    shutil.copytree(DATA / "tiny_vlm", folder / "tokenizer")
    change(folder / PRE, lambda config: config["steps"][3].update(artifacts={"tokenizer_name": "tokenizer"}))
    data, expected = observation()
    assert torch.equal(
        ProcessorPipeline.from_pretrained(folder, PRE)(data)[LANGUAGE_TOKENS], expected["out/tokens"]
    )


def test_tensors_for_a_step_that_keeps_none_are_an_error(
    folder: Path, load: Callable[..., ProcessorPipeline]
) -> None:
    change(folder / PRE, lambda config: config["steps"][1].update(state_file=PRE_STATE))
    with pytest.raises(CheckpointError, match="'to_batch_processor' keeps no tensors"):
        load(folder)


def test_a_normalizer_without_its_state_file_is_not_an_identity(
    folder: Path, load: Callable[..., ProcessorPipeline]
) -> None:
    change(folder / PRE, lambda config: config["steps"][5].pop("state_file"))
    with pytest.raises(StatisticsError, match=r"'observation\.state'"):
        load(folder)(observation()[0])


def test_the_base_models_statistics_are_picked_by_key(
    folder: Path, load: Callable[..., ProcessorPipeline]
) -> None:
    plain = safetensors.torch.load_file(CHECKPOINT / PRE_STATE)
    keyed = {
        f"{dataset}.buffer.{key}": tensor + shift
        for dataset, shift in (("so100", 0), ("so100-red", 1))
        for key, tensor in plain.items()
        if key.startswith(("observation.state", "action"))
    }
    safetensors.torch.save_file(keyed, folder / PRE_STATE)
    with pytest.raises(StatisticsError, match=r"--policy\.stats_key=KEY.*so100, so100-red"):
        load(folder)(observation()[0])
    data, expected = observation()
    batch = load(folder, normalizer_processor={"stats_key": "so100"})(data)
    torch.testing.assert_close(batch["observation.state"], expected["out/normalized_state"])


@given(cut=st.integers(0, 7543), place=st.integers(0, 1500), byte=st.integers(0, 255), truncate=st.booleans())
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_state_file_opens_or_is_a_named_error(
    folder: Path, load: Callable[..., ProcessorPipeline], cut: int, place: int, byte: int, truncate: bool
) -> None:
    raw = bytearray((CHECKPOINT / PRE_STATE).read_bytes())
    raw[place] = byte
    (folder / PRE_STATE).write_bytes(raw[:cut] if truncate else raw)
    try:
        load(folder)
    except SmolactError as error:
        assert isinstance(error, StatisticsError) or PRE_STATE in str(error)
    else:
        assert not truncate
