"""SmolVLA: from images, an instruction and a state to a chunk of actions.

    images, instruction ─┐
    state ───────────────┴► SmolVLM ─ keys, values ─► expert ◄─ noisy actions, time
                                                        └─► velocity ─► (10 Euler steps) ─► actions

What is distinctive: the state is a token of the prefix; images and text do not see it; action tokens see the whole
prefix and, causally, each other; the expert learns the velocity from actions to noise (flow matching).
Source: Shukor et al. 2025, arXiv 2506.01844; numbers checked against LeRobot 0.6.1 (tests/parity).
"""

# B batch, P prefix tokens, C chunk, D width of the VLM, E width of the expert, A (padded) action width.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.presets import VLMSource, find_vlm
from smolact.backbones.smolvlm import KeyValues, initialize
from smolact.errors import ConfigError, FeatureError
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.common import aloha
from smolact.policies.common.attention import block_mask, positions_of
from smolact.policies.common.chunking import Engine
from smolact.policies.common.flow_matching import (
    FlowDraws,
    integrate,
    interpolate,
    sample_noise,
    sample_time,
    time_embedding,
)
from smolact.policies.common.images import resize_with_pad, to_float
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from smolact.policies.smolvla.vlm import check_image_size, image_tokens, load_vlm
from smolact.types import ACTION, ACTION_IS_PAD, LANGUAGE_MASK, LANGUAGE_TOKENS, STATE, VISION_TOKENS


class Embedded(NamedTuple):
    """Embeddings (B, P, D), which of them are valid (B, P), and which begin a block (B, P).

    `context`: so many of the first ones are constants, and see none of the others.
    """

    embeddings: Tensor
    valid: Tensor
    starts: Tensor
    context: int = 0


class VLAFlowMatching(nn.Module):
    """The network: embeddings of prefix and suffix, the VLM with its expert, and the flow-matching loss and sampler."""

    def __init__(self, config: SmolVLAConfig, vlm: VLMSource) -> None:
        super().__init__()
        self.config = config
        check_image_size(config, vlm)
        self.vlm_with_expert = SmolVLMWithExpertModel(
            vlm.config,
            train_expert_only=config.train_expert_only,
            freeze_vision_encoder=config.freeze_vision_encoder,
            attention_mode=config.attention_mode,
            num_expert_layers=config.num_expert_layers,
            num_vlm_layers=config.num_vlm_layers,
            self_attn_every_n_layers=config.self_attn_every_n_layers,
            expert_width_multiplier=config.expert_width_multiplier,
        )
        initialize(self.vlm_with_expert, vlm.config.text_config.initializer_range)
        width, expert_width = vlm.config.text_config.hidden_size, self.vlm_with_expert.expert_hidden_size
        self.state_proj = nn.Linear(config.max_state_dim, width)
        self.action_in_proj = nn.Linear(config.max_action_dim, expert_width)
        self.action_out_proj = nn.Linear(expert_width, config.max_action_dim)
        self.action_time_mlp_in = nn.Linear(expert_width * 2, expert_width)
        self.action_time_mlp_out = nn.Linear(expert_width, expert_width)
        self.state_proj.requires_grad_(config.train_state_proj)
        # The tokens that SmolVLM puts before and after a whole image.
        self.image_start, self.image_end = image_tokens(vlm) if config.add_image_special_tokens else ([], [])
        if config.compile_model:
            torch.set_float32_matmul_precision("high")
            self.sample_actions = torch.compile(self.sample_actions, mode=config.compile_mode)  # type: ignore[method-assign]
            self.forward = torch.compile(self.forward, mode=config.compile_mode)  # type: ignore[method-assign]

    def embed_prefix(
        self,
        images: list[Tensor],
        img_masks: list[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
    ) -> Embedded:
        """Embed what the policy sees.

        Args:
            images: one (B, 3, h, w) in [−1, 1] a camera, or its vision tokens (B, T, D).
            img_masks: one (B,) bool a camera, false where there is no picture.
            lang_tokens: (B, L) token ids.
            lang_masks: (B, L) bool, false where padded.
            state: (B, max_state_dim).

        Returns:
            Embeddings, validity and block starts. Images and text are one block, the state begins the next: earlier
            tokens do not see it.
        """
        batch = len(state)
        parts: list[Tensor] = []
        valid: list[Tensor] = []
        start, end = (
            self._embed_tokens(ids, batch, state.device) for ids in (self.image_start, self.image_end)
        )
        for tokens, mask in zip(self._embed_images(images), img_masks, strict=True):
            parts += [start, tokens, end]
            always = torch.ones(batch, 1, dtype=torch.bool, device=state.device)
            valid += [
                always.expand(-1, start.shape[1]),
                mask[:, None].expand(-1, tokens.shape[1]),
                always.expand(-1, end.shape[1]),
            ]
        text = self.vlm_with_expert.embed_language_tokens(lang_tokens)
        parts.append(text * math.sqrt(text.shape[-1]))
        valid.append(lang_masks.bool())
        context_length = sum(part.shape[1] for part in parts)

        parts.append(self.state_proj(state.to(self.state_proj.weight.dtype))[:, None])
        valid.append(torch.ones(batch, 1, dtype=torch.bool, device=state.device))
        embeddings, valid_mask = torch.cat(parts, dim=1), torch.cat(valid, dim=1)
        missing = max(0, self.config.prefix_length - embeddings.shape[1])
        embeddings, valid_mask = F.pad(embeddings, (0, 0, 0, missing)), F.pad(valid_mask, (0, missing))
        starts = torch.arange(embeddings.shape[1], device=state.device) == context_length
        is_constant = not any(part.requires_grad for part in parts[:-1])
        return Embedded(
            embeddings, valid_mask, starts.expand(batch, -1), context_length if is_constant else 0
        )

    def embed_suffix(self, noisy_actions: Tensor, timestep: Tensor) -> Embedded:
        """Embed noisy actions (B, C, A) at times (B,); each begins a block of its own, so that attention is causal."""
        actions = self.action_in_proj(noisy_actions.to(self.action_in_proj.weight.dtype))
        time = time_embedding(timestep, actions.shape[-1], self.config.min_period, self.config.max_period)
        both = torch.cat([actions, time.to(actions.dtype)[:, None].expand_as(actions)], dim=2)
        embeddings = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
        ones = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return Embedded(embeddings, ones, ones)

    def forward(
        self,
        images: list[Tensor],
        img_masks: list[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        actions: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """The squared error of the predicted velocity, (B, C, A), for actions (B, C, A) at random noise and times.

        With several draws a sample, noise (B, N, C, A) and time (B, N), it is their mean; the prefix is run once for all.
        """
        if noise is None:
            noise = sample_noise(tuple(actions.shape), actions.device)
        if time is None:
            time = sample_time(len(actions), actions.device)
        if noise.ndim == 4:
            prefix = self.embed_prefix(images, img_masks, lang_tokens, lang_masks, state)
            return self._mean_error(prefix, actions, noise, time)
        noisy, velocity = interpolate(noise, actions, time)
        prefix = self.embed_prefix(images, img_masks, lang_tokens, lang_masks, state)
        return F.mse_loss(self._forward_flow_matching(prefix, noisy, time), velocity, reduction="none")

    def _mean_error(self, prefix: Embedded, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        batch, draws = noise.shape[:2]
        noise, time, actions = noise.flatten(0, 1), time.flatten(), actions.repeat_interleave(draws, 0)
        noisy, velocity = interpolate(noise, actions, time)
        read, valid = self._read(prefix), prefix.valid
        repeated = [
            (keys.repeat_interleave(draws, 0), values.repeat_interleave(draws, 0)) for keys, values in read
        ]
        found = self.denoise_step(valid.repeat_interleave(draws, 0), repeated, noisy, time)
        errors = F.mse_loss(found, velocity, reduction="none")
        return errors.view(batch, draws, *errors.shape[1:]).mean(1)

    def sample_actions(
        self,
        images: list[Tensor],
        img_masks: list[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
        solver: str = "euler",
    ) -> Tensor:
        """A chunk of actions (B, C, A), from `noise` (B, C, A) or fresh noise, in `num_steps` steps of a solver."""
        if noise is None:
            noise = sample_noise(
                (len(state), self.config.chunk_size, self.config.max_action_dim), state.device
            )
        prefix = self.embed_prefix(images, img_masks, lang_tokens, lang_masks, state)
        if self.config.use_cache:
            read = self._read(prefix)

        def velocity(x: Tensor, time: float) -> Tensor:
            times = torch.full((len(x),), time, device=x.device)
            if self.config.use_cache:
                return self.denoise_step(prefix.valid, read, x, times)
            return self._forward_flow_matching(prefix, x, times)

        return integrate(velocity, noise, self.config.num_steps, solver)

    def denoise_step(
        self, prefix_valid: Tensor, read: list[KeyValues], x_t: Tensor, timestep: Tensor
    ) -> Tensor:
        """The velocity (B, C, A) at noisy actions x_t (B, C, A) and times (B,), given what was read of the prefix."""
        embeddings, valid, starts, _ = self.embed_suffix(x_t, timestep)
        causal = block_mask(valid, starts)
        mask = torch.cat([prefix_valid[:, None].expand(-1, causal.shape[1], -1), causal], dim=2)
        positions = prefix_valid.sum(-1, keepdim=True) + positions_of(valid)
        return self._velocity(self.vlm_with_expert.forward_suffix(embeddings, mask, positions, read))

    def _forward_flow_matching(self, prefix: Embedded, noisy: Tensor, time: Tensor) -> Tensor:
        """The velocity (B, C, A) at noisy actions (B, C, A) and times (B,), prefix and suffix in one pass."""
        suffix = self.embed_suffix(noisy, time)
        valid = torch.cat([prefix.valid, suffix.valid], dim=1)
        mask = block_mask(valid, torch.cat([prefix.starts, suffix.starts], dim=1))
        hidden = self.vlm_with_expert(
            prefix.embeddings, suffix.embeddings, mask, positions_of(valid), prefix.context
        )
        return self._velocity(hidden)

    def _read(self, prefix: Embedded) -> list[KeyValues]:
        mask, positions = block_mask(prefix.valid, prefix.starts), positions_of(prefix.valid)
        return self.vlm_with_expert.forward_prefix(prefix.embeddings, mask, positions, prefix.context)

    def _velocity(self, hidden: Tensor) -> Tensor:
        velocity: Tensor = self.action_out_proj(hidden)
        return velocity.float()  # the integration and the loss are float32 whatever the weights are

    def _embed_images(self, images: list[Tensor]) -> list[Tensor]:
        if len({image.shape for image in images}) == 1 and images[0].ndim == 4:  # one pass for all cameras
            tokens = list(self.vlm_with_expert.embed_image(torch.cat(images)).chunk(len(images)))
        else:
            width = self.state_proj.weight  # tokens that were kept take the type that others have
            tokens = [
                image.to(width.dtype) if image.ndim == 3 else self.vlm_with_expert.embed_image(image)
                for image in images
            ]
        return [camera * math.sqrt(camera.shape[-1]) for camera in tokens]

    def _embed_tokens(self, ids: list[int], batch: int, device: torch.device) -> Tensor:
        # Unlike text, these are not scaled.
        tokens = torch.tensor(ids, dtype=torch.long, device=device)
        return self.vlm_with_expert.embed_language_tokens(tokens).expand(batch, -1, -1)


class SmolVLAPolicy(PreTrainedPolicy):
    """SmolVLA as a policy: takes preprocessed batches, gives losses and normalized actions (see `smolact.types.Policy`).

    Args:
        config: what to build.
        vlm: where configuration, tokenizer and weights of the VLM come from; found by `config.vlm_model_name`.
        pretrained_vlm: load the VLM's weights; what `config.load_vlm_weights` says when not given.
    """

    config_class = SmolVLAConfig
    name = "smolvla"
    new_parts = ", the action expert new"
    adapter_targets = (
        r"model\.(vlm_with_expert\.lm_expert\..*\.[qv]_proj"
        r"|state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out)"
    )
    sole_engine = {"release": True, "capture": True}  # noqa: RUF012
    config: SmolVLAConfig
    model: VLAFlowMatching

    def __init__(
        self, config: SmolVLAConfig, *, vlm: VLMSource | None = None, pretrained_vlm: bool | None = None
    ) -> None:
        super().__init__(config)
        pretrained_vlm = config.load_vlm_weights if pretrained_vlm is None else pretrained_vlm
        self.vlm = vlm or find_vlm(config.vlm_model_name, weights=pretrained_vlm)
        self.model = VLAFlowMatching(config, self.vlm)
        if pretrained_vlm:
            load_vlm(self.vlm, self.model.vlm_with_expert.vlm)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The shape of one sample's `noise`: (chunk, max_action_dim)."""
        return self.config.chunk_size, self.config.max_action_dim

    @property
    def training_draws(self) -> FlowDraws:
        """What a training sample needs drawn: its noise and its time."""
        return FlowDraws(self.noise_shape)

    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The flow-matching loss over actions inside the episode.

        Args:
            batch: as the preprocessor makes it; `action_is_pad` marks what lies past an episode's end.
            noise: (B, chunk, max_action_dim), or N of them (B, N, chunk, max_action_dim); drawn when not given.
            time: (B,) in (0, 1], or (B, N); drawn when not given.
            reduction: "mean" for a scalar, "none" for one loss a sample (B,), "sum" for the sum over all entries, whose
                number is `entries` beside it: what is needed to average over several batches or processes.

        Raises:
            FeatureError: an input is missing or has another shape.
            ConfigError: there is no such reduction.
        """
        inputs, actions = self._inputs(batch), self._actions(batch)
        if self.config.relative_step > 0:
            actions = (actions - self._here(inputs[-1])) / self._reach(actions)
        losses = self.model(
            *inputs, F.pad(actions, (0, self.config.max_action_dim - actions.shape[-1])), noise, time
        )
        losses = losses[..., : actions.shape[-1]]
        pad = batch.get(ACTION_IS_PAD)
        if pad is not None and pad.shape != actions.shape[:2]:
            raise FeatureError(
                f"'{ACTION_IS_PAD}' has the shape {tuple(pad.shape)}, expected (batch, chunk) {tuple(actions.shape[:2])}. "
                "Make a batch of samples with smolact.datasets.collate.collate."
            )
        valid = torch.ones_like(losses[..., 0]) if pad is None else (~pad).to(losses.dtype)
        sums, counts = (losses * valid[..., None]).sum((1, 2)), valid.sum(1) * losses.shape[-1]
        if reduction == "sum":
            return sums.sum(), {"entries": counts.sum()}
        if reduction not in ("mean", "none"):
            raise ConfigError(f"reduction='{reduction}': expected 'mean', 'none' or 'sum'.")
        loss = sums.sum() / counts.sum().clamp_min(1) if reduction == "mean" else sums / counts.clamp_min(1)
        return loss, {"loss": loss.detach().mean()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next actions (B, chunk, A), normalized; from `noise` (B, chunk, max_action_dim), drawn when not given.

        Raises:
            FeatureError: an input is missing or has another shape.
        """
        return self._get_action_chunk(batch, noise)

    def build_engine(self, **settings: Any) -> Engine:
        """What `predict_action_chunk` gives, faster; settings are those of `smolact.policies.smolvla.engine.SmolVLAEngine`.

        Raises:
            ConfigError: a setting can't work, or not on this machine.
        """
        from smolact.policies.smolvla.engine import SmolVLAEngine

        return SmolVLAEngine(self, **settings)

    def _get_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """`predict_action_chunk`, differentiable."""
        inputs = self._inputs(batch)
        return self.finish_actions(self.model.sample_actions(*inputs, noise=noise), inputs[-1])

    def finish_actions(self, actions: Tensor, state: Tensor) -> Tensor:
        """What was sampled (B, C, max_action_dim) from a prepared state (B, max_state_dim), as normalized actions (B, C, A)."""
        actions = actions[..., : self.config.action_feature.shape[0]]
        if self.config.relative_step > 0:
            actions = self._here(state) + self._reach(actions) * actions
        return aloha.encode_actions(actions) if self.config.adapt_to_pi_aloha else actions

    def _here(self, state: Tensor) -> Tensor:
        """The (padded) states that the actions are relative to, (B, 1, A)."""
        width = self.config.action_feature.shape[0]
        known = self.config.robot_state_feature
        if known is None or known.shape[0] < width:
            raise ConfigError(
                f"relative_step={self.config.relative_step} needs a state value for each of the {width} action values. "
                "Set --policy.relative_step=0."
            )
        return state[:, None, :width]

    def _reach(self, actions: Tensor) -> Tensor:
        """How far each action of a chunk may be from the state, (C, 1): further with each step."""
        steps = torch.arange(1, actions.shape[1] + 1, device=actions.device, dtype=actions.dtype)
        return self.config.relative_step * steps[:, None]

    def prepare_images(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Each camera's images (B, 3, h, w), fitted and in [−1, 1], and which are real (B,).

        Cameras that are not in the batch become black and masked, as many as `empty_cameras`; further ones are left
        out, as the reference does. Commands check cameras before they start.

        Raises:
            FeatureError: none of the cameras is there.
        """
        keys = list(self.config.image_features)
        present = [key for key in keys if key in batch or key + VISION_TOKENS in batch]
        if not present:
            raise FeatureError(
                f"The batch has none of the policy's cameras {keys}; it holds {sorted(map(str, batch))}. "
                "Map its names with --rename_map."
            )
        images, masks = [], []
        for key in present:
            kept = batch.get(key + VISION_TOKENS)
            images.append(self._prepared(batch[key]) if kept is None else kept)
            image = images[-1]
            mask = batch.get(f"{key}_padding_mask")
            masks.append(
                torch.ones(len(image), dtype=torch.bool, device=image.device) if mask is None else mask.bool()
            )
        for _ in range(min(len(keys) - len(present), self.config.empty_cameras)):
            images.append(torch.full_like(images[-1], -1.0))
            masks.append(torch.zeros_like(masks[-1]))
        return images, masks

    def prepare_language(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L), and which of them are the instruction's and not padding (B, L).

        Raises:
            FeatureError: they are missing.
        """
        self._require(batch, LANGUAGE_TOKENS, LANGUAGE_MASK)
        return batch[LANGUAGE_TOKENS], batch[LANGUAGE_MASK].bool()

    def prepare_state(self, batch: Mapping[str, Any]) -> Tensor:
        """The state, padded with zeros (B, max_state_dim).

        Raises:
            FeatureError: it is missing or too wide.
        """
        self._require(batch, STATE)
        state: Tensor = batch[STATE][:, -1] if batch[STATE].ndim > 2 else batch[STATE]
        if state.shape[-1] > self.config.max_state_dim:
            raise FeatureError(
                f"The state has {state.shape[-1]} values, the policy takes up to {self.config.max_state_dim}. "
                "Raise --policy.max_state_dim (a base model's can't be changed)."
            )
        if self.config.adapt_to_pi_aloha:
            state = aloha.decode_state(state)
        return F.pad(state, (0, self.config.max_state_dim - state.shape[-1]))

    def _prepared(self, image: Tensor) -> Tensor:
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
        return self.model.vlm_with_expert.embed_image(self._prepared(images))

    def _inputs(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
        self._require(batch, LANGUAGE_TOKENS, LANGUAGE_MASK, STATE)
        state = self.prepare_state(batch)
        return (*self.prepare_images(batch), *self.prepare_language(batch), state)

    def _require(self, batch: Mapping[str, Any], *keys: str) -> None:
        for key in keys:
            if key not in batch:
                raise FeatureError(
                    f"The batch has no '{key}'; it holds {sorted(map(str, batch))}. "
                    "Pass it through the policy's preprocessor first."
                )

    def _actions(self, batch: Mapping[str, Any]) -> Tensor:
        expected = (self.config.chunk_size, self.config.action_feature.shape[0])
        actions: Tensor | None = batch.get(ACTION)
        if actions is None or tuple(actions.shape[1:]) != expected:
            found = "nothing" if actions is None else f"shape {tuple(actions.shape)}"
            raise FeatureError(
                f"Training needs '{ACTION}' of shape (batch, {expected[0]}, {expected[1]}), found {found}. Ask the "
                "dataset for a chunk: delta_timestamps={'action': [i / fps for i in range(chunk_size)]}."
            )
        if expected[1] > self.config.max_action_dim:
            raise FeatureError(
                f"The action has {expected[1]} values, the policy gives up to {self.config.max_action_dim}. "
                "Raise --policy.max_action_dim (a base model's can't be changed)."
            )
        return aloha.decode_actions(actions) if self.config.adapt_to_pi_aloha else actions
