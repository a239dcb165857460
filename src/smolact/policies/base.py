"""What every policy does alike: save, load, and hand out its chunk action by action."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from smolact import durable
from smolact.backbones.presets import CONFIG_FILES, TOKENIZER_FILES, VLM_FOLDER, VLMSource, find_vlm
from smolact.backbones.weights import WEIGHTS_FILE, load_weights, read_tensors, weight_files
from smolact.policies.configuration import CONFIG_FILE, PolicyConfig, find_policy, read_config_file
from smolact.processors.legacy import is_statistics_key

P = TypeVar("P", bound="PreTrainedPolicy")

CHECKPOINT_PATTERNS = (
    "*.json",
    "*.safetensors",
    *(f"{VLM_FOLDER}/{name}" for name in (*CONFIG_FILES, *TOKENIZER_FILES)),
)


class PreTrainedPolicy(nn.Module, ABC):
    """The base of a policy: a configuration, a network in `model`, and a queue of actions to execute."""

    config_class: ClassVar[type[PolicyConfig]]
    name: ClassVar[str]
    config: PolicyConfig
    vlm: VLMSource

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

    @abstractmethod
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next actions (B, chunk, A), normalized."""

    def reset(self) -> None:
        """Forget the actions in hand; called when an episode begins."""
        self._queue: deque[Tensor] = deque()

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next action (B, A), normalized; a new chunk is predicted after every `n_action_steps`."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk.unbind(1)[: self.config.n_action_steps])  # type: ignore[attr-defined]
        return self._queue.popleft()

    @property
    def training_draws(self) -> Callable[[torch.Generator], dict[str, Tensor]] | None:
        """Draws the random arguments of `forward` for one sample; None if it has none. Must be picklable, for workers."""
        return None

    def get_optim_params(self) -> Iterable[nn.Parameter]:
        """What an optimizer is given: all parameters, frozen ones too, so that its state has LeRobot's numbers.

        A parameter that never has a gradient is never changed and takes no memory there.
        """
        return list(self.parameters())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the VLM's configuration and tokenizer into `folder`.

        The folder opens without the Hub; LeRobot reads it too. Each file is written whole or not at all.
        """
        folder = Path(folder)
        self.config.save_pretrained(folder)
        self.vlm.save(folder / VLM_FOLDER)
        tensors = {name: tensor.contiguous() for name, tensor in _without_aliases(self.state_dict()).items()}
        with durable.replacing_file(folder / WEIGHTS_FILE) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})

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
            folder_or_id: the folder that holds `config.json` and `model.safetensors`, a checkpoint or run, or a Hub id.
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
        if config is None:
            config = cls.config_class.from_dict(read_config_file(folder), str(folder / CONFIG_FILE))
        config = config.replace(**overrides)
        vlm = find_vlm(config.vlm_model_name, beside=folder)  # type: ignore[attr-defined]
        tensors = read_tensors(weight_files(folder), lambda name: not is_statistics_key(name))
        # Older checkpoints of compiled policies carry the wrapper's name.
        tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
        with torch.device("meta"):
            policy = cls(config, vlm=vlm, pretrained_vlm=False)  # type: ignore[call-arg]
        load_weights(policy, tensors, folder, dtype)
        return policy.eval()


def _without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    kept = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            kept[name] = tensor
        seen.add(tensor.data_ptr())
    return kept
