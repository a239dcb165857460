"""Run by an interpreter that has LeRobot, from the repository's root: writes `data/rtc/expected.npz`.

    python -m tests.parity.lerobot_rtc

Each case of `RTC_CASES` twice: as LeRobot computes it, and with the one line that its processor lacks: its velocity is computed
before the input asks for a gradient, so that it differentiates x − t · v with v constant.
"""

from __future__ import annotations

import numpy as np
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc import RTCConfig, RTCProcessor
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from tests.parity.recipe import DATA, RTC_CASES, draw_weights, normal, smolvla_batch, smolvla_case


class Differentiating(RTCProcessor):
    """LeRobot's, with a gradient through the denoiser."""

    def denoise_step(self, *args, original_denoise_step_partial, **kwargs):
        def asking(x):
            return original_denoise_step_partial(x.requires_grad_(True))

        return super().denoise_step(*args, original_denoise_step_partial=asking, **kwargs)


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for name, (case_name, delay, left, schedule, most) in RTC_CASES.items():
        case, config = smolvla_case(case_name)
        known = {key: value for key, value in config.items() if key != "type"}
        policy = SmolVLAPolicy(SmolVLAConfig(**_typed(known), load_vlm_weights=False)).eval()
        draw_weights(policy, case["seed"])
        batch = smolvla_batch(case, config)
        leftover = normal(case["seed"], "leftover", case["batch_size"], left, config["max_action_dim"])
        for kind in (RTCProcessor, Differentiating):
            rtc = RTCConfig(
                prefix_attention_schedule=RTCAttentionSchedule[schedule.upper()],
                max_guidance_weight=most,
                execution_horizon=left,
            )
            policy.config.rtc_config = rtc
            policy.model.rtc_processor = kind(rtc)
            images, masks = policy.prepare_images(batch)
            with torch.no_grad():
                chunk = policy.model.sample_actions(
                    images,
                    masks,
                    batch["observation.language.tokens"],
                    batch["observation.language.attention_mask"],
                    policy.prepare_state(batch),
                    noise=batch["noise"],
                    inference_delay=delay,
                    prev_chunk_left_over=leftover,
                )
            found[f"{name}.{'as it is' if kind is RTCProcessor else 'with a gradient'}"] = chunk.numpy()
    (DATA / "rtc").mkdir(exist_ok=True)
    np.savez_compressed(DATA / "rtc" / "expected.npz", **found)


def _typed(config):
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature

    for side in ("input_features", "output_features"):
        config[side] = {
            key: PolicyFeature(FeatureType(value["type"]), tuple(value["shape"]))
            for key, value in config[side].items()
        }
    config["normalization_mapping"] = {
        key: NormalizationMode(value) for key, value in config["normalization_mapping"].items()
    }
    config["resize_imgs_with_padding"] = tuple(config["resize_imgs_with_padding"])
    return {
        key: value for key, value in config.items() if key not in ("load_vlm_weights", "device", "rtc_config")
    }


if __name__ == "__main__":
    main()
