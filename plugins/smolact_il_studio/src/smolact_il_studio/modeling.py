"""SmolVLA and SmolAndFAST for IL-Studio: transformers' `PreTrainedModel` around smolact's policies.

Weights have LeRobot's names (`model.…`), so that checkpoints of IL-Studio's own SmolVLA load here. The loss is that of
`smolact train`: the mean over actions inside the episode and over the robot's dimensions. IL-Studio normalizes inputs and
unnormalizes actions.
"""

# B batch, K cameras, C chunk, A action width, D state width, L tokens, M tokens of an answer.

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import transformers
from torch import Tensor

from smolact import durable
from smolact.backbones.weights import WEIGHTS_FILE
from smolact.errors import FeatureError
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.common.chunking import Engine
from smolact.policies.configuration import CONFIG_FILE
from smolact.policies.factory import get_policy_class, make_policy
from smolact.policies.smolandfast.processor_smolandfast import prompt_step
from smolact.policies.vlm_policy import VLMPolicy
from smolact.types import (
    ACTION,
    ACTION_IS_PAD,
    ACTION_TOKEN_MASK,
    ACTION_TOKENS,
    IMAGES,
    LANGUAGE_MASK,
    LANGUAGE_TOKENS,
    STATE,
)
from smolact_il_studio import data_utils
from smolact_il_studio.configuration import ILStudioConfig, SmolAndFASTConfig, SmolVLAConfig
from smolact_il_studio.folders import find_checkpoint

M = TypeVar("M", bound="ILStudioPolicy")


class ILStudioPolicy(transformers.PreTrainedModel):  # type: ignore[misc]
    """A policy of smolact with IL-Studio's interface.

    Args:
        config: the configuration. A new policy starts from its VLM's weights unless `config.load_vlm_weights` is false.
        core: an existing policy.

    Raises:
        NotFoundError, HubError: the VLM is missing.
        ConfigError: the settings are an invalid combination.
    """

    config_class: ClassVar[type[ILStudioConfig]]
    data_collator: ClassVar[Any]
    base_model_prefix = "model"
    main_input_name = "lang_tokens"
    core: VLMPolicy
    """smolact's policy. Not a submodule, since all its weights are in `model`."""
    _inference_lock: ClassVar[threading.Lock] = threading.Lock()
    """Serializes inference: an engine has one set of buffers, and IL-Studio's server has a thread per robot."""

    def __init__(self, config: ILStudioConfig, core: PreTrainedPolicy | None = None) -> None:
        super().__init__(config)
        if core is None:
            settings = config.policy_config()
            core = make_policy(settings, pretrained_vlm=config.load_vlm_weights)
        assert isinstance(core, VLMPolicy)
        self.model = core.model
        object.__setattr__(self, "core", core)  # bypasses `nn.Module`, which would register a submodule
        self._engine: Engine | None = None

    @classmethod
    def from_pretrained(cls: type[M], folder_or_id: str | Path, **settings: Any) -> M:
        """Load a checkpoint of IL-Studio (also of its own SmolVLA), smolact or LeRobot.

        Args:
            folder_or_id: the folder of a checkpoint or of an IL-Studio run (its last `checkpoint-N` if unfinished), or a Hub id.
            settings: overrides of the configuration.

        Raises:
            NotFoundError, HubError: it is missing.
            CheckpointError: a file is corrupt; `WeightsError` if weights do not match.
            ConfigError: it is another policy's, or a setting is invalid.
        """
        folder = find_checkpoint(folder_or_id)
        config = cls.config_class.from_checkpoint(folder, **settings)
        policy_config = config.policy_config()
        core = get_policy_class(policy_config.type).from_pretrained(folder, config=policy_config)
        model = cls(config, core.merge_adapters())
        model.eval()
        return model

    def save_pretrained(
        self, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None, **_: Any
    ) -> None:
        """Write the configuration, the weights (`state_dict` if given), and the files that are needed to load them offline."""
        folder = Path(folder)
        self.config.architectures = [type(self).__name__]
        durable.write_text(folder / CONFIG_FILE, self.config.to_json_string())
        self.core.save_extra_files(folder)
        names = {
            *dict(self.named_parameters()),
            *dict(self.named_buffers()),
        }  # tied weights by their first name only
        tensors = self.state_dict() if state_dict is None else state_dict
        weights = {name: tensor.contiguous() for name, tensor in tensors.items() if name in names}
        with durable.replacing_file(folder / WEIGHTS_FILE) as temporary:
            durable.save_tensors(temporary, weights, metadata={"format": "pt"})

    @torch.inference_mode(False)  # an engine's buffers outlive the caller's inference mode
    @torch.no_grad()
    def select_action(self, obs: Mapping[str, Any]) -> Tensor:
        """Predict the next actions (B, C, A), normalized.

        Args:
            obs: `state` (B, D), normalized, `image` (B, K, 3, H, W), uint8 or floating point in [0, 1], and `raw_lang`: B
                instructions, or one for all.

        Raises:
            FeatureError: an input is missing or has another size.
            ConfigError: an instruction is empty.
        """
        missing = [name for name in ("state", "image", "raw_lang") if obs.get(name) is None]
        if missing:
            raise FeatureError(
                f"The observation has no {', '.join(missing)}; it holds {sorted(k for k in obs if obs[k] is not None)}."
            )
        raw = obs["raw_lang"]
        texts = [raw] * len(obs["state"]) if isinstance(raw, str) else list(raw)
        if not len(texts) == len(obs["state"]) == len(obs["image"]):
            raise FeatureError(
                f"The observation has {len(obs['state'])} states, {len(obs['image'])} sets of pictures and {len(texts)} "
                "instructions: expected as many of each."
            )
        samples = [
            self.processor({"state": state, "image": image, "raw_lang": text})
            for state, image, text in zip(obs["state"], obs["image"], texts, strict=True)
        ]
        batch = type(self).data_collator(samples)
        actions: Tensor = self(**{name: self._to_device(value) for name, value in batch.items()})["action"]
        return actions

    def reset(self) -> None:
        """Begin an episode. There is no state to clear: IL-Studio has the action queue."""

    @property
    @abstractmethod
    def processor(self) -> Callable[[data_utils.Sample], dict[str, Any]]:
        """The processor of IL-Studio's samples."""

    def _predict(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> dict[str, Tensor]:
        with self._inference_lock:
            if self.config.engine != "off" and self._engine is None:
                self._engine = self.core.build_engine(dtype=getattr(torch, self.config.engine))
            return {"action": (self._engine or self.core).predict_action_chunk(batch, noise)}

    def _cameras(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the images by camera name; the first batch numbers the cameras if they have no names."""
        if not self.config.camera_names:
            self.config.camera_names = [f"camera{number}" for number in range(1, len(images) + 1)]
            self.core.config.input_features.update(self.config.policy_config().input_features)
        names = self.config.camera_names
        if not self.config.takes(len(images)):
            raise FeatureError(
                f"The batch has {len(images)} cameras, the policy {len(names)}: {', '.join(names)}."
            )
        return {f"{IMAGES}.{name}": image for name, image in zip(names, images, strict=False)}

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, list):
            return [item.to(self.device) for item in value]
        return value.to(self.device)


class SmolVLAPolicy(ILStudioPolicy):
    """SmolVLA in IL-Studio."""

    config_class = SmolVLAConfig
    data_collator = staticmethod(data_utils.smolvla_collator)

    def forward(
        self,
        images: Sequence[Tensor],
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        actions: Tensor | None = None,
        is_pad: Tensor | None = None,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `{"loss"}` of a batch with actions, `{"action"}` (B, C, A) of one without.

        Args:
            images: one (B, 3, H, W) per camera, uint8 or floating point in [0, 1], of any size.
            img_masks: one (B,) bool per camera, false where there is no image.
            lang_tokens: (B, L) token ids.
            lang_masks: (B, L) bool, false where padded.
            state: (B, D), normalized.
            actions: (B, C, A), normalized.
            is_pad: (B, C) bool, true after an episode's end.
            noise, time: (B, C, max_action_dim) and (B,); sampled by default.

        Raises:
            FeatureError: an input has another size.
        """
        cameras = self._cameras(images)
        masks = {f"{key}_padding_mask": mask for key, mask in zip(cameras, img_masks, strict=True)}
        batch = {**cameras, **masks, STATE: state, LANGUAGE_TOKENS: lang_tokens, LANGUAGE_MASK: lang_masks}
        if actions is None:
            return self._predict(batch, noise)
        batch |= {ACTION: actions} if is_pad is None else {ACTION: actions, ACTION_IS_PAD: is_pad}
        return {"loss": self.core.forward(batch, noise, time)[0]}

    @cached_property
    def processor(self) -> data_utils.SmolVLAProcessor:
        """The processor of IL-Studio's samples."""
        tokenizer = self.core.processor_parts()["tokenizer_processor"]["tokenizer"]
        return data_utils.SmolVLAProcessor(self.config, tokenizer)


class SmolAndFASTPolicy(ILStudioPolicy):
    """SmolAndFAST in IL-Studio. State and actions must be normalized to [-1, 1] (minmax or percentile)."""

    config_class = SmolAndFASTConfig
    data_collator = staticmethod(data_utils.smolandfast_collator)

    def forward(
        self,
        images: Sequence[Tensor],
        img_masks: Sequence[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        action_tokens: Tensor | None = None,
        action_masks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `{"loss"}` of a batch with answers, `{"action"}` (B, C, A) of one without.

        Args:
            images: one (B, 3, H, W) per camera, uint8 or floating point in [0, 1].
            img_masks, state: not read; the prompt contains the state as text.
            lang_tokens, lang_masks: prompts (B, L), padded on the left, and their masks, false where padded.
            action_tokens, action_masks: answers (B, M), padded on the right, and their masks, false where padded.

        Raises:
            FeatureError: an input has another size.
            ActionTokensError: a predicted answer did not end.
        """
        batch = {**self._cameras(images), LANGUAGE_TOKENS: lang_tokens, LANGUAGE_MASK: lang_masks}
        if action_tokens is None or action_masks is None:
            return self._predict(batch)
        crop = None
        if self.training and self.core.training_draws is not None:
            crop = torch.rand(len(state), len(images), 2, device=state.device)
        batch |= {ACTION_TOKENS: action_tokens, ACTION_TOKEN_MASK: action_masks}
        return {"loss": self.core.forward(batch, crop=crop)[0]}  # type: ignore[call-arg]

    @cached_property
    def processor(self) -> data_utils.SmolAndFASTProcessor:
        """The processor of IL-Studio's samples."""
        writer = self.core.processor_parts()["smolandfast_prompt_processor"]["writer"]
        return data_utils.SmolAndFASTProcessor(self.config, prompt_step(self.core.config, writer))  # type: ignore[arg-type]
