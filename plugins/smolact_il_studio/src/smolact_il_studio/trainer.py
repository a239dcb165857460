"""SmolVLATrainer for IL-Studio's loaders: it also evaluates, and saves their normalization in each checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

import smolact_transformers
from smolact_il_studio.data_utils import ProcessThenCollate
from smolact_il_studio.modeling import ILStudioPolicy, SmolVLAPolicy
from smolact_il_studio.normalization import save_normalizers


class SmolVLATrainer(smolact_transformers.SmolVLATrainer):
    """Hugging Face's Trainer with IL-Studio's arguments: `args, model, tokenizer, train_loader, eval_loader`."""

    def __init__(self, model: Any = None, args: Any = None, **others: Any) -> None:
        if args is not None and args.label_names is None:
            args.label_names = ["state"]  # present in every batch, so that evaluation computes the loss
        super().__init__(model=model, args=args, **others)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self._train_loader is not None:
            save_normalizers(self._train_loader, Path(output_dir or self.args.output_dir))


def create_trainer(
    policy_class: type[ILStudioPolicy],
    model_name_or_path: str | Path | ILStudioPolicy,
    training_args: Any,
    train_dataset: Dataset[Any],
    eval_dataset: Dataset[Any] | None = None,
    data_collator: Callable[[Any], Any] | None = None,
    **others: Any,
) -> SmolVLATrainer:
    """Create a trainer for a checkpoint and datasets of IL-Studio's normalized samples.

    Args:
        model_name_or_path: a checkpoint's folder or Hub id, or a model.
        training_args: `transformers.TrainingArguments` with `remove_unused_columns=False`.
        train_dataset, eval_dataset: IL-Studio's datasets.
        data_collator: the policy's processor and collator when None.
        others: arguments of `SmolVLATrainer`.

    Raises:
        NotFoundError, HubError, CheckpointError: the checkpoint is missing or corrupt.
        ConfigError: the arguments are invalid.
    """
    is_model = isinstance(model_name_or_path, ILStudioPolicy)
    model: Any = model_name_or_path if is_model else policy_class.from_pretrained(model_name_or_path)
    collator = data_collator or ProcessThenCollate(model.processor, type(model).data_collator)
    return SmolVLATrainer(
        model,
        training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        **others,
    )


def create_smolvla_trainer(
    model_name_or_path: str | Path | ILStudioPolicy,
    training_args: Any,
    train_dataset: Dataset[Any],
    eval_dataset: Dataset[Any] | None = None,
    data_collator: Callable[[Any], Any] | None = None,
    **others: Any,
) -> SmolVLATrainer:
    """Call `create_trainer` for SmolVLA."""
    return create_trainer(
        SmolVLAPolicy, model_name_or_path, training_args, train_dataset, eval_dataset, data_collator, **others
    )
