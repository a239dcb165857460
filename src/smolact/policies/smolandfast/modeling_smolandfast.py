"""SmolAndFAST: a SmolVLM2 for images, task and state that generates a chunk of actions as tokens.

    images ─► vision tower ─► connector ─┐
    "Task: …, State: 12 255, Action: " ──┴► SmolVLM ─► token ─► token ─► … ─► FAST ─► chunk

Distinctive: actions are words. The last tokens of the vocabulary stand for FAST's tokens, the loss is that of a language
model on the answer alone, and a grammar allows only those tokens that make a whole chunk.
Source: the Robot Learning Collective's SmolAndFAST, after Pertsch et al. 2025 (π0-FAST); numbers checked against it
(tests/parity).
"""

# B batch, I images of all samples.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.presets import VLMSource
from smolact.backbones.smolvlm import initialize
from smolact.errors import ConfigError, FeatureError
from smolact.policies.base import default_steps, reduce_loss
from smolact.policies.common.images import to_float
from smolact.policies.configuration import PolicyConfig
from smolact.policies.smolandfast import flops_smolandfast
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolandfast.engine import SmolAndFASTEngine
from smolact.policies.smolandfast.grammar import Grammar
from smolact.policies.smolandfast.network import SMOLANDFAST
from smolact.policies.smolandfast.processor_smolandfast import (
    PromptWriter,
    SmolAndFASTPromptStep,
    longest_edge,
    prompt_step,
)
from smolact.policies.smolandfast.prompts import chat_template
from smolact.policies.smolandfast.schemes import ActionTokens, ActionVocabulary, Bins, Text
from smolact.policies.smolandfast.tiles import split
from smolact.policies.vlm_policy import VLMPolicy, require
from smolact.policies.workload import PartSize, Workload
from smolact.processors.factory import make_pipelines
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.step import ProcessorStep
from smolact.processors.tokenizer import Tokenizer
from smolact.types import ACTION_TOKEN_MASK, ACTION_TOKENS, LANGUAGE_MASK, LANGUAGE_TOKENS

__all__ = ["SMOLANDFAST", "SMOLANDFASTPolicy"]

FAST_FOLDER = "fast_tokenizer"
"""The folder of the action tokenizer in a checkpoint."""


@dataclass(frozen=True)
class CropDraws:
    """Draws the crop positions of a training sample's images: `crop` (cameras, 2), in [0, 1] of the possible offsets."""

    cameras: int

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw them for one sample."""
        return {"crop": torch.rand(self.cameras, 2, generator=generator)}


class SMOLANDFASTPolicy(VLMPolicy):
    """SmolAndFAST as a policy: from preprocessed batches to losses and normalized actions.

    Args:
        config: the settings.
        vlm: source of the VLM's configuration, tokenizer and weights; by default that of `config.vlm_checkpoint`.
        pretrained_vlm: load the VLM's weights; true by default.
        fast: the FAST tokenizer, if the policy uses one; by default that of `config.fast_tokenizer_path`.

    Raises:
        ConfigError: a new connector is frozen, or action tokens do not fit policy or vocabulary.
    """

    config_class = SMOLANDFASTConfig
    name = "smolandfast"
    adapter_targets = r"model\.vlm\.model\.text_model\..*\.[qv]_proj"
    config: SMOLANDFASTConfig
    model: SMOLANDFAST

    def __init__(
        self,
        config: SMOLANDFASTConfig,
        *,
        vlm: VLMSource | None = None,
        pretrained_vlm: bool | None = None,
        fast: FASTTokenizer | None = None,
    ) -> None:
        pretrained_vlm = pretrained_vlm is not False
        super().__init__(config, vlm=vlm, pretrained_vlm=pretrained_vlm)
        self.actions = action_tokens(config, fast)
        self.chunk_shape = self.actions.shape(config.chunk_size, config.action_feature.shape[0])
        self.tokenizer = Tokenizer.from_folder(self.vlm.tokenizer_folder())
        words = self.actions.words(self.tokenizer, config.fast_skip_tokens)
        vocabulary = ActionVocabulary.of(words, self.tokenizer)
        is_new = config.scale_factor != self.vlm.config.scale_factor
        if is_new and config.freeze_connector:
            raise ConfigError(
                f"scale_factor={config.scale_factor} is not the VLM's ({self.vlm.config.scale_factor}), so the connector's "
                "projection is new, and frozen it would never learn. Set --policy.freeze_connector=false, or "
                f"--policy.scale_factor={self.vlm.config.scale_factor}."
            )
        sizes = replace(self.vlm.config, scale_factor=config.scale_factor)
        self.side = sizes.vision_config.image_size
        if self.side // sizes.vision_config.patch_size % config.scale_factor:
            raise ConfigError(
                f"scale_factor={config.scale_factor} does not divide the {self.side // sizes.vision_config.patch_size} patches of "
                "an image's side. Set --policy.scale_factor."
            )
        self.model = SMOLANDFAST(sizes, vocabulary)
        initialize(self.model, sizes.text_config.initializer_range)
        if pretrained_vlm:
            projection = "model.connector.modality_projection.proj.weight"
            new = (projection,) if is_new else ()
            self.load_vlm_weights(self.model.vlm, new=new, instead="Use --policy.init=random")
        self.model.to(getattr(torch, config.precision))
        self.model.vlm.model.vision_model.requires_grad_(not config.freeze_vision_encoder)
        self.model.vlm.model.connector.requires_grad_(not config.freeze_connector)
        self.longest_edge = (
            longest_edge(self.vlm.tokenizer_folder(), self.side) if config.do_image_splitting else None
        )
        self._grammar: Grammar | None = None

    @property
    def training_draws(self) -> CropDraws | None:
        """The random draws of a training sample: its crop positions, if images are cropped."""
        return None if self.config.crop_shape is None else CropDraws(len(self.config.image_features))

    @classmethod
    def load_extra_files(
        cls, folder: Path | None, config: PolicyConfig, raw: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the VLM, and load the checkpoint's action tokenizer, unless another was chosen."""
        assert isinstance(config, SMOLANDFASTConfig)
        arguments = super().load_extra_files(folder, config, raw)
        is_same = config.fast_tokenizer_path == raw.get("fast_tokenizer_path")
        if folder is not None and is_same and (folder / FAST_FOLDER).is_dir():
            arguments["fast"] = FASTTokenizer.load(folder / FAST_FOLDER)
        return arguments

    def make_processors(
        self,
        stats: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        rename_map: Mapping[str, str] | None = None,
    ) -> tuple[ProcessorPipeline, ProcessorPipeline]:
        """Make the processors, with the step that writes prompts and answers."""
        steps = default_steps(self.config, stats, rename_map)
        before: list[ProcessorStep] = [
            steps.rename_observations,
            steps.add_batch_dimension,
            steps.to_device,
            steps.normalize,
        ]
        (parts,) = self.processor_parts().values()
        before.append(prompt_step(self.config, **parts))
        return make_pipelines(before, [steps.unnormalize, steps.to_cpu])

    def processor_parts(self) -> dict[str, dict[str, Any]]:
        """Return the writer of prompts and answers."""
        config = self.config
        writer = PromptWriter(
            self.tokenizer,
            chat_template(self.vlm.tokenizer_folder()),
            self.actions,
            self.model.vocabulary,
            self.model.vlm.config.image_tokens,
            self.side,
            self.longest_edge,
            config.crop_shape,
        )
        return {"smolandfast_prompt_processor": {"writer": writer}}

    def fill_in_processor(self, preprocess: ProcessorPipeline) -> ProcessorPipeline:
        """Add the prompt step, which the authors' own checkpoints lack: their model contains it."""
        if any(isinstance(step, SmolAndFASTPromptStep) for step in preprocess.steps):
            return preprocess
        (parts,) = self.processor_parts().values()
        return ProcessorPipeline([*preprocess.steps, prompt_step(self.config, **parts)], preprocess.name)

    def save_extra_files(self, folder: Path) -> None:
        """Save the action tokenizer besides the files of every policy."""
        super().save_extra_files(folder)
        self.actions.save(folder / FAST_FOLDER)

    def get_optim_params(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return vision tower, connector and text model, each with its own learning rate; frozen parameters too."""
        model, config = self.model.vlm.model, self.config
        groups = {
            "vision_model": (model.vision_model, config.vision_model_optimizer_lr),
            "connector": (model.connector, config.connector_optimizer_lr),
            "text_model": (
                nn.ModuleList([model.text_model, self.model.vlm.lm_head]),
                config.text_model_optimizer_lr,
            ),
        }
        return [
            {"params": list(part.parameters()), "lr": rate, "name": name}
            for name, (part, rate) in groups.items()
        ]

    def workload(self, parts: Mapping[str, PartSize]) -> Workload:
        """Return the cost of one sample, counted from the sizes of the layers."""
        return flops_smolandfast.workload(self.config, self.model, self.chunk_shape, parts)

    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
        crop: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the language model's loss over the answers: action tokens and the end token.

        Args:
            reduction: see `reduce_loss`.
            crop: (B, cameras, 2), the crop positions; centered by default.

        Raises:
            FeatureError: an input is missing.
            ConfigError: the reduction is unknown.
        """
        inputs = self.prepare_inputs(batch, crop)
        if ACTION_TOKENS not in batch:
            raise FeatureError(
                f"Training needs '{ACTION_TOKENS}'. Pass a batch with actions through the policy's preprocessor first."
            )
        answer_mask = batch[ACTION_TOKEN_MASK]
        losses = self.model(*inputs, batch[ACTION_TOKENS], answer_mask)
        sums, counts = losses.sum(1), answer_mask.sum(1)
        return reduce_loss(sums, counts, reduction)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Predict the next actions (B, chunk, A), normalized, from the most likely answer. `noise` is not used.

        Raises:
            FeatureError: an input is missing.
            ActionTokensError: an answer was not complete after `max_decoding_steps` tokens.
        """
        inputs = self.prepare_inputs(batch)
        if self._grammar is None:
            self._grammar = self.actions.grammar(*self.chunk_shape)
        self._grammar = self._grammar.to(inputs[0].device)
        return self.decode(self.model.generate(*inputs, self._grammar, self.config.max_decoding_steps))

    def build_engine(self, **settings: Any) -> SmolAndFASTEngine:
        """Build an engine, which only predicts with these weights: faster, and in float32 with the same tokens.

        Args:
            settings: `dtype`, `int8`, `triton`, `temperature`, `generator`; see `SmolAndFASTEngine`.

        Raises:
            ConfigError: a setting is unknown, invalid, or not supported on this machine.
        """
        SmolAndFASTEngine.check_settings(settings)
        return SmolAndFASTEngine(self, **settings)

    def decode(self, written: Tensor) -> Tensor:
        """Decode answers (B, M), −1 after an answer's end, to chunks (B, T, D).

        Raises:
            ActionTokensError: one is no chunk.
        """
        ids = [[token for token in row if token >= 0] for row in written.tolist()]
        return torch.from_numpy(self.actions.decode(ids, *self.chunk_shape)).to(written.device)

    def prepare_inputs(
        self, batch: Mapping[str, Any], crop: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return prompts (B, L), the mask of their valid tokens, and pixels (`prepare_images`).

        Raises:
            FeatureError: an input is missing.
        """
        require(batch, LANGUAGE_TOKENS, LANGUAGE_MASK)
        return batch[LANGUAGE_TOKENS], batch[LANGUAGE_MASK], self.prepare_images(batch, crop)

    def prepare_images(self, batch: Mapping[str, Any], crop: Tensor | None = None) -> Tensor:
        """Return the vision tower's input, (I, 3, side, side) in [−1, 1]: sample by sample, camera by camera.

        Raises:
            FeatureError: the batch has none of the cameras, or an image is smaller than its crop.
        """
        cameras = []
        for number, key in enumerate(self.present_cameras(batch)):
            images = to_float(batch[key][:, -1] if batch[key].ndim == 5 else batch[key])
            if self.config.crop_shape is not None:
                images = cut_out(
                    images, self.config.crop_shape, None if crop is None else crop[:, number], key
                )
            cameras.append(self._resized(images))
        return torch.cat(cameras, 1).flatten(0, 1) * 2.0 - 1.0

    def _resized(self, images: Tensor) -> Tensor:
        """Convert images (B, 3, h, w) in [0, 1] to (B, tiles, 3, side, side)."""
        if self.longest_edge is None:
            if images.shape[-2:] != (self.side, self.side):
                images = F.interpolate(
                    images, size=(self.side, self.side), mode="bilinear", align_corners=False, antialias=True
                )
            return images[:, None]
        pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        tiles = np.stack([split(picture, self.side, self.longest_edge).pictures for picture in pictures])
        return torch.from_numpy(tiles).to(images.device).permute(0, 1, 4, 2, 3).float() / 255


def action_tokens(config: SMOLANDFASTConfig, fast: FASTTokenizer | None = None) -> ActionTokens:
    """Return the configured scheme; `fast` replaces the tokenizer of `config.fast_tokenizer_path`."""
    if config.action_tokens == "bins":
        return Bins(config.n_action_bins)
    if config.action_tokens == "text":
        return Text(config.n_action_levels)
    return fast or FASTTokenizer.load(config.fast_tokenizer_path)


def cut_out(images: Tensor, shape: tuple[int, int], where: Tensor | None, key: str) -> Tensor:
    """Crop images (B, 3, h, w) to (height, width): at `where` (B, 2) in [0, 1] of the possible offsets, or in the middle.

    Raises:
        FeatureError: an image is smaller than that.
    """
    height, width = shape
    margin = images.shape[-2] - height, images.shape[-1] - width
    if min(margin) < 0:
        raise FeatureError(
            f"'{key}' has images of {images.shape[-2]}×{images.shape[-1]}, and crop_shape={shape} is larger. Lower "
            "--policy.crop_shape."
        )
    if where is None:
        top, left = margin[0] // 2, margin[1] // 2
        return images[..., top : top + height, left : left + width]
    corners = (where.cpu() * (torch.tensor(margin) + 1)).long().clamp(max=torch.tensor(margin)).tolist()
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(images, corners, strict=True)
        ]
    )
