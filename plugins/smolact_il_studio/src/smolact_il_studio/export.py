"""Export of an IL-Studio checkpoint to smolact's format, which LeRobot also loads, with the normalization included."""

from __future__ import annotations

from pathlib import Path

from smolact import durable
from smolact.errors import ConfigError
from smolact.policies.configuration import read_config_file
from smolact.policies.factory import get_policy_class, make_pre_post_processors
from smolact_il_studio.configuration import ILStudioConfig, SmolAndFASTConfig, SmolVLAConfig
from smolact_il_studio.folders import find_checkpoint
from smolact_il_studio.normalization import read_normalizers

_KINDS: dict[str, type[ILStudioConfig]] = {
    kind.model_type: kind for kind in (SmolVLAConfig, SmolAndFASTConfig)
}


def export_checkpoint(checkpoint: str | Path, output: Path) -> Path:
    """Write a policy of IL-Studio with processors that normalize as IL-Studio's training did.

    Args:
        checkpoint: `checkpoint-N`, or the folder of the run.
        output: the new folder.

    Returns:
        `output`.

    Raises:
        NotFoundError, CheckpointError: the checkpoint is missing or corrupt.
        StatisticsError: it has no normalization statistics.
        ConfigError: `output` exists, or the checkpoint is another policy's.
        WriteError: the disk is full or not writable.
    """
    if output.exists():
        raise ConfigError(f"--output={output} exists already. Choose another folder, or remove it first.")
    folder = find_checkpoint(checkpoint)
    kind = read_config_file(folder).get("model_type")
    if kind not in _KINDS:
        raise ConfigError(
            f"{folder} is of a '{kind}' model: expected one of {', '.join(_KINDS)}, which IL-Studio trained."
        )
    modes, statistics = read_normalizers(folder)
    config = _KINDS[kind].from_checkpoint(folder).policy_config().replace(normalization_mapping=modes)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    preprocess, postprocess = make_pre_post_processors(policy, statistics)
    with durable.replacing_folder(output) as temporary:
        policy.save_pretrained(temporary)
        preprocess.save_pretrained(temporary)
        postprocess.save_pretrained(temporary)
    return output
