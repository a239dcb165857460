"""SmolVLA's network: from prepared images, tokens and state to a velocity, and by it to a chunk of actions.

    images, instruction ─┐
    state ───────────────┴► SmolVLM ─ keys, values ─► expert ◄─ noisy actions, time
                                                        └─► velocity ─► (10 Euler steps) ─► actions

Distinctive: the state is a token of the prefix, to which images and text do not attend; action tokens attend to the whole
prefix and, causally, to each other; the expert learns the velocity from actions to noise (flow matching).
Source: Shukor et al. 2025, arXiv 2506.01844; numbers checked against LeRobot 0.6.1 (tests/parity).
"""

# B batch, P prefix tokens, C chunk, D width of the VLM, E width of the expert, A (padded) action width.

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor, nn

from smolact.backbones.presets import VLMSource
from smolact.backbones.smolvlm import KeyValues, initialize
from smolact.errors import ConfigError
from smolact.policies.common.attention import block_mask, positions_of
from smolact.policies.common.flow_matching import (
    integrate,
    interpolate,
    sample_noise,
    sample_time,
    time_embedding,
)
from smolact.policies.common.guidance import Guidance, guided
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel


class Embedded(NamedTuple):
    """Embeddings (B, P, D), which of them are valid (B, P), and which begin a block (B, P).

    `context`: the number of leading tokens that are constants and do not attend to the others.
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
        # SmolVLM's special tokens before and after an image.
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
        """Embed images, instruction and state.

        Args:
            images: one (B, 3, h, w) in [−1, 1] per camera, or its vision tokens (B, T, D).
            img_masks: one (B,) bool per camera, false where the image is missing.
            lang_tokens: (B, L) token ids.
            lang_masks: (B, L) bool, false where padded.
            state: (B, max_state_dim).

        Returns:
            Embeddings, validity and block starts. Images and text are one block, the state begins the next: earlier
            tokens do not attend to it.
        """
        batch = len(state)
        parts: list[Tensor] = []
        valid: list[Tensor] = []
        start, end = (
            self._embed_tokens(ids, batch, state.device) for ids in (self.image_start, self.image_end)
        )
        for tokens, mask in zip(self._embed_images(images), img_masks, strict=True):
            parts += [start, tokens, end]
            ones = torch.ones(batch, 1, dtype=torch.bool, device=state.device)
            valid += [
                ones.expand(-1, start.shape[1]),
                mask[:, None].expand(-1, tokens.shape[1]),
                ones.expand(-1, end.shape[1]),
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
        """Return the squared error of the predicted velocity, (B, C, A), for actions (B, C, A) at random noise and times.

        With several draws per sample, noise (B, N, C, A) and time (B, N), it is their mean; the prefix is run once.
        """
        if noise is None:
            noise = sample_noise(tuple(actions.shape), actions.device)
        if time is None:
            time = sample_time(len(actions), actions.device)
        if noise.ndim == 3:
            noise, time = noise[:, None], time[:, None]
        batch, draws = noise.shape[:2]
        actions = actions[:, None].expand_as(noise).flatten(0, 1)
        noise, time = noise.flatten(0, 1), time.flatten()
        noisy, velocity = interpolate(noise, actions, time)
        prefix = self.embed_prefix(images, img_masks, lang_tokens, lang_masks, state)
        predicted = self._forward_flow_matching(prefix, noisy, time)
        errors = F.mse_loss(predicted, velocity, reduction="none")
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
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Sample a chunk of actions (B, C, A), from `noise` (B, C, A) or fresh noise, in `num_steps` steps of a solver.

        With `guidance` it continues the leftover of the last chunk. The prefix is then run once, whatever `use_cache` is,
        and without a gradient: only the expert is differentiated.
        """
        if noise is None:
            noise = sample_noise(
                (len(state), self.config.chunk_size, self.config.max_action_dim), state.device
            )
        prefix = self.embed_prefix(images, img_masks, lang_tokens, lang_masks, state)
        cached = self.config.use_cache or guidance is not None
        if cached:
            cache = self._run_prefix(prefix)

        def velocity(x: Tensor, time: float) -> Tensor:
            times = torch.full((len(x),), time, device=x.device)
            if cached:
                return self.denoise_step(prefix.valid, cache, x, times)
            return self._forward_flow_matching(prefix, x, times)

        field = velocity if guidance is None else guided(velocity, guidance)
        return integrate(field, noise, self.config.num_steps, solver)

    def denoise_step(
        self, prefix_valid: Tensor, cache: list[KeyValues], x_t: Tensor, timestep: Tensor
    ) -> Tensor:
        """Return the velocity (B, C, A) at noisy actions x_t (B, C, A) and times (B,), given the prefix's keys and values."""
        embeddings, valid, starts, _ = self.embed_suffix(x_t, timestep)
        causal = block_mask(valid, starts)
        mask = torch.cat([prefix_valid[:, None].expand(-1, causal.shape[1], -1), causal], dim=2)
        positions = prefix_valid.sum(-1, keepdim=True) + positions_of(valid)
        return self._velocity(self.vlm_with_expert.forward_suffix(embeddings, mask, positions, cache))

    def _forward_flow_matching(self, prefix: Embedded, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the velocity (B * N, C, A) at noisy actions (B * N, C, A) and times (B * N,), N for each sample.

        Prefix and suffix are one pass, in which the prefix is run once.
        """
        suffix, batch = self.embed_suffix(noisy, time), len(prefix.valid)
        # All N have the same mask.
        valid = torch.cat([prefix.valid, suffix.valid[:batch]], dim=1)
        mask = block_mask(valid, torch.cat([prefix.starts, suffix.starts[:batch]], dim=1))
        hidden = self.vlm_with_expert(
            prefix.embeddings, suffix.embeddings, mask, positions_of(valid), prefix.context
        )
        return self._velocity(hidden)

    def _run_prefix(self, prefix: Embedded) -> list[KeyValues]:
        mask, positions = block_mask(prefix.valid, prefix.starts), positions_of(prefix.valid)
        return self.vlm_with_expert.forward_prefix(prefix.embeddings, mask, positions, prefix.context)

    def _velocity(self, hidden: Tensor) -> Tensor:
        velocity: Tensor = self.action_out_proj(hidden)
        return velocity.float()  # integration and loss are float32 for weights of any dtype

    def _embed_images(self, images: list[Tensor]) -> list[Tensor]:
        if len({image.shape for image in images}) == 1 and images[0].ndim == 4:  # one pass for all cameras
            tokens = list(self.vlm_with_expert.embed_image(torch.cat(images)).chunk(len(images)))
        else:
            weight = self.state_proj.weight  # cached vision tokens take its dtype
            tokens = [
                image.to(weight.dtype) if image.ndim == 3 else self.vlm_with_expert.embed_image(image)
                for image in images
            ]
        return [camera * math.sqrt(camera.shape[-1]) for camera in tokens]

    def _embed_tokens(self, ids: list[int], batch: int, device: torch.device) -> Tensor:
        # Unlike text, these are not scaled.
        tokens = torch.tensor(ids, dtype=torch.long, device=device)
        return self.vlm_with_expert.embed_language_tokens(tokens).expand(batch, -1, -1)


def check_image_size(config: SmolVLAConfig, vlm: VLMSource) -> None:
    """Raise a `ConfigError` unless width and height of images are multiples of a token's side."""
    size = config.resize_imgs_with_padding
    block = vlm.config.vision_config.patch_size * vlm.config.scale_factor
    if size is not None and any(
        side // vlm.config.vision_config.patch_size % vlm.config.scale_factor or side < block for side in size
    ):
        raise ConfigError(
            f"resize_imgs_with_padding={size}: this VLM makes one token of {block}×{block} pixels, so width and height must be "
            f"multiples of {block}. Set --policy.resize_imgs_with_padding."
        )


def image_tokens(vlm: VLMSource) -> tuple[list[int], list[int]]:
    """Return the ids of SmolVLM's special tokens before and after an image.

    Raises:
        ConfigError: the tokenizer has none.
    """
    folder = vlm.tokenizer_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fake, full = (tokenizer.token_to_id(token) for token in ("<fake_token_around_image>", "<global-img>"))
    if fake is None or full is None:
        raise ConfigError(
            f"The tokenizer in {folder} lacks SmolVLM's image tokens. Set --policy.add_image_special_tokens=false."
        )
    return [fake, full], [fake]
