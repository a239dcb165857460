"""SmolAndFAST as a policy: what it learns, keeps, refuses, and that every answer is a chunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import smolact
from smolact.errors import CheckpointError, ConfigError, FeatureError
from smolact.policies.factory import make_policy, make_pre_post_processors
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFASTPolicy, cut_out
from smolact.policies.smolandfast.processor_smolandfast import longest_edge
from smolact.policies.summary import summarize
from smolact.types import ACTION_TOKENS, LANGUAGE_TOKENS, FeatureType, PolicyFeature

FAST = Path(__file__).parents[2] / "parity" / "data" / "fast_tokenizer_small"
TOP, WRIST = "observation.images.top", "observation.images.wrist"


def config(**settings: Any) -> SMOLANDFASTConfig:
    cameras = settings.pop("cameras", (TOP, WRIST))
    values: dict[str, Any] = {
        "vlm_checkpoint": "tiny",
        "fast_tokenizer_path": str(FAST),
        "scale_factor": 2,
        "device": "cpu",
        "input_features": {
            **{key: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for key in cameras},
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
    }
    return SMOLANDFASTConfig(**(values | settings))


def statistics() -> dict[str, dict[str, np.ndarray]]:
    bounds = {"min": np.full(2, -2.0, np.float32), "max": np.full(2, 2.0, np.float32)}
    return {"observation.state": bounds, "action": bounds}


def policy_of(**settings: Any) -> tuple[SMOLANDFASTPolicy, Any, Any]:
    torch.manual_seed(0)
    policy = make_policy(config(**settings), pretrained_vlm=False)
    assert isinstance(policy, SMOLANDFASTPolicy)
    return policy.eval(), *make_pre_post_processors(policy, statistics())


def samples(size: int = 3, side: int = 64, chunk: int = 10) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    time = torch.linspace(0, 3, chunk)[None, :, None]
    return {
        TOP: torch.rand(size, 3, side, side, generator=random),
        WRIST: torch.rand(size, 3, side, side, generator=random),
        "observation.state": torch.rand(size, 2, generator=random),
        "action": torch.sin(time + torch.rand(size, 1, 2, generator=random)),
        "task": ["push it", "Grasp_the lego block ", "open the drawer, then the box"][:size],
    }


def test_a_few_samples_are_learnt_by_heart_and_written_back() -> None:
    policy, preprocess, postprocess = policy_of()
    raw = samples()
    batch = preprocess(raw)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    first = policy.forward(batch)[0].item()
    for _ in range(60):
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.02 < first
    found = postprocess(policy.predict_action_chunk(batch))
    assert (found - raw["action"]).abs().max() < 0.3  # what the tokens' rounding leaves, in the robot's units
    policy.reset()
    steps = [policy.select_action(batch) for _ in range(policy.config.n_action_steps)]
    torch.testing.assert_close(postprocess(torch.stack(steps, 1)), found[:, : len(steps)])


def test_other_cameras_at_loading_reach_the_prompt(tmp_path: Path) -> None:
    policy, preprocess, postprocess = policy_of()
    for part in (policy, preprocess, postprocess):
        part.save_pretrained(tmp_path)
    second = list(policy.config.image_features)[1]
    kept = {key: value for key, value in policy.config.input_features.items() if key != second}
    one, before, _ = smolact.load_policy(tmp_path, device="cpu", input_features=kept)
    raw = {key: value for key, value in samples().items() if key not in (second, "action")}
    assert one.predict_action_chunk(before(raw)).isfinite().all()


def test_reductions_agree() -> None:
    policy, preprocess, _ = policy_of()
    batch = preprocess(samples())
    mean, each = policy.forward(batch)[0], policy.forward(batch, reduction="none")[0]
    total, beside = policy.forward(batch, reduction="sum")
    torch.testing.assert_close(mean, total / beside["entries"])
    alone = preprocess({key: value[:1] for key, value in samples().items()})
    torch.testing.assert_close(policy.forward(alone)[0], each[0])
    with pytest.raises(ConfigError, match="reduction='max'"):
        policy.forward(batch, reduction="max")


def test_a_sample_is_answered_the_same_alone_and_in_a_batch() -> None:
    policy, preprocess, _ = policy_of()
    together = policy.predict_action_chunk(preprocess(samples()))
    for row in range(3):
        alone = preprocess({key: value[row : row + 1] for key, value in samples().items()})
        torch.testing.assert_close(policy.predict_action_chunk(alone)[0], together[row])


def test_a_checkpoint_opens_without_the_tokenizers_folder(tmp_path: Path) -> None:
    FASTTokenizer.load(FAST).save(tmp_path / "fast")
    policy, preprocess, postprocess = policy_of(fast_tokenizer_path=str(tmp_path / "fast"))
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    for pipeline in (preprocess, postprocess):
        pipeline.save_pretrained(folder)
    (tmp_path / "fast").rename(tmp_path / "gone")
    loaded, before, after = smolact.load_policy(folder, device="cpu")
    raw = samples()
    torch.testing.assert_close(
        after(loaded.predict_action_chunk(before(raw))),
        postprocess(policy.predict_action_chunk(preprocess(raw))),
    )
    assert torch.equal(before(raw)[ACTION_TOKENS], preprocess(raw)[ACTION_TOKENS])


def test_a_checkpoint_of_the_authors_whose_model_writes_the_prompts_opens(tmp_path: Path) -> None:
    policy, preprocess, postprocess = policy_of()
    for part in (policy, preprocess, postprocess):
        part.save_pretrained(tmp_path)
    path = tmp_path / "policy_preprocessor.json"
    pipeline = json.loads(path.read_text())
    assert pipeline["steps"].pop()["registry_name"] == "smolandfast_prompt_processor"
    path.write_text(json.dumps(pipeline))
    loaded, before, _ = smolact.load_policy(tmp_path, device="cpu")
    batch = before(samples())
    assert torch.equal(batch[LANGUAGE_TOKENS], preprocess(samples())[LANGUAGE_TOKENS])
    torch.testing.assert_close(loaded.predict_action_chunk(batch), policy.predict_action_chunk(batch))


def test_splitting_shows_tiles_and_the_prompt_has_their_places() -> None:
    plain, split = policy_of(cameras=(TOP,)), policy_of(cameras=(TOP,), do_image_splitting=True)
    raw = {key: value for key, value in samples(side=100).items() if key != WRIST}
    few, many = plain[1](raw)[LANGUAGE_TOKENS], split[1](raw)[LANGUAGE_TOKENS]
    assert many.shape[1] > few.shape[1] + 3 * 16
    assert split[0].predict_action_chunk(split[1](raw)).shape == (3, 10, 2)


@pytest.mark.parametrize(
    ("content", "edge"),
    [
        (None, 256),
        ({"size": {"longest_edge": 2048}}, 2048),
        ({"image_processor": {"size": {"longest_edge": 192}}}, 192),
        ({"size": {"longest_edge": 20}}, 256),
        ({"size": None, "image_processor": None}, 256),
    ],
)
def test_how_far_an_image_is_scaled_before_it_is_split_is_the_vlms(
    tmp_path: Path, content: Any, edge: int
) -> None:
    path = tmp_path / "processor_config.json"
    if content is not None:
        path.write_text(json.dumps(content))
    assert longest_edge(tmp_path, tile=64) == edge
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"processor_config\.json is damaged"):
        longest_edge(tmp_path, tile=64)


def test_crops_are_random_in_training_and_central_afterwards() -> None:
    images = torch.arange(5 * 6).view(1, 1, 5, 6).expand(2, 3, 5, 6).float()
    assert cut_out(images, (3, 2), None, "x")[0, 0].flatten().tolist() == [8, 9, 14, 15, 20, 21]
    corners = cut_out(images, (3, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "x")
    assert corners[0, 0, 0, 0] == 0 and corners[1, 0, -1, -1] == 29
    with pytest.raises(FeatureError, match="crop_shape"):
        cut_out(images, (6, 2), None, "x")
    policy, preprocess, _ = policy_of(crop_shape=(48, 48))
    draws = policy.training_draws
    assert draws is not None
    crop = torch.stack([draws(torch.Generator().manual_seed(n))["crop"] for n in range(3)])
    batch = preprocess(samples())
    assert policy.forward(batch, crop=crop)[0] != policy.forward(batch)[0]


def test_parts_train_at_their_own_rates_and_freeze() -> None:
    policy, _, _ = policy_of(freeze_connector=True)
    groups = {group["name"]: group for group in policy.get_optim_params()}
    assert [group["lr"] for group in groups.values()] == [2e-5, 2e-4, 2e-4]
    counted = sum(parameter.numel() for group in groups.values() for parameter in group["params"])
    assert counted == sum(parameter.numel() for parameter in policy.parameters())
    for name in ("vision_model", "connector"):
        assert not any(parameter.requires_grad for parameter in groups[name]["params"])


def test_the_summary_counts_a_loss_and_an_answer() -> None:
    found = summarize(policy_of()[0])
    assert found.total.parameters > 1_000_000
    assert found.workload.replan > found.workload.vision + found.workload.prefix


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_size": 9}, "horizon 10, and these have 9"),
        ({"scale_factor": 1, "freeze_connector": True}, "freeze_connector=false"),
        ({"scale_factor": 3}, "does not divide the 8 patches"),
        ({"fast_skip_tokens": 1000}, "do not fit into a vocabulary"),
        ({"normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "MIN_MAX"}}, "STATE is MEAN_STD"),
        ({"n_action_steps": 11}, "n_action_steps=11"),
        ({"precision": "int8"}, "precision='int8'"),
    ],
)
def test_what_can_not_work_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_of(**settings)


def without(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


def test_a_batch_that_lacks_something_is_named() -> None:
    policy, preprocess, _ = policy_of()
    raw = samples()
    with pytest.raises(FeatureError, match="cameras"):
        policy.forward(preprocess(without(raw, TOP, WRIST)))
    with pytest.raises(FeatureError, match=r"action\.tokens"):
        policy.forward(preprocess(without(raw, "action")))
    with pytest.raises(FeatureError, match="needs an instruction"):
        preprocess(without(raw, "task"))
    with pytest.raises(ConfigError, match="task of sample 0 is empty"):
        preprocess({**raw, "task": [" ", "a", "b"]})
    with pytest.raises(FeatureError, match="preprocessor first"):
        policy.predict_action_chunk(raw)


def test_a_prompt_that_is_too_long_is_refused() -> None:
    _, preprocess, _ = policy_of(max_input_seq_len=40)
    with pytest.raises(ConfigError, match="max_input_seq_len=40"):
        preprocess(samples())


def test_states_outside_of_their_range_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _, preprocess, _ = policy_of()
    raw = {**samples(), "observation.state": torch.full((3, 2), 9.0)}
    for _ in range(2):
        preprocess(raw)
    assert [record.getMessage() for record in caplog.records] == [
        "6 of 6 state values lie outside of the range that the statistics tell, and are clipped to it (told once)."
    ]


def test_a_new_projection_begins_from_the_vlms_other_weights() -> None:
    torch.manual_seed(0)
    policy = make_policy(config(scale_factor=1), pretrained_vlm=True)
    assert isinstance(policy, SMOLANDFASTPolicy)
    shipped = make_policy(config(scale_factor=2), pretrained_vlm=True)

    def weight(of: Any, name: str) -> Tensor:
        found: Tensor = of.model.vlm.get_parameter(name)
        return found

    name = "model.text_model.embed_tokens.weight"
    assert torch.equal(weight(policy, name), weight(shipped, name))
    projection = "model.connector.modality_projection.proj.weight"
    assert weight(policy, projection).shape[1] * 4 == weight(shipped, projection).shape[1]
    assert weight(policy, projection).std() > 0
