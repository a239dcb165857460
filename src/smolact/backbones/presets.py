"""VLMs by name: presets that need no hub, folders, and Hub ids.

A preset has the shape of a SmolVLM and the small tokenizer that smolact ships. `tiny` has weights too (their card:
`assets/tiny/README.md`); those of the others are drawn at random. The shapes of the published models are here too, so that
a checkpoint of them opens without the Hub.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.backbones.config import SmolVLMConfig
from smolact.errors import HubError, NotFoundError, did_you_mean
from smolact.files import read_json_object
from smolact.hub import find_folder

ASSETS = Path(__file__).parent / "assets"
TOKENIZER_FOLDER = ASSETS / "tokenizer"
VLM_FOLDER = "vlm"
"""The folder in a checkpoint for its VLM's configuration and tokenizer, so that it opens without the Hub."""

CONFIG_FILES = ("config.json",)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)


def _shape(
    vision: tuple[int, int, int, int, int, int],
    text: tuple[int, int, int, int, int, int],
    scale_factor: int,
    image_token_id: int,
    vocab_size: int,
    rope_theta: float,
) -> dict[str, Any]:
    """Return a config.json from (image, patch, width, hidden, layers, heads) and (width, hidden, layers, heads, kv, head)."""
    image_size, patch_size, width, hidden, layers, heads = vision
    text_width, text_hidden, text_layers, text_heads, key_value_heads, head_dim = text
    return {
        "model_type": "smolvlm",
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": image_token_id,
        "scale_factor": scale_factor,
        "tie_word_embeddings": False,
        "pad_token_id": 2,
        "vision_config": {
            "model_type": "smolvlm_vision",
            "image_size": image_size,
            "patch_size": patch_size,
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_channels": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": text_width,
            "intermediate_size": text_hidden,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "num_key_value_heads": key_value_heads,
            "head_dim": head_dim,
            "vocab_size": vocab_size,
            "rms_norm_eps": 1e-5,
            "rope_theta": rope_theta,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
            "pad_token_id": 2,
        },
    }


_SMOLLM_VOCABULARY = 49280

_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _shape((64, 8, 96, 256, 3, 3), (128, 256, 4, 4, 2, 32), 2, 4, 1024, 10_000.0),
    "small": _shape((128, 16, 256, 1024, 6, 4), (320, 864, 8, 5, 5, 64), 2, 4, 1024, 10_000.0),
    "smolvlm2-256m": _shape(
        (512, 16, 768, 3072, 12, 12), (576, 1536, 30, 9, 3, 64), 4, 49190, _SMOLLM_VOCABULARY, 100_000.0
    ),
    "smolvlm2-500m": _shape(
        (512, 16, 768, 3072, 12, 12), (960, 2560, 32, 15, 5, 64), 4, 49190, _SMOLLM_VOCABULARY, 100_000.0
    ),
    "smolvlm2-2.2b": _shape(
        (384, 14, 1152, 4304, 27, 16), (2048, 8192, 24, 32, 32, 64), 3, 49190, _SMOLLM_VOCABULARY, 130_000.0
    ),
}
PRESETS = tuple(_SHAPES)
PRESETS_WITH_WEIGHTS = ("tiny",)
"""Their folders in `ASSETS` hold `model.safetensors`."""

_PUBLISHED = {
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": "smolvlm2-256m",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "smolvlm2-500m",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "smolvlm2-2.2b",
}


@dataclass(frozen=True)
class VLMSource:
    """The source of a VLM: its configuration, and the folder of its tokenizer and weights if there is one."""

    name: str
    config: SmolVLMConfig
    raw_config: Mapping[str, Any]
    folder: Path | None
    """It holds tokenizer files, and weights if they were requested; None if only the shape is known."""
    field: str | None = None
    """The setting of a new policy that selected the VLM."""

    def tokenizer_folder(self) -> Path:
        """Return the folder of `tokenizer.json`.

        Raises:
            NotFoundError: only the shape is known, since the Hub could not be reached.
        """
        folder = TOKENIZER_FOLDER if self.name in PRESETS else self.folder
        if folder is None or not (folder / "tokenizer.json").is_file():
            raise NotFoundError(
                f"The tokenizer of '{self.name}' is not here and the Hub could not be reached for it. "
                f"Give a folder that holds tokenizer.json and config.json: --policy.{self.field or 'vlm_model_name'}=FOLDER."
                f"{_shipped_vlm_hint(self.field)}"
            )
        return folder

    def save(self, folder: Path) -> None:
        """Write configuration and tokenizer into `folder`, in transformers' layout."""
        durable.make_folder(folder)
        durable.write_json(folder / "config.json", self.raw_config)
        source = TOKENIZER_FOLDER if self.name in PRESETS else self.folder
        for name in TOKENIZER_FILES if source is not None else ():
            if (source / name).is_file():  # type: ignore[operator]
                with durable.replacing_file(folder / name) as temporary:
                    shutil.copyfile(source / name, temporary)  # type: ignore[operator]


def find_vlm(
    name: str | Path, *, weights: bool = False, beside: Path | None = None, field: str | None = None
) -> VLMSource:
    """Return the VLM of that name.

    Args:
        name: a preset (`tiny`, `small`, `smolvlm2-256m`, …), a folder, or a Hub id.
        weights: whether its weights are needed too; otherwise only configuration and tokenizer are fetched.
        beside: a checkpoint folder, whose copy of the VLM is used unless `name` is a folder that holds one. A preset has
            precedence over a folder of its name: write `./tiny` for the folder.
        field: the setting of a new policy that selected the VLM, for messages, which then name a VLM that ships with smolact.

    Raises:
        NotFoundError, HubError: it does not exist, or the Hub can't be reached for a model of unknown shape.
        CheckpointError: `config.json` is damaged.
    """
    name = str(name)
    if name not in _SHAPES and (Path(name) / "config.json").is_file():
        return _from_folder(name, Path(name))
    if beside is not None and (beside / VLM_FOLDER / "config.json").is_file() and not weights:
        return _from_folder(name, beside / VLM_FOLDER)
    if name in _SHAPES:
        folder = ASSETS / name if weights and name in PRESETS_WITH_WEIGHTS else None
        return VLMSource(name, SmolVLMConfig.from_dict(_SHAPES[name]), _SHAPES[name], folder)
    if Path(name).is_dir():
        return _from_folder(name, Path(name))  # raises, since config.json is missing
    try:
        patterns = [
            *CONFIG_FILES,
            *TOKENIZER_FILES,
            *(["*.safetensors", "*.safetensors.index.json"] if weights else []),
        ]
        return _from_folder(name, find_folder(name, "model", patterns=patterns))
    except HubError as error:
        if weights or name not in _PUBLISHED:
            raise HubError(f"{error}{_shipped_vlm_hint(field)}") from error
        shape = _SHAPES[_PUBLISHED[name]]
        return VLMSource(name, SmolVLMConfig.from_dict(shape), shape, None, field)
    except NotFoundError as error:
        if "/" in name:
            raise NotFoundError(f"{error}{_shipped_vlm_hint(field)}") from error
        raise NotFoundError(
            f"There is no VLM '{name}': expected a preset ({', '.join(PRESETS)}), a folder with config.json, or a Hub "
            f"id like HuggingFaceTB/SmolVLM2-500M-Video-Instruct.{did_you_mean(name, PRESETS)}"
        ) from error


def _shipped_vlm_hint(field: str | None) -> str:
    """Return a sentence on the VLM that needs no Hub, for messages about a new policy."""
    if field is None:
        return ""
    return (
        f" Or take a VLM that ships with smolact: --policy.{field}={PRESETS_WITH_WEIGHTS[0]} (small, learnt on drawings of the "
        "tabletop)."
    )


def _from_folder(name: str, folder: Path) -> VLMSource:
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(f"The VLM folder {folder} has no config.json.")
    raw = read_json_object(path, "Fetch or copy it again.")
    return VLMSource(name, SmolVLMConfig.from_dict(raw), raw, folder)
