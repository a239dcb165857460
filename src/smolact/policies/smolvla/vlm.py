"""Loading of the VLM: its weights, its special tokens around images, and the image sizes that it accepts."""

from __future__ import annotations

from pathlib import Path

from smolact.backbones.presets import VLMSource
from smolact.backbones.smolvlm import SmolVLM
from smolact.backbones.weights import load_weights, read_tensors, weight_files
from smolact.errors import ConfigError
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig


def load_vlm(source: VLMSource, vlm: SmolVLM) -> None:
    """Load the weights of `source` into `vlm`, which may have fewer text layers.

    Raises:
        ConfigError: `source` has no weights.
        CheckpointError: a file is damaged; `WeightsError` if weights do not fit.
    """
    folder = source.folder
    if folder is None:
        raise ConfigError(
            f"The preset '{source.name}' has no trained weights. Set --policy.load_vlm_weights=false "
            "(--policy.init=random), or name a VLM that has some."
        )
    depth = len(vlm.model.text_model.layers)

    def is_used(name: str) -> bool:
        _, separator, rest = name.partition("text_model.layers.")
        return not separator or int(rest.split(".")[0]) < depth

    load_weights(vlm, read_tensors(weight_files(Path(folder)), is_used), folder)


def check_image_size(config: SmolVLAConfig, vlm: VLMSource) -> None:
    """Raise a `ConfigError` unless images of the configured size become whole tokens.

    Raises:
        ConfigError: width or height is no multiple of a token's side.
    """
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
    from tokenizers import Tokenizer

    folder = vlm.tokenizer_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fake, full = (tokenizer.token_to_id(token) for token in ("<fake_token_around_image>", "<global-img>"))
    if fake is None or full is None:
        raise ConfigError(
            f"The tokenizer in {folder} lacks SmolVLM's image tokens. Set --policy.add_image_special_tokens=false."
        )
    return [fake, full], [fake]
