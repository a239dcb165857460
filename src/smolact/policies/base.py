"""What every policy does alike: save, load, and hand out its chunk action by action."""

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
from smolact.backbones.presets import VLM_FOLDER, VLMSource, find_vlm
from smolact.backbones.weights import WEIGHTS_FILE, load_weights, read_tensors, shapes_only, weight_files
from smolact.errors import CheckpointError, ConfigError, NotFoundError
from smolact.policies.adapters import (
    ADAPTER_CONFIG,
    Adapters,
    AdapterSettings,
    add_adapters,
    load_adapters,
    merge_adapters,
    read_adapter_config,
    save_adapters,
)
from smolact.policies.common.chunking import ActsInChunks, Engine
from smolact.policies.configuration import PolicyConfig, find_policy, read_config_file
from smolact.policies.sharing import CHECKPOINT_PATTERNS, contents
from smolact.processors.legacy import is_statistics_key
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.tokenizer import Tokenizer
from smolact.uploads import publish

P = TypeVar("P", bound="PreTrainedPolicy")


class PreTrainedPolicy(nn.Module, ActsInChunks, ABC):
    """The base of a policy: a configuration, a network in `model`, and a queue of actions to execute."""

    config_class: ClassVar[type[PolicyConfig]]
    name: ClassVar[str]
    config: PolicyConfig
    vlm: VLMSource
    origin: tuple[str, str | None] | None = None
    """Where the weights were loaded from: a folder or a Hub id, and the revision there."""
    adapters: Adapters | None = None
    """What was added by `add_adapters`, or loaded with a checkpoint of adapters."""
    new_parts: ClassVar[str] = ""
    """What is new in a policy that begins from its VLM's weights, to end a sentence with."""
    adapter_targets: ClassVar[str | None] = None
    """The linear layers that get adapters when none are named, as a regular expression for whole names."""
    inference_only_defaults: ClassVar[Mapping[str, Any]] = {}
    """What `build_engine` is given besides where nothing but the engine will use the policy."""

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
        """The loss of a preprocessed batch, and what to log beside it."""

    def build_engine(self, **settings: Any) -> Engine:
        """Something that only predicts, faster than the policy itself and with its results.

        Raises:
            ConfigError: this kind of policy has none, or a setting can't work.
        """
        raise ConfigError(
            f"There is no engine for a '{self.name}' policy: use the policy itself (--engine=false)."
        )

    @classmethod
    def load_extra_files(cls, folder: Path, config: PolicyConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Further arguments for the constructor from what a checkpoint keeps beside its weights; `raw` is its configuration."""
        return {}

    def processor_parts(self) -> dict[str, dict[str, Any]]:
        """What steps of the policy's pipelines are made with and no file holds: a step's name to its arguments."""
        return {"tokenizer_processor": {"tokenizer": Tokenizer.from_folder(self.vlm.tokenizer_folder())}}

    def fill_in_processor(self, preprocess: ProcessorPipeline) -> ProcessorPipeline:
        """A checkpoint's preprocessor with what the code that wrote it did elsewhere."""
        return preprocess

    def recompute_activations(self) -> None:
        """From now on keep less for the backward pass, and make it again there: the same gradients, later, in less memory.

        Raises:
            ConfigError: the policy has no layers that can.
        """
        stacks = [module for module in self.modules() if isinstance(module, ActivationCheckpointing)]
        if not stacks:
            raise ConfigError(
                f"A '{self.name}' policy keeps its activations. Leave out --gradient_checkpointing."
            )
        for stack in stacks:
            stack.recomputes = True

    @property
    def image_encoder(self) -> Sequence[nn.Module]:
        """The modules that `encode_images` runs; empty if the policy has no such part."""
        return ()

    def encode_images(self, images: Tensor) -> Tensor:
        """What the network makes of images (n, 3, h, w), as a batch has them, before it sees anything else: (n, T, D).

        While the `image_encoder` is frozen, a batch may have this (under the camera's name + `VISION_TOKENS`) in the place
        of the image.

        Raises:
            ConfigError: the policy can't tell.
        """
        raise ConfigError(
            f"A policy of type '{self.name}' has no vision tokens that can be kept. Leave out --cache.features."
        )

    @property
    def training_draws(self) -> Callable[[torch.Generator], dict[str, Tensor]] | None:
        """Draws the random arguments of `forward` for one sample; None if it has none. Must be picklable, for workers."""
        return None

    def get_optim_params(self) -> Iterable[nn.Parameter]:
        """What an optimizer is given: all parameters, frozen ones too, so that its state has LeRobot's numbers.

        A parameter that never has a gradient is never changed and takes no memory there.
        """
        return list(self.parameters())

    def save_extra_files(self, folder: Path) -> None:
        """Write what a checkpoint keeps beside configuration and weights, so that it opens without the Hub."""
        self.vlm.save(folder / VLM_FOLDER)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the VLM's configuration and tokenizer into `folder`.

        Of a policy with adapters only they are written: `adapter_model.safetensors` and `adapter_config.json`.

        The folder opens without the Hub; LeRobot reads it too. Each file is written whole or not at all.
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
            repo_id: `owner/name`; a name alone is the user's own. The repository is made if need be.
            processors: the policy's pipelines. Without them it can't be used elsewhere as it is.
            private: whether a new repository is to be private; the owner's default when None.
            branch: the branch to write; the main one when None.
            commit_message: of the commit.
            license: a licence by the Hub's name for it; that of the configuration when None.
            tags: for the card, besides those of the configuration.

        Raises:
            ConfigError: a name that can't be, or adapters of a policy that is on this machine only.
            HubError: no token, no right to write, no connection. Nothing is published then.
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
        """Load a checkpoint of ours or of LeRobot, from a folder or the Hub. The policy is in evaluation mode.

        Args:
            folder_or_id: the folder that holds `config.json` and `model.safetensors`, a checkpoint or run, or a Hub id. If
                it holds adapters, their base policy is loaded from where they say, and they are put into it.
            config: use this configuration instead of the file's.
            dtype: of the weights; None keeps the file's.
            revision: on the Hub.
            overrides: settings to change, by the names of the configuration.

        Raises:
            NotFoundError, HubError: it is not there.
            CheckpointError: a file is damaged; `WeightsError` if weights do not fit.
            ConfigError: it is another policy's, or a setting can't work.
        """
        folder = find_policy(folder_or_id, patterns=CHECKPOINT_PATTERNS, revision=revision)
        raw = read_config_file(folder)
        if config is None:
            config = cls.config_class.in_folder(folder, overrides)
        elif overrides:
            config = config.replace(**overrides)
        name = config.vlm_name
        # A VLM that was chosen anew is not the one that the checkpoint keeps.
        vlm = find_vlm(name, beside=folder if name == raw.get(config.vlm_field) else None)
        has_adapters = (folder / ADAPTER_CONFIG).is_file()
        source = _base_of(folder) if has_adapters else folder
        tensors = read_tensors(weight_files(source), lambda name: not is_statistics_key(name))
        # Older checkpoints of compiled policies carry the wrapper's name.
        tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
        with shapes_only():
            policy = cls(config, vlm=vlm, pretrained_vlm=False, **cls.load_extra_files(folder, config, raw))  # type: ignore[call-arg]
        load_weights(policy, tensors, source, dtype)
        if has_adapters:
            policy.adapters = load_adapters(policy, folder)
            policy.config = config.replace(use_peft=True, pretrained_path=policy.adapters.base)
        local = Path(
            folder_or_id
        ).exists()  # a run's last checkpoint moves on, and so does the working folder
        policy.origin = (str(folder.resolve()) if local else str(folder_or_id), revision)
        return policy.eval()

    def add_adapters(self: P, settings: AdapterSettings) -> P:
        """Add LoRA adapters in place: from now on they train, and nothing else but `settings.full_training_modules`.

        Raises:
            ConfigError: the policy has adapters, or was not loaded from a checkpoint upon which they could be put again, or
                a setting fits none of its layers.
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
            raise ConfigError(f"Which layers of '{self.name}' get adapters? Give --peft.target_modules.")
        settings = dataclasses.replace(settings, target_modules=targets)
        self.adapters = add_adapters(self, settings, *self.origin)
        self.config = self.config.replace(use_peft=True, pretrained_path=self.adapters.base)
        return self

    def merge_adapters(self: P) -> P:
        """Add the adapters' products to the weights, in place: a plain policy with the same predictions.

        Raises:
            CheckpointError: a merged weight would not be finite.
        """
        if self.adapters is not None:
            merge_adapters(self, self.adapters)
            self.adapters = self.origin = None
            self.config = self.config.replace(use_peft=False)
        return self


def _base_of(folder: Path) -> Path:
    """The folder of the policy that the adapters in `folder` were trained upon."""
    data, path = read_adapter_config(folder), folder / ADAPTER_CONFIG
    name = str(data["base_model_name_or_path"])
    try:
        base = find_policy(name, patterns=CHECKPOINT_PATTERNS, revision=data.get("revision"))
    except NotFoundError as error:
        raise NotFoundError(
            f"{folder} holds adapters of the policy '{name}', which is not there. Write its present folder or Hub id into "
            f"base_model_name_or_path of {path}. {error}"
        ) from error
    if (base / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{path} names the base '{name}', which holds adapters itself. Merge those first: "
            "load it, policy.merge_adapters(), and save it."
        )
    return base


def _without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    kept = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            kept[name] = tensor
        seen.add(tensor.data_ptr())
    return kept
