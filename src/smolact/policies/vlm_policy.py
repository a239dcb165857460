"""The base class of policies on a SmolVLM: where it comes from, its files in a checkpoint, and its modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from smolact.backbones.layers import GatedMLP
from smolact.backbones.presets import VLM_FOLDER, VLMSource, find_vlm
from smolact.backbones.smolvlm import SmolVLM, TextModel, VisionLayer
from smolact.backbones.weights import load_weights, read_tensors, weight_files
from smolact.errors import ConfigError, FeatureError
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import PolicyConfig
from smolact.policies.vlm_configuration import VLMConfig
from smolact.processors.tokenizer import Tokenizer
from smolact.types import VISION_TOKENS

PARTS = {
    "vision tower": ("vision_model",),
    "connector": ("connector",),
    "text model": ("text_model", "lm_head"),
    "action expert": ("lm_expert",),
}
"""The parts of a policy with a VLM, and the module names that identify their parameters; all others are projections."""


class VLMPolicy(PreTrainedPolicy):
    """The base of a policy with a VLM.

    Args:
        vlm: source of the VLM's configuration, tokenizer and weights; by default that of the configuration.
        pretrained_vlm: load the VLM's weights; the policy's choice when None.
    """

    config: VLMConfig
    vlm: VLMSource
    parts = PARTS
    new_parts: ClassVar[str] = ""
    """The end of a sentence that names the untrained parts of a policy that starts from its VLM's weights."""

    def __init__(
        self, config: PolicyConfig, *, vlm: VLMSource | None = None, pretrained_vlm: bool | None = None
    ) -> None:
        super().__init__(config)
        self.vlm = vlm or find_vlm(
            self.config.vlm_name, weights=bool(pretrained_vlm), field=self.config.vlm_field
        )

    @classmethod
    def load_extra_files(
        cls, folder: Path | None, config: PolicyConfig, raw: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the VLM of a checkpoint, without its weights: they are among the policy's."""
        assert isinstance(config, VLMConfig)
        name = config.vlm_name
        # The checkpoint holds a copy of its own VLM, not of one that an override selects.
        beside = folder if name == raw.get(config.vlm_field) else None
        field = config.vlm_field if folder is None else None
        return {"vlm": find_vlm(name, beside=beside, field=field), "pretrained_vlm": False}

    def load_vlm_weights(self, vlm: SmolVLM, *, new: Collection[str] = (), instead: str) -> None:
        """Load the VLM's weights into `vlm`, which may have fewer text layers.

        Args:
            new: the names of weights that are not loaded.

        Raises:
            ConfigError: the VLM has no weights.
            CheckpointError: a file is damaged; `WeightsError` if weights do not fit.
        """
        folder = self.vlm.folder
        if folder is None:
            raise ConfigError(
                f"The preset '{self.vlm.name}' has no trained weights. {instead}, or name a VLM that has some."
            )
        depth = len(vlm.model.text_model.layers)

        def is_used(name: str) -> bool:
            _, separator, rest = name.partition("text_model.layers.")
            return name not in new and (not separator or int(rest.split(".")[0]) < depth)

        tensors = read_tensors(weight_files(Path(folder)), is_used)
        load_weights(vlm, tensors | {name: vlm.get_parameter(name).detach().clone() for name in new}, folder)

    def present_cameras(self, batch: Mapping[str, Any]) -> list[str]:
        """Return the policy's cameras in a batch, as images or as vision tokens.

        Raises:
            FeatureError: it has none of them.
        """
        cameras = list(self.config.image_features)
        present = [key for key in cameras if key in batch or key + VISION_TOKENS in batch]
        if not present:
            raise FeatureError(
                f"The batch has none of the policy's cameras {cameras}; it holds {sorted(map(str, batch))}. "
                "Map its names with --rename_map."
            )
        return present

    def processor_parts(self) -> dict[str, dict[str, Any]]:
        """Return the VLM's tokenizer."""
        return {"tokenizer_processor": {"tokenizer": Tokenizer.from_folder(self.vlm.tokenizer_folder())}}

    def save_extra_files(self, folder: Path) -> None:
        """Write the VLM's configuration and tokenizer."""
        self.vlm.save(folder / VLM_FOLDER)

    def sharding_units(self) -> list[nn.Module]:
        """Return the MLPs, the vision layers, the embedding and the head."""
        units: list[nn.Module] = [part for part in self.modules() if isinstance(part, VisionLayer | GatedMLP)]
        for part in self.modules():
            if isinstance(part, TextModel):
                units.append(part.embed_tokens)
            elif (
                isinstance(part, SmolVLM)
                and part.lm_head.weight is not part.model.text_model.embed_tokens.weight
            ):
                units.append(part.lm_head)
        return units


def require(batch: Mapping[str, Any], *keys: str) -> None:
    """Raise a `FeatureError` unless a batch has these keys, which the preprocessor adds."""
    for key in keys:
        if key not in batch:
            raise FeatureError(
                f"The batch has no '{key}'; it holds {sorted(map(str, batch))}. "
                "Pass it through the policy's preprocessor first."
            )
