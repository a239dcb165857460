"""The shapes in docs/learn/sample.md: one sample on its way from a video file to motor commands, watched as it goes.

    python scripts/guide/sample.py

The dataset is the one that the tests keep (LeRobot recorded it: two cameras, six joints). The model is run twice: `tiny` for
real, and SmolVLM2-500M's shapes on the meta device, which computes shapes and no numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from page import put, table
from torch import Tensor

from smolact.datasets.collate import collate
from smolact.datasets.reader import LeRobotDataset
from smolact.policies.factory import make_pre_post_processors
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.policies.summary import empty_policy

DATASET = Path(__file__).parents[2] / "tests/parity/data/dataset_v30"
CAMERA = "observation.images.top"
Shapes = dict[str, str]


def shape(value: Any) -> str:
    """A tensor's shape and type, in short."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{tuple(value.shape)}" + ("" if kind == "float32" else f" {kind}")
    return repr(value) if not isinstance(value, list) else f"{len(value)} × {shape(value[0])}"


def watched(model: Any, found: Shapes) -> None:
    """Note what every station of the network gives."""
    beside = model.vlm_with_expert
    modules = {
        "vision tower": beside.vlm.model.vision_model.post_layernorm,
        "connector": beside.vlm.model.connector,
        "words": beside.vlm.model.text_model.embed_tokens,
        "state": model.state_proj,
        "actions in": model.action_in_proj,
        "suffix": model.action_time_mlp_out,
        "expert": beside.lm_expert.norm,
        "velocity": model.action_out_proj,
    }

    def note(name: str, given: Tensor) -> None:
        if given.numel():  # the tokens around an image are none, as it comes
            found.setdefault(name, shape(given))

    for name, module in modules.items():
        module.register_forward_hook(lambda _module, _inputs, given, name=name: note(name, given))

    def noting(name: str, method: Callable[..., Any], seen: Callable[[Any], str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = method(*args, **kwargs)
            found.setdefault(name, seen(given))
            return given

        return call

    model.embed_prefix = noting("prefix", model.embed_prefix, lambda out: shape(out.embeddings))
    beside.forward_prefix = noting(
        "read", beside.forward_prefix, lambda out: f"{len(out)} × 2 × {shape(out[0][0])}"
    )


def run(policy: SmolVLAPolicy, batch: dict[str, Any]) -> Shapes:
    """A training step's loss and a chunk, with the shapes on the way."""
    found: Shapes = {}
    watched(policy.model, found)
    images, _ = policy.prepare_images(batch)
    found["images"] = f"{len(images)} × {shape(images[0])}"
    found["state padded"] = shape(policy.prepare_state(batch))
    chunk = policy.predict_action_chunk(batch)
    found["chunk"] = shape(chunk)
    found["loss"] = shape(policy.forward(batch)[0])
    return found


def main() -> None:
    """Write the tables."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chunk = 50
    dataset = LeRobotDataset(
        DATASET, delta_timestamps={"action": [i / 10 for i in range(chunk)]}, return_uint8=True
    )
    inputs, outputs = dataset.meta.policy_features()
    config = SmolVLAConfig(
        vlm_model_name="tiny",
        resize_imgs_with_padding=(64, 64),
        input_features=inputs,
        output_features=outputs,
        device="cpu",
    )
    policy = SmolVLAPolicy(config).eval()
    preprocess, postprocess = make_pre_post_processors(policy, dataset.meta.stats)

    sample = dataset[0]
    batch = collate([dataset[0], dataset[1]])
    steps, data = [], dict(batch)
    for step in preprocess.steps:
        after = step(data)
        changed = [key for key in after if key not in data or after[key] is not data[key]]
        what = ", ".join(f"`{key}` {shape(after[key])}" for key in changed[:3])
        steps.append([f"`{type(step).__name__}`", what or "nothing, here"])
        data = after
    tiny = run(policy, data)
    actions = postprocess(policy.predict_action_chunk(data))

    large_config = config.replace(vlm_model_name="smolvlm2-500m", resize_imgs_with_padding=(512, 512))
    on_meta = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in data.items()}
    large = run(empty_policy(large_config).eval(), on_meta)

    def both(name: str) -> list[str]:
        return [tiny[name], large[name]]

    files = sorted(DATASET.glob(f"videos/{CAMERA}/**/*.mp4"))
    names = dataset.meta.features["action"].names
    put(
        "learn/sample.md",
        {
            "disk": table(
                [
                    ["station", "what is there"],
                    ["the video file", f"`{files[0].name}`, {files[0].stat().st_size:,} bytes for {dataset.meta.total_frames} frames"],
                    ["a decoded frame", f"`{CAMERA}` {shape(sample[CAMERA])}"],
                    ["the state, from the table", f"`observation.state` {shape(sample['observation.state'])}"],
                    ["the next 50 actions", f"`action` {shape(sample['action'])}"],
                    ["which lie past the episode's end", f"`action_is_pad` {shape(sample['action_is_pad'])}, {int(sample['action_is_pad'].sum())} of them"],
                    ["the instruction", f"`task` {shape(sample['task'])}"],
                    ["two samples, collated", f"`{CAMERA}` {shape(batch[CAMERA])}, `action` {shape(batch['action'])}, `task` {shape(batch['task'])}"],
                ]
            ),
            "preprocessing": table([["step", "what it changes, and to what"], *steps]),
            "prefix": table(
                [
                    ["station", "made by", "`tiny`", "SmolVLM2-500M"],
                    ["images, fitted, in [−1, 1]", "`SmolVLAPolicy.prepare_images`", *both("images")],
                    ["patches of all images", "`VisionModel`", *both("vision tower")],
                    ["packed to tokens", "`Connector`", *both("connector")],
                    ["words", "`SmolVLMWithExpertModel.embed_language_tokens`", *both("words")],
                    ["state, padded", "`SmolVLAPolicy.prepare_state`", *both("state padded")],
                    ["state, as a token's embedding", "`VLAFlowMatching.state_proj`", *both("state")],
                    ["the prefix", "`VLAFlowMatching.embed_prefix`", *both("prefix")],
                    ["keys and values for each expert layer", "`SmolVLMWithExpertModel.forward_prefix`", *both("read")],
                ]
            ),
            "suffix": table(
                [
                    ["station", "made by", "`tiny`", "SmolVLM2-500M"],
                    ["noisy actions, embedded", "`VLAFlowMatching.action_in_proj`", *both("actions in")],
                    ["joined with the time", "`VLAFlowMatching.embed_suffix`", *both("suffix")],
                    ["after the expert", "`SmolVLMWithExpertModel.forward_suffix`", *both("expert")],
                    ["velocity", "`VLAFlowMatching.action_out_proj`", *both("velocity")],
                    ["the chunk, normalized", "`SmolVLAPolicy.predict_action_chunk`", *both("chunk")],
                    ["the loss, in training", "`SmolVLAPolicy.forward`", *both("loss")],
                ]
            ),
            "motors": table(
                [
                    ["joint", "the first action, in the robot's units"],
                    *([f"`{name}`", f"{value:.2f}"] for name, value in zip(names, actions[0, 0].tolist(), strict=True)),
                ]
            ),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
