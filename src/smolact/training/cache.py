"""The cache of a dataset's pictures, or of the frozen vision tower's tokens, made once next to the dataset.

An interrupted run leaves the finished part. The folder's name depends on dataset, tower and settings, so that another tower
never reads it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from smolact.datasets.faults import Progress
from smolact.datasets.frame_cache import FrameCache, cache_folder, fill_stores, fingerprint
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.store import FrameStore
from smolact.datasets.unreadable import Unreadable, unreadable_error
from smolact.errors import ConfigError, DatasetError
from smolact.policies.base import PreTrainedPolicy
from smolact.training.config import TrainConfig
from smolact.training.data import map_with_workers
from smolact.training.preflight import gigabytes
from smolact.training.sources import Source
from smolact.types import NormalizationMode

logger = logging.getLogger(__name__)

LARGEST_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max


def build_cache(
    config: TrainConfig,
    policy: PreTrainedPolicy,
    sources: Sequence[Source],
    datasets: Sequence[Sequence[LeRobotDataset]],
    accelerator: Accelerator,
    progress: Progress,
) -> str | None:
    """Create the cache of `--dataset.cache` or `--cache.features`, and make the datasets read from it.

    Returns:
        a description of the cache for the user; None if there is none.

    Raises:
        ConfigError: the vision tower trains, or its tokens exceed `--cache.max_gb`.
        WriteError: the disk is full or refused. The finished part stays.
    """
    if config.cache.features:
        check_features(policy)
        create = _cache_tokens
    elif config.dataset.cache:
        create = _cache_pictures
    else:
        return None
    descriptions = [
        create(config, policy, source, opened, accelerator, progress)
        for source, opened in zip(sources, datasets, strict=True)
    ]
    accelerator.wait_for_everyone()
    return "; ".join(descriptions)


def check_features(policy: PreTrainedPolicy) -> None:
    """Raise a `ConfigError` unless the vision tower's tokens of a picture are the same at every step."""
    modules = policy.image_encoder
    if not modules:
        policy.encode_images(torch.zeros(0))  # raises the error
    trains = [
        name for module in modules for name, weight in module.named_parameters() if weight.requires_grad
    ]
    if trains:
        raise ConfigError(
            f"--cache.features=true needs a vision tower and a connector that stay as they are, and {len(trains)} of their "
            f"weights train, such as {trains[0]}. Freeze them (--policy.train_expert_only=true "
            "--policy.freeze_vision_encoder=true), or keep pictures: --dataset.cache=frames."
        )
    mode = policy.config.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY)
    if NormalizationMode(mode) is not NormalizationMode.IDENTITY:
        raise ConfigError(
            f"--cache.features=true does not go with images that are normalized ({NormalizationMode(mode).value}): keep "
            "pictures (--dataset.cache=frames)."
        )


def _cache_pictures(
    config: TrainConfig,
    policy: PreTrainedPolicy,
    source: Source,
    datasets: Sequence[LeRobotDataset],
    accelerator: Accelerator,
    progress: Progress,
) -> str:
    max_size = policy.config.resize_imgs_with_padding if config.dataset.cache == "resized" else None
    if config.dataset.cache == "resized" and max_size is None:
        raise ConfigError(
            "--dataset.cache=resized keeps pictures as large as the policy takes them, and this one takes any size "
            "(resize_imgs_with_padding=null). Use --dataset.cache=frames."
        )
    cache = FrameCache(
        source.meta, source.cameras(policy.config), max_size, config.cache.folder, config.cache.max_gb * 1e9
    )
    unreadable: list[Unreadable] | None = None if config.dataset.max_bad_samples is None else []
    frame_count = sum(
        cache.fill(
            dataset,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            load=partial(map_with_workers, config=config),
            progress=progress,
            unreadable=unreadable,
        )
        for dataset in datasets
    )
    cache.exclude(_gather(config, unreadable))
    share = frame_count / sum(map(len, datasets))
    size = frame_count * sum(store.frame_bytes for store in cache.stores.values())
    remark = "" if share == 1 else f" ({share:.0%}; the others are decoded each time: raise --cache.max_gb)"
    return f"pictures of {frame_count} frames{remark}, {gigabytes(size)} in {cache.folder}"


def _cache_tokens(
    config: TrainConfig,
    policy: PreTrainedPolicy,
    source: Source,
    datasets: Sequence[LeRobotDataset],
    accelerator: Accelerator,
    progress: Progress,
) -> str:
    device, kind = accelerator.device, config.cache.dtype
    cameras = source.cameras(policy.config)

    @torch.no_grad()
    def encode(key: str, pictures: Tensor) -> NDArray[np.generic]:
        with accelerator.autocast():
            return quantize(policy.encode_images(pictures.to(device)).cpu(), kind)

    folder = config.cache.folder or cache_folder(source.meta.root)
    folder = folder / f"features-{fingerprint(source.meta)}-{tower_fingerprint(policy, config, accelerator)}"
    stores: dict[str, FrameStore] = {}
    for key in cameras:
        sample = encode(key, torch.zeros((1, *source.meta.features[key].image_shape), dtype=torch.uint8))
        stores[key] = FrameStore(folder, key, sample.shape[1:], sample.dtype, source.meta.total_frames)
    size = sum(map(len, datasets)) * sum(store.frame_bytes for store in stores.values())
    if size > config.cache.max_gb * 1e9:
        raise ConfigError(
            f"The vision tokens of {source.section.name} take {size / 1e9:.1f} GB, more than --cache.max_gb="
            f"{config.cache.max_gb:g}. Raise it, use fewer episodes (--dataset.episodes), or leave out --cache.features."
        )
    unreadable: list[Unreadable] | None = None if config.dataset.max_bad_samples is None else []
    was_training = policy.training
    policy.eval()
    for dataset in datasets:
        frames = np.array_split(np.arange(len(dataset)), accelerator.num_processes)[accelerator.process_index]
        load = partial(map_with_workers, config=config)
        fill_stores(stores, dataset, frames, encode, load=load, progress=progress, unreadable=unreadable)
    policy.train(was_training)
    starts = source.meta.episodes.from_index
    lacking = {int(starts[bad.episode]) + bad.frame: bad.reason for bad in _gather(config, unreadable)}
    for dataset in datasets:
        for key, store in stores.items():
            dataset.replace_pictures(key, CachedTokens(store, kind, lacking))
        dataset.decodes = False
    return f"vision tokens of {sum(map(len, datasets))} frames, {gigabytes(size)} in {folder}"


def _gather(config: TrainConfig, unreadable: list[Unreadable] | None) -> list[Unreadable]:
    """Return the unreadable frames of all processes; raises an error if there are more than may be left out."""
    frames: list[Unreadable] = gather_object(unreadable or [])
    if len({frame.location for frame in frames}) > (config.dataset.max_bad_samples or 0):
        raise unreadable_error(frames)
    if frames:
        logger.warning(
            "%d frames can't be read, and are not kept; others will take their places.", len(frames)
        )
    return frames


class CachedTokens:
    """Reads tokens (n, T, D) from a store; `lacking` maps frames without tokens to the reason."""

    def __init__(self, store: FrameStore, kind: str, lacking: Mapping[int, str] | None = None) -> None:
        self.store, self.kind, self.lacking = store, kind, dict(lacking or {})

    def __call__(self, frames: NDArray[np.int64]) -> Tensor:
        """Return the tokens of frames (n,).

        Raises:
            DatasetError: a frame has none, since its picture is unreadable.
        """
        for frame in self.lacking and frames.tolist():
            if frame in self.lacking:
                raise DatasetError(self.lacking[frame])
        return dequantize(self.store.read(frames), self.kind)


def quantize(tokens: Tensor, kind: str) -> NDArray[np.generic]:
    """Return tokens (n, T, D) in their stored form; `kind` is a value of `--cache.dtype`.

    In `float8` a token is its D numbers in e4m3, scaled so that the largest is e4m3's largest, followed by the four bytes of
    that scale: (n, T, D + 4) bytes.
    """
    if kind != "float8":
        return as_numpy(tokens.to(getattr(torch, kind)))
    tokens = tokens.float()
    scales = tokens.abs().amax(-1, keepdim=True).clamp_min(1e-12) / LARGEST_FLOAT8
    rounded = (tokens / scales).to(torch.float8_e4m3fn)
    return np.asarray(torch.cat([rounded.view(torch.uint8), scales.view(torch.uint8)], dim=-1).numpy())


def dequantize(stored: NDArray[np.generic], kind: str) -> Tensor:
    """Return the tokens (n, T, D) that `quantize` stored; float8 as bfloat16, which has enough precision for them."""
    tensor = torch.from_numpy(stored)
    if kind != "float8":
        return tensor.view(getattr(torch, kind))
    rounded, scales = tensor[..., :-4].view(torch.float8_e4m3fn), tensor[..., -4:].contiguous()
    return (rounded.float() * scales.view(torch.float32)).bfloat16()


def as_numpy(tensor: Tensor) -> NDArray[np.generic]:
    """Return the tensor as a NumPy array; bfloat16, which NumPy lacks, as int16 with the same bits."""
    return np.asarray((tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy())


def tower_fingerprint(policy: PreTrainedPolicy, config: TrainConfig, accelerator: Accelerator) -> str:
    """Return a hash of the vision tower: its weights, and the settings that change its tokens."""
    digest = hashlib.blake2b(digest_size=8)
    settings = (
        policy.config.resize_imgs_with_padding,
        policy.config.type,
        config.cache.dtype,
        accelerator.mixed_precision,
    )
    digest.update(repr(settings).encode())
    for module in policy.image_encoder:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(as_numpy(tensor.detach().cpu().contiguous()).tobytes())
    return digest.hexdigest()
