"""The base class of every policy: saving, loading, and selection of actions from chunks."""

from __future__ import annotations

import dataclasses
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from smolact import durable
from smolact.backbones.layers import ActivationCheckpointing
from smolact.backbones.weights import WEIGHTS_FILE, load_weights, read_tensors, shapes_only, weight_files
from smolact.errors import ConfigError
from smolact.policies.adapters import (
    ADAPTER_CONFIG,
    Adapters,
    AdapterSettings,
    add_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from smolact.policies.common.chunking import ActsInChunks, Engine
from smolact.policies.configuration import PolicyConfig, find_policy, read_config_file
from smolact.policies.sharing import CHECKPOINT_PATTERNS, adapter_base, contents
from smolact.policies.workload import PartSize, Workload
from smolact.processors.factory import DefaultSteps, make_default_steps, make_pipelines
from smolact.processors.legacy import is_statistics_key
from smolact.processors.pipeline import ProcessorPipeline
from smolact.types import FeatureType
from smolact.uploads import publish

P = TypeVar("P", bound="PreTrainedPolicy")


class PreTrainedPolicy(nn.Module, ActsInChunks, ABC):
    """The base of a policy: a configuration, a network, and a queue of actions to execute.

    A policy is an `nn.Module` with a constructor that takes its configuration, `forward` and `predict_action_chunk`; the rest has
    defaults. If its weights are loaded, it is built on the meta device, so a tensor that no file holds is a persistent buffer.
    """

    config_class: ClassVar[type[PolicyConfig]]
    config: PolicyConfig
    origin: tuple[str, str | None] | None = None
    """The source of the weights: a folder or a Hub id, and the revision there."""
    adapters: Adapters | None = None
    """The adapters that were added by `add_adapters`, or loaded from a checkpoint."""
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The policy's parts to the names of their modules, for `smolact info`; by default its own modules."""
    adapter_targets: ClassVar[str | None] = None
    """The linear layers that get adapters by default, as a regular expression for full names."""
    inference_only_defaults: ClassVar[Mapping[str, Any]] = {}
    """Further settings of `build_engine` if only the engine will use the policy."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.reset()

    @abstractmethod
    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a preprocessed batch, and further values to log.

        `reduction="mean"` gives a scalar, `"none"` one loss per sample (B,), `"sum"` the sum over all entries of the batch,
        whose number is `entries` in the mapping.
        """

    def build_engine(self, **settings: Any) -> Engine:
        """Return an engine, which only predicts, with the policy's results; a type may have one that is faster than the policy.

        Raises:
            ConfigError: a setting is unknown or invalid.
        """
        PolicyEngine.check_settings(settings)
        return PolicyEngine(self, **settings)

    @classmethod
    def load_extra_files(
        cls, folder: Path | None, config: PolicyConfig, raw: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return further constructor arguments of a policy whose weights are loaded afterwards.

        Args:
            folder: the checkpoint's; None if only the policy's sizes are needed.
            config: the policy's configuration.
            raw: the configuration in the file.
        """
        return {}

    def make_processors(
        self,
        stats: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        rename_map: Mapping[str, str] | None = None,
    ) -> tuple[ProcessorPipeline, ProcessorPipeline]:
        """Make the preprocessor (names, device, normalization) and the postprocessor of a new policy.

        Args:
            stats: the normalization statistics; without them the first batch raises a `StatisticsError`.
            rename_map: the dataset's names to the policy's.
        """
        steps = default_steps(self.config, stats, rename_map)
        before = [steps.rename_observations, steps.add_batch_dimension, steps.to_device, steps.normalize]
        return make_pipelines(before, [steps.unnormalize, steps.to_cpu])

    def processor_parts(self) -> dict[str, dict[str, Any]]:
        """Return the constructor arguments of processor steps that no file holds, by the step's name."""
        return {}

    def fill_in_processor(self, preprocess: ProcessorPipeline) -> ProcessorPipeline:
        """Return a checkpoint's preprocessor, with the processing that its author's code did elsewhere."""
        return preprocess

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass instead of storing them: the same gradients, slower, in less memory.

        Raises:
            ConfigError: no layer of the policy supports it.
        """
        stacks = [module for module in self.modules() if isinstance(module, ActivationCheckpointing)]
        if not stacks:
            raise ConfigError(
                f"A '{self.config.type}' policy keeps its activations. Leave out --gradient_checkpointing."
            )
        for stack in stacks:
            stack.recomputes = True

    @property
    def image_encoder(self) -> Sequence[nn.Module]:
        """The modules that `encode_images` runs; empty if the policy has no image encoder."""
        return ()

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (n, 3, h, w), as they are in a batch, into vision tokens (n, T, D).

        While the `image_encoder` is frozen, a batch may hold these (under the camera's name + `VISION_TOKENS`) instead of the image.

        Raises:
            ConfigError: the policy has no vision tokens.
        """
        raise ConfigError(
            f"A policy of type '{self.config.type}' has no vision tokens that can be kept. Leave out --cache.features."
        )

    def sharding_units(self) -> list[nn.Module]:
        """Return the modules whose weights a sharded training gathers one at a time: large ones, used only by calling them."""
        return []

    @property
    def training_draws(self) -> Callable[[torch.Generator], dict[str, Tensor]] | None:
        """A function that draws the random arguments of `forward` for one sample, or None. It must be picklable, for workers."""
        return None

    def workload(self, parts: Mapping[str, PartSize]) -> Workload | None:
        """Return the cost of one sample, or None if this type of policy does not count it.

        Args:
            parts: the sizes of the policy's parts, by name; the policy may be on the meta device.
        """
        return None

    def get_optim_params(self) -> Iterable[nn.Parameter]:
        """Return all parameters: frozen ones take no memory in the optimizer, and keep LeRobot's indices in its state."""
        return list(self.parameters())

    def save_extra_files(self, folder: Path) -> None:
        """Write the files that a checkpoint needs besides configuration and weights, so that it opens without the Hub."""
        return

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the policy's other files into `folder`.

        For a policy with adapters, `adapter_model.safetensors` and `adapter_config.json` replace `model.safetensors`. The folder
        opens without the Hub, in LeRobot too. Each file is written atomically.
        """
        folder = Path(folder)
        self.config.save_pretrained(folder)
        self.save_extra_files(folder)
        if self.adapters is not None:
            save_adapters(self, self.adapters, folder)
            return
        tensors = {name: tensor.contiguous() for name, tensor in _without_aliases(self.state_dict()).items()}
        with durable.replacing_file(folder / WEIGHTS_FILE) as temporary:
            durable.save_tensors(temporary, tensors, metadata={"format": "pt"})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processors: Iterable[ProcessorPipeline] = (),
        private: bool | None = None,
        branch: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> str:
        """Publish the policy on the Hub as `save_pretrained` writes it, with a card, and return the page's address.

        Args:
            repo_id: `owner/name`, or a name under the user's account. The repository is created if needed.
            processors: the policy's pipelines, which are needed to use it elsewhere.
            private: whether a new repository is private; the owner's default when None.
            branch: the branch to write; the main one when None.
            commit_message: the message of the commit.
            license: the Hub's name of a licence; the configuration's when None.
            tags: further tags for the card.

        Raises:
            ConfigError: an invalid name, or adapters whose base policy is on this machine only.
            HubError: no token, no write permission, or no connection. Nothing is published then.
        """
        with tempfile.TemporaryDirectory(prefix="smolact-") as folder:
            self.save_pretrained(folder)
            for processor in processors:
                processor.save_pretrained(folder)
            return publish(
                contents(folder, name=repo_id, license=license, tags=tags),
                repo_id,
                private=private,
                revision=branch,
                message=commit_message,
            )

    @classmethod
    def from_pretrained(
        cls: type[P],
        folder_or_id: str | Path,
        *,
        config: PolicyConfig | None = None,
        dtype: torch.dtype | None = torch.float32,
        revision: str | None = None,
        **overrides: Any,
    ) -> P:
        """Load a checkpoint of smolact or LeRobot from a folder or the Hub. The policy is in evaluation mode.

        Args:
            folder_or_id: the folder of `config.json` and `model.safetensors`, a checkpoint, a run, or a Hub id. If it holds
                adapters, their base policy is loaded, and they are added to it.
            config: replaces the file's configuration.
            dtype: of the weights; None keeps the file's.
            revision: the revision on the Hub.
            overrides: settings to change, by name.

        Raises:
            NotFoundError, HubError: the checkpoint can't be found or fetched.
            CheckpointError: a file is damaged; `WeightsError` if weights do not fit.
            ConfigError: it is of another policy type, or a setting is invalid.
        """
        folder = find_policy(folder_or_id, patterns=CHECKPOINT_PATTERNS, revision=revision)
        raw = read_config_file(folder)
        if config is None:
            config = cls.config_class.in_folder(folder, overrides)
        elif overrides:
            config = config.replace(**overrides)
        with shapes_only():
            policy = cls(config, **cls.load_extra_files(folder, config, raw))
        has_adapters = (folder / ADAPTER_CONFIG).is_file()
        source = adapter_base(folder) if has_adapters else folder
        tensors = read_tensors(weight_files(source), lambda name: not is_statistics_key(name))
        # Names in older checkpoints of compiled policies contain the compiler's wrapper.
        tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
        load_weights(policy, tensors, source, dtype)
        if has_adapters:
            policy.adapters = load_adapters(policy, folder)
            policy.config = config.replace(use_peft=True, pretrained_path=policy.adapters.base)
        # Resolved, since a run's last checkpoint and the working folder may change.
        local = Path(folder_or_id).exists()
        policy.origin = (str(folder.resolve()) if local else str(folder_or_id), revision)
        return policy.eval()

    def add_adapters(self: P, settings: AdapterSettings) -> P:
        """Add LoRA adapters in place. From then on, only they and `settings.full_training_modules` are trained.

        Raises:
            ConfigError: the policy has adapters already, was not loaded from a checkpoint, or has no layers that match a setting.
            MissingDependencyError: peft is not installed.
        """
        targets = settings.target_modules or self.adapter_targets
        if self.adapters is not None:
            raise ConfigError(
                "This policy has adapters already. Merge them first (policy.merge_adapters()), or train on with those: "
                "drop --peft."
            )
        if self.origin is None:
            raise ConfigError(
                "Adapters are saved without the policy below them, so it must have a place of its own: give the checkpoint "
                "to fine-tune, --policy.path=FOLDER_OR_HUB_ID (or save this policy, and load it)."
            )
        if targets is None:
            raise ConfigError(
                f"Which layers of '{self.config.type}' get adapters? Give --peft.target_modules."
            )
        settings = dataclasses.replace(settings, target_modules=targets)
        self.adapters = add_adapters(self, settings, *self.origin)
        self.config = self.config.replace(use_peft=True, pretrained_path=self.adapters.base)
        return self

    def merge_adapters(self: P) -> P:
        """Add the adapters' products to the weights in place, which gives a plain policy with the same predictions.

        Raises:
            CheckpointError: a merged weight would not be finite.
        """
        if self.adapters is not None:
            merge_adapters(self, self.adapters)
            self.adapters = self.origin = None
            self.config = self.config.replace(use_peft=False)
        return self


class PolicyEngine(Engine):
    """The engine of a type that has no faster one: the policy itself.

    Args:
        policy: from `load_policy`; it is put into evaluation mode.
        dtype: convert the weights to it; None keeps them.
    """

    def __init__(self, policy: PreTrainedPolicy, *, dtype: torch.dtype | None = None) -> None:
        self._policy, self.config = policy.eval().to(dtype=dtype), policy.config
        self.takes_leftover = policy.takes_leftover
        self.reset()

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """See `PreTrainedPolicy`."""
        return self._policy.noise_shape

    def predict_action_chunk(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, **extras: Any
    ) -> Tensor:
        """See `PreTrainedPolicy`."""
        return self._policy.predict_action_chunk(batch, noise, **extras)


def default_steps(
    config: PolicyConfig, stats: Mapping[str, Mapping[str, Any]] | None, rename_map: Mapping[str, str] | None
) -> DefaultSteps:
    """Make the processor steps that most policies share, for a policy with this configuration."""
    modes = {FeatureType(kind): mode for kind, mode in config.normalization_mapping.items()}
    device = config.device or "cpu"
    return make_default_steps(config.input_features, config.output_features, modes, stats, device, rename_map)


def reduce_loss(sums: Tensor, counts: Tensor, reduction: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what `forward` returns, from each sample's summed loss (B,) and its number of entries (B,).

    Args:
        reduction: "mean" for a scalar, "none" for one loss per sample (B,), "sum" for the sum over all entries together with
            their number, `entries`, to average over several batches or processes.

    Raises:
        ConfigError: the reduction is unknown.
    """
    if reduction == "sum":
        return sums.sum(), {"entries": counts.sum()}
    if reduction not in ("mean", "none"):
        raise ConfigError(f"reduction='{reduction}': expected 'mean', 'none' or 'sum'.")
    loss = sums.sum() / counts.sum().clamp_min(1) if reduction == "mean" else sums / counts.clamp_min(1)
    return loss, {"loss": loss.detach().mean()}


def _without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    unique = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            unique[name] = tensor
        seen.add(tensor.data_ptr())
    return unique
