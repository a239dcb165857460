"""SmolVLA in Hugging Face's Trainer: its loop, callbacks and arguments; smolact's network, data path and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from smolact.datasets.format import flat_names
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import find_policy
from smolact.policies.embodiment import embodiment_of
from smolact.policies.factory import get_policy_class
from smolact.policies.fit import check_cameras, note_other_robot, usable_names
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.processors.pipeline import rename_map_in, rename_map_of
from smolact.training.data import TrainDataset, split_noise
from smolact.training.optim import fit_schedule, make_optimizer, make_scheduler
from smolact.training.preflight import check_rename_map
from smolact.training.sources import renamed_features
from smolact.training.stream import ShuffledEpochs, seeded
from smolact.types import ACTION, ACTION_IS_PAD, is_image_key
from smolact_transformers.data import EpochSampler, SmolVLAProcessor

TRAINING_ARGUMENTS = "training_args.bin"
_RNG_STATE_TYPES: list[Any] = [np.zeros(0).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.uint32))]
"""The types in a pickled state of numpy's random generator."""


class SmolVLATrainer(transformers.Trainer):  # type: ignore[misc]
    """Trains a policy of smolact, or an IL-Studio model that returns its own loss.

    With a `LeRobotDataset` the n-th batch, with its noise and times, is that of `smolact train` with the same seed and
    batch size. Evaluation returns the loss and, for each joint, the mean absolute error of the predicted actions in the
    robot's units. Checkpoints load with `smolact.load_policy`, and in LeRobot.

    Args:
        args: `TrainingArguments`; `remove_unused_columns` must be false, since a policy needs whole batches.
        processor: the policy's processor; required unless batches come from `train_loader`.
        train_loader, eval_loader: used unchanged instead of datasets (IL-Studio's call).
        tokenizer: accepted for IL-Studio and ignored; a policy has its own.
        others: arguments of `transformers.Trainer`.

    Raises:
        ConfigError: the arguments are invalid.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Any = None,
        *,
        processor: SmolVLAProcessor | None = None,
        train_loader: DataLoader[Any] | None = None,
        eval_loader: DataLoader[Any] | None = None,
        tokenizer: Any = None,
        data_collator: Callable[[Any], Any] | None = None,
        compute_metrics: Callable[[Any], dict[str, float]] | None = None,
        **others: Any,
    ) -> None:
        if args is not None and args.remove_unused_columns:
            raise ConfigError(
                "TrainingArguments(remove_unused_columns=True) would drop images and actions, since a policy takes a whole batch. "
                "Set remove_unused_columns=False."
            )
        if processor is not None:
            data_collator = data_collator or processor.data_collator
            names = joint_names(others.get("eval_dataset"))
            compute_metrics = compute_metrics or ActionErrors(names)
        super().__init__(
            model=model, args=args, data_collator=data_collator, compute_metrics=compute_metrics, **others
        )
        if processor is not None and self.policy is not None:
            _check_dataset(self.policy, processor, others.get("train_dataset"))
        self.processor = processor
        self._train_loader, self._eval_loader = train_loader, eval_loader
        self._n_evaluated = 0

    @property
    def policy(self) -> PreTrainedPolicy | None:
        """The policy in training, unwrapped; None if the model is another framework's."""
        model = self.accelerator.unwrap_model(self.model)
        return model if isinstance(model, PreTrainedPolicy) else None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the given loader, else smolact's sample stream for a LeRobotDataset, else the framework's loader."""
        if self._train_loader is not None:
            return self._train_loader
        if self.policy is None or not isinstance(self.train_dataset, LeRobotDataset):
            return super().get_train_dataloader()  # type: ignore[no-any-return]
        args = self.args
        samples = TrainDataset(self.train_dataset, args.seed, self.policy.training_draws)
        batch = self._train_batch_size
        global_batch = batch * args.world_size
        sampler = EpochSampler(
            ShuffledEpochs(range(len(self.train_dataset)), args.seed),
            max(1, len(self.train_dataset) // global_batch) * global_batch,
        )
        loader = DataLoader(
            samples,
            batch_size=batch,
            sampler=sampler,
            drop_last=True,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(args.seed),
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the given loader, else the framework's."""
        if self._eval_loader is not None and eval_dataset is None:
            return self._eval_loader
        return super().get_eval_dataloader(eval_dataset)  # type: ignore[no-any-return]

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
        """Return the policy's loss for a batch."""
        if self.policy is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **others)
        batch, noise = split_noise(inputs)
        loss, logged = model(batch, **noise)
        return (loss, logged) if return_outputs else loss

    def evaluate(self, *args: Any, **others: Any) -> dict[str, float]:
        """Evaluate as the framework does, with the same noise each time."""
        self._n_evaluated = 0
        return super().evaluate(*args, **others)  # type: ignore[no-any-return]

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return loss, predicted and true actions (B, chunk, A) in the robot's units; true ones after an episode's end are NaN."""
        policy = self.policy
        if policy is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)  # type: ignore[no-any-return]
        batch, _ = split_noise(self._prepare_inputs(inputs))
        noise = self._draw_noise(policy, len(batch[ACTION]))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, _ = model(batch, **noise)
        if prediction_loss_only or self.processor is None:
            return loss.detach(), None, None
        observation = {key: value for key, value in batch.items() if key not in (ACTION, ACTION_IS_PAD)}
        predicted = self.processor.actions(policy.predict_action_chunk(observation, noise.get("noise")))
        target = self.processor.actions(batch[ACTION])
        if ACTION_IS_PAD in batch:
            target = target.masked_fill(batch[ACTION_IS_PAD][..., None].to(target.device), torch.nan)
        device = loss.device
        return loss.detach(), predicted.to(device), target.to(device)

    def _draw_noise(self, policy: PreTrainedPolicy, number: int) -> dict[str, Tensor]:
        """Draw noise and times of the next evaluation samples from the seed and each sample's number."""
        draws = policy.training_draws
        if draws is None:
            return {}
        first = self._n_evaluated + self.args.process_index * 2**32
        self._n_evaluated += number
        drawn = [draws(seeded(self.args.seed, "evaluation", first + index)) for index in range(number)]
        return {name: torch.stack([item[name] for item in drawn]).to(self.args.device) for name in drawn[0]}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        policy = self.policy
        if policy is None:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or self.args.output_dir)
        policy.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        torch.save(self.args, folder / TRAINING_ARGUMENTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.policy is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_policy(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.policy is None:
            super()._load_best_model()
        else:
            self._load_policy(self.state.best_model_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Transformers 4.45 loads numpy's generator with a plain torch.load, which PyTorch 2.6 and later refuse.
        with torch.serialization.safe_globals(_RNG_STATE_TYPES):
            super()._load_rng_state(checkpoint)

    def _load_policy(self, folder: str) -> None:
        assert self.policy is not None
        loaded = type(self.policy).from_pretrained(folder, config=self.policy.config, dtype=None)
        self.policy.load_state_dict(loaded.state_dict())  # in place: the optimizer refers to these parameters


def _check_dataset(policy: PreTrainedPolicy, processor: SmolVLAProcessor, dataset: Any) -> None:
    """Check that a LeRobotDataset has the policy's cameras, and record its robot in the policy's configuration.

    Raises:
        ConfigError: the processor's rename map gives two features the same name.
        FeatureError: cameras are missing.
    """
    if isinstance(dataset, LeRobotDataset):
        names = rename_map_of(processor.preprocess)
        # A checkpoint's processor may also map names of earlier datasets.
        check_rename_map(usable_names(names, dataset.meta.features), list(dataset.meta.features))
        cameras = {
            key: feature
            for key, feature in renamed_features(dataset.meta, names)[0].items()
            if is_image_key(key)
        }
        check_cameras(policy.config, cameras, names)
        robot = embodiment_of([(dataset.meta, names)])
        note_other_robot(policy.config, robot)
        policy.config.of_robot(robot)


class ActionErrors:
    """`compute_metrics` of an evaluation: the mean absolute error of predicted actions, per joint and overall.

    Args:
        names: the joint names, in order; indices when None.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = names

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Compute the errors from (N, chunk, A) predicted and true actions, without NaN."""
        error = np.abs(np.asarray(prediction.predictions) - np.asarray(prediction.label_ids))
        joints = np.nanmean(error, axis=(0, 1))
        names = self.names or [str(number) for number in range(len(joints))]
        each = {f"action_error/{name}": float(value) for name, value in zip(names, joints, strict=True)}
        return {"action_error": float(np.nanmean(error)), **each}


def create_smolvla_trainer(
    model_name_or_path: str | Path | SmolVLAConfig | PreTrainedPolicy,
    training_args: Any,
    train_dataset: Dataset[Any],
    eval_dataset: Dataset[Any] | None = None,
    data_collator: Callable[[Any], Any] | None = None,
    *,
    rename_map: Mapping[str, str] | None = None,
    policy_recipe: bool = False,
    **others: Any,
) -> SmolVLATrainer:
    """Create a trainer for a checkpoint, a new policy, or an existing one.

    Args:
        model_name_or_path: a checkpoint's folder or Hub id; a configuration for a new policy; or a policy.
        training_args: `transformers.TrainingArguments`, with `remove_unused_columns=False`.
        train_dataset: a `LeRobotDataset` (see `hf_data.dataset_for`), whose statistics normalize the data; or any dataset of
            `SmolVLAProcessor`'s samples, for a checkpoint that has statistics.
        data_collator: the processor's when None.
        rename_map: the dataset's names to the policy's; the checkpoint's map when None.
        policy_recipe: use optimizer and schedule of the policy's configuration, as `smolact train` does, instead of the
            arguments'. (Set `max_grad_norm` in the arguments.)
        others: arguments of `SmolVLATrainer`.

    Raises:
        NotFoundError, HubError, CheckpointError: the checkpoint is missing or corrupt.
        StatisticsError, ConfigError: statistics are missing, or arguments are invalid; `ConfigError` also if `rename_map` has
            names that the dataset lacks, or gives two features the same name.
        FeatureError: the dataset lacks cameras of the policy.
    """
    path = model_name_or_path if isinstance(model_name_or_path, (str, Path)) else None
    if isinstance(model_name_or_path, PreTrainedPolicy):
        policy = model_name_or_path
    elif isinstance(model_name_or_path, SmolVLAConfig):
        policy = get_policy_class("smolvla")(model_name_or_path)
    else:
        policy = get_policy_class("smolvla").from_pretrained(model_name_or_path)
    if isinstance(train_dataset, LeRobotDataset):
        if rename_map is None and path is not None:
            saved = rename_map_in(find_policy(path, patterns=["*.json"]))
            rename_map = usable_names(saved, train_dataset.meta.features)
        check_rename_map(rename_map or {}, list(train_dataset.meta.features))
        processor = SmolVLAProcessor.of(policy, train_dataset.meta.stats, rename_map)
    elif path is not None:
        processor = SmolVLAProcessor.from_pretrained(path, policy)
    else:
        raise ConfigError(
            "A new policy needs statistics to normalize with: give a LeRobotDataset as train_dataset, or a checkpoint."
        )
    if policy_recipe:
        others.setdefault("optimizers", policy_optimizers(policy, training_args))
    return SmolVLATrainer(
        policy,
        training_args,
        processor=processor,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=data_collator,
        **others,
    )


def policy_optimizers(policy: PreTrainedPolicy, training_args: Any) -> tuple[Optimizer, LRScheduler]:
    """Create AdamW and the schedule of a policy's configuration, for `max_steps` gradient steps.

    Raises:
        ConfigError: the arguments have no `max_steps`.
    """
    if training_args.max_steps <= 0:
        raise ConfigError("The policy's schedule ends with the run: set TrainingArguments(max_steps=…).")
    config: Any = policy.config
    optimizer = make_optimizer(policy.to(training_args.device), config.get_optimizer_preset())
    schedule = fit_schedule(config.get_scheduler_preset(), training_args.max_steps)
    return optimizer, make_scheduler(optimizer, schedule)


def joint_names(dataset: Any) -> tuple[str, ...] | None:
    """Return a dataset's names of the action dimensions; None if it has none."""
    features: Mapping[str, Any] = getattr(getattr(dataset, "meta", None), "features", {})
    return tuple(flat_names(getattr(features.get(ACTION), "names", None))) or None
