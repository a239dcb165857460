"""SmolVLA as a policy: from batches to losses and normalized actions. The network is in `network_smolvla`.

Source: Shukor et al. 2025, arXiv 2506.01844; numbers checked against LeRobot 0.6.1 (tests/parity).
"""

# B batch, C chunk, A action width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.presets import VLMSource
from smolact.errors import ConfigError, FeatureError
from smolact.policies.base import reduce_loss
from smolact.policies.common import aloha
from smolact.policies.common.chunking import Engine
from smolact.policies.common.flow_matching import FlowDraws
from smolact.policies.common.guidance import Guidance
from smolact.policies.common.images import resize_with_pad, to_float
from smolact.policies.smolvla import flops_smolvla
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.network_smolvla import VLAFlowMatching as VLAFlowMatching
from smolact.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from smolact.policies.vlm_policy import VLMPolicy, require
from smolact.policies.workload import PartSize, Workload
from smolact.processors.pipeline import ProcessorPipeline
from smolact.types import ACTION, ACTION_IS_PAD, LANGUAGE_MASK, LANGUAGE_TOKENS, STATE, VISION_TOKENS


class SmolVLAPolicy(VLMPolicy):
    """SmolVLA as a policy: from preprocessed batches to losses and normalized actions.

    Args:
        config: the settings.
        vlm: source of the VLM's configuration, tokenizer and weights; by default that of `config.vlm_model_name`.
        pretrained_vlm: load the VLM's weights; `config.load_vlm_weights` by default.
    """

    config_class = SmolVLAConfig
    name = "smolvla"
    new_parts = ", the action expert new"
    adapter_targets = (
        r"model\.(vlm_with_expert\.lm_expert\..*\.[qv]_proj"
        r"|state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out)"
    )
    inference_only_defaults = {"release": True, "capture": True}  # noqa: RUF012
    takes_leftover = True
    config: SmolVLAConfig
    model: VLAFlowMatching

    def __init__(
        self, config: SmolVLAConfig, *, vlm: VLMSource | None = None, pretrained_vlm: bool | None = None
    ) -> None:
        pretrained_vlm = config.load_vlm_weights if pretrained_vlm is None else pretrained_vlm
        super().__init__(config, vlm=vlm, pretrained_vlm=pretrained_vlm)
        self.model = VLAFlowMatching(config, self.vlm)
        if pretrained_vlm:
            self.load_vlm_weights(
                self.model.vlm_with_expert.vlm,
                instead="Set --policy.load_vlm_weights=false (--policy.init=random)",
            )

    def make_processors(
        self,
        stats: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        rename_map: Mapping[str, str] | None = None,
    ) -> tuple[ProcessorPipeline, ProcessorPipeline]:
        """Make LeRobot's processors of SmolVLA."""
        (parts,) = self.processor_parts().values()
        return make_smolvla_pre_post_processors(self.config, stats, rename_map=rename_map, **parts)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The shape of one sample's `noise`: (chunk, max_action_dim)."""
        return self.config.chunk_size, self.config.max_action_dim

    @property
    def training_draws(self) -> FlowDraws:
        """The random draws of a training sample: its noise and its time."""
        return FlowDraws(self.noise_shape)

    def workload(self, parts: Mapping[str, PartSize]) -> Workload:
        """Return the cost of one sample, counted from the sizes of the layers."""
        return flops_smolvla.workload(self.model, parts)

    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the flow-matching loss over actions inside the episode.

        Args:
            noise: (B, chunk, max_action_dim), or N of them (B, N, chunk, max_action_dim); drawn by default.
            time: (B,) in (0, 1], or (B, N); drawn by default.
            reduction: see `reduce_loss`.

        Raises:
            FeatureError: an input is missing or has the wrong shape.
            ConfigError: the reduction is unknown.
        """
        inputs, actions = self._inputs(batch), self._actions(batch)
        losses = self.model(*inputs, self.network_actions(actions, inputs[-1]), noise, time)
        losses = losses[..., : actions.shape[-1]]
        pad = batch.get(ACTION_IS_PAD)
        if pad is not None and pad.shape != actions.shape[:2]:
            raise FeatureError(
                f"'{ACTION_IS_PAD}' has the shape {tuple(pad.shape)}, expected (batch, chunk) {tuple(actions.shape[:2])}. "
                "Make a batch of samples with smolact.datasets.collate.collate."
            )
        valid = torch.ones_like(losses[..., 0]) if pad is None else (~pad).to(losses.dtype)
        sums, counts = (losses * valid[..., None]).sum((1, 2)), valid.sum(1) * losses.shape[-1]
        return reduce_loss(sums, counts, reduction)

    @torch.inference_mode(False)  # guidance differentiates, which inference tensors can't
    @torch.no_grad()
    def predict_action_chunk(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, guidance: Guidance | None = None
    ) -> Tensor:
        """Predict the next actions (B, chunk, A), normalized.

        Args:
            noise: the sampler's start (B, chunk, max_action_dim); drawn by default.
            guidance: the leftover actions to continue (real-time chunking), normalized.

        Raises:
            FeatureError: an input is missing or has the wrong shape.
        """
        return self._get_action_chunk(batch, noise, guidance)

    def build_engine(self, **settings: Any) -> Engine:
        """Build an engine, a faster `predict_action_chunk`; settings are those of `smolact.policies.smolvla.engine.SmolVLAEngine`.

        Raises:
            ConfigError: a setting is unknown, invalid, or not supported on this machine.
        """
        from smolact.policies.smolvla.engine import SmolVLAEngine

        SmolVLAEngine.check_settings(settings)
        return SmolVLAEngine(self, **settings)

    def _get_action_chunk(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, guidance: Guidance | None = None
    ) -> Tensor:
        """Run `predict_action_chunk`, differentiable unless it is guided."""
        inputs = self._inputs(batch)
        if guidance is not None:
            guidance = self.network_guidance(guidance, inputs[-1])
        actions = self.model.sample_actions(*inputs, noise=noise, guidance=guidance)
        return self.finish_actions(actions, inputs[-1])

    def network_guidance(self, guidance: Guidance, state: Tensor) -> Guidance:
        """Convert guidance by normalized actions to guidance of the network's actions; padding is not guided.

        Raises:
            FeatureError: its shape is not that of this batch or of these actions.
        """
        width = self.config.action_feature.shape[0]
        guidance.check((len(state), self.config.chunk_size, width))
        return guidance.replaced(
            self.network_actions(guidance.actions, state),
            F.pad(guidance.weights.expand_as(guidance.actions), (0, self.config.max_action_dim - width)),
        )

    def finish_actions(self, actions: Tensor, state: Tensor) -> Tensor:
        """Convert sampled actions (B, C, max_action_dim) at a prepared state (B, max_state_dim) to normalized ones (B, C, A)."""
        actions = actions[..., : self.config.action_feature.shape[0]]
        if self.config.relative_step > 0:
            actions = self._reference_state(state) + self._relative_scale(actions) * actions
        return aloha.encode_actions(actions) if self.config.adapt_to_pi_aloha else actions

    def network_actions(self, actions: Tensor, state: Tensor) -> Tensor:
        """Convert normalized actions (B, C, A) to the network's (B, C, max_action_dim); the inverse of `finish_actions`."""
        if self.config.adapt_to_pi_aloha:
            actions = aloha.decode_actions(actions)
        if self.config.relative_step > 0:
            actions = (actions - self._reference_state(state)) / self._relative_scale(actions)
        return F.pad(actions, (0, self.config.max_action_dim - actions.shape[-1]))

    def _reference_state(self, state: Tensor) -> Tensor:
        """Return the states (B, 1, A) that the actions are relative to."""
        width = self.config.action_feature.shape[0]
        state_feature = self.config.robot_state_feature
        if state_feature is None or state_feature.shape[0] < width:
            raise ConfigError(
                f"relative_step={self.config.relative_step} needs a state value for each of the {width} action values. "
                "Set --policy.relative_step=0."
            )
        return state[:, None, :width]

    def _relative_scale(self, actions: Tensor) -> Tensor:
        """Return the scale (C, 1) of relative actions, which grows with each step of the chunk."""
        steps = torch.arange(1, actions.shape[1] + 1, device=actions.device, dtype=actions.dtype)
        return self.config.relative_step * steps[:, None]

    def prepare_images(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Return each camera's images (B, 3, h, w), resized and in [−1, 1], and which are real (B,).

        Cameras that are missing from the batch become black and masked, at most `empty_cameras`; further ones are left out, as
        in the reference. Commands check cameras before they start.

        Raises:
            FeatureError: the batch has none of the cameras.
        """
        present = self.present_cameras(batch)
        images, masks = [], []
        for key in present:
            vision_tokens = batch.get(key + VISION_TOKENS)
            images.append(self._preprocessed(batch[key]) if vision_tokens is None else vision_tokens)
            image = images[-1]
            mask = batch.get(f"{key}_padding_mask")
            masks.append(
                torch.ones(len(image), dtype=torch.bool, device=image.device) if mask is None else mask.bool()
            )
        for _ in range(min(len(self.config.image_features) - len(present), self.config.empty_cameras)):
            images.append(torch.full_like(images[-1], -1.0))
            masks.append(torch.zeros_like(masks[-1]))
        return images, masks

    def prepare_language(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return token ids and the mask of those that are not padding, both (B, L).

        Raises:
            FeatureError: they are missing.
        """
        require(batch, LANGUAGE_TOKENS, LANGUAGE_MASK)
        return batch[LANGUAGE_TOKENS], batch[LANGUAGE_MASK].bool()

    def prepare_state(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the state, padded with zeros (B, max_state_dim).

        Raises:
            FeatureError: it is missing or too wide.
        """
        require(batch, STATE)
        state: Tensor = batch[STATE][:, -1] if batch[STATE].ndim > 2 else batch[STATE]
        if state.shape[-1] > self.config.max_state_dim:
            raise FeatureError(
                f"The state has {state.shape[-1]} values, the policy takes up to {self.config.max_state_dim}. "
                "Raise --policy.max_state_dim (a base model's can't be changed)."
            )
        if self.config.adapt_to_pi_aloha:
            state = aloha.decode_state(state)
        return F.pad(state, (0, self.config.max_state_dim - state.shape[-1]))

    def _preprocessed(self, image: Tensor) -> Tensor:
        image = to_float(image[:, -1] if image.ndim == 5 else image)
        if self.config.resize_imgs_with_padding is not None:
            image = resize_with_pad(image, *self.config.resize_imgs_with_padding)
        return image * 2.0 - 1.0

    @property
    def image_encoder(self) -> Sequence[nn.Module]:
        """The vision tower and the connector."""
        parts = self.model.vlm_with_expert.vlm.model
        return parts.vision_model, parts.connector

    def encode_images(self, images: Tensor) -> Tensor:
        """See `PreTrainedPolicy`."""
        return self.model.vlm_with_expert.embed_image(self._preprocessed(images))

    def _inputs(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
        require(batch, LANGUAGE_TOKENS, LANGUAGE_MASK, STATE)
        state = self.prepare_state(batch)
        return (*self.prepare_images(batch), *self.prepare_language(batch), state)

    def _actions(self, batch: Mapping[str, Any]) -> Tensor:
        expected = (self.config.chunk_size, self.config.action_feature.shape[0])
        actions: Tensor | None = batch.get(ACTION)
        if actions is None or tuple(actions.shape[1:]) != expected:
            actual = "nothing" if actions is None else f"shape {tuple(actions.shape)}"
            raise FeatureError(
                f"Training needs '{ACTION}' of shape (batch, {expected[0]}, {expected[1]}), found {actual}. Ask the "
                "dataset for a chunk: delta_timestamps={'action': [i / fps for i in range(chunk_size)]}."
            )
        if expected[1] > self.config.max_action_dim:
            raise FeatureError(
                f"The action has {expected[1]} values, the policy gives up to {self.config.max_action_dim}. "
                "Raise --policy.max_action_dim (a base model's can't be changed)."
            )
        return actions
