"""The model card: a policy's data, recipe, results and use, from its own files. Unknown facts are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smolact.cards import card, hub_id
from smolact.policies.configuration import PLUGIN_TYPES, PolicyConfig, get_config_class
from smolact.policies.vlm_configuration import VLMConfig
from smolact.registry import POLICIES

PROVENANCE = "provenance.json"
"""The file in which training records a policy's provenance; LeRobot ignores it."""

Json = Mapping[str, Any]


def model_card(
    config: Json,
    training: Json,
    provenance: Json,
    *,
    name: str | None = None,
    evaluations: Sequence[Json] = (),
    for_lerobot: bool = False,
) -> str:
    """Return the text of a policy's `README.md`.

    Args:
        name: its id on the Hub, or its folder.
        evaluations: results of `smolact eval`, each in the form of its `metrics.json`, with its `environment`.
        for_lerobot: whether LeRobot opens it without a plugin.
    """
    results = list(evaluations) or ([provenance["evaluation"]] if provenance.get("evaluation") else [])
    kind = str(config.get("type"))
    title = (name or str(training.get("job_name") or kind)).rpartition("/")[2]
    policy = _policy(kind)
    return card(
        "policy_card.md.jinja",
        _front_matter(title, policy, config, training, provenance, results, for_lerobot),
        title=title,
        name=name or "FOLDER",
        kind=kind,
        policy=policy,
        config=config,
        training=training,
        provenance=provenance,
        evaluations=results,
        for_lerobot=for_lerobot,
        distribution=POLICIES.distribution_of(kind),
        short_count=_short_count,
    )


def _front_matter(
    title: str,
    policy: type[PolicyConfig],
    config: Json,
    training: Json,
    provenance: Json,
    evaluations: Sequence[Json],
    for_lerobot: bool,
) -> dict[str, Any]:
    base, relation = _base(config)
    is_vla = ["vision-language-action"] if policy.reads_instructions else []
    tags = ["robotics", *is_vla, "smolact", str(config.get("type")), *(config.get("tags") or [])]
    results = [
        {
            "task": {"type": "robotics", "name": "robotics"},
            "dataset": {"type": str(evaluation["environment"]), "name": str(evaluation["environment"])},
            "metrics": [
                {
                    "type": "success_rate",
                    "value": round(float(evaluation["success_rate"]), 4),
                    "name": f"success rate ({_interval(evaluation)})",
                    "verified": False,
                }
            ],
        }
        for evaluation in evaluations
        if evaluation.get("environment")
    ]
    return {
        "library_name": "lerobot" if for_lerobot else "smolact",
        "pipeline_tag": "robotics",
        "license": config.get("license"),
        "tags": list(dict.fromkeys([*tags, *(["lerobot"] if for_lerobot else [])])),
        "datasets": _hub_datasets(training, provenance),
        "base_model": base,
        "base_model_relation": relation if base else None,
        "model-index": [{"name": title, "results": results}] if results else None,
    }


def _base(config: Json) -> tuple[str | None, str]:
    """Return the base model's Hub id, if it has one, and the policy's relation to it."""
    if config.get("use_peft"):
        return hub_id(config.get("pretrained_path")), "adapter"
    if config.get("pretrained_path"):
        return hub_id(config["pretrained_path"]), "finetune"
    vlm = config.get("vlm_model_name") or config.get("pretrained_backbone")
    return (hub_id(vlm) if config.get("load_vlm_weights") else None), "finetune"


def _hub_datasets(training: Json, provenance: Json) -> list[str]:
    if provenance.get("datasets"):
        return [dataset["hub_id"] for dataset in provenance["datasets"] if dataset.get("hub_id")]
    section = training.get("dataset") or {}
    repo_id = hub_id(section.get("repo_id"))
    return [repo_id] if repo_id else []


def _policy(kind: str) -> type[PolicyConfig]:
    """Return the configuration class of a policy type; that of any VLM if its distribution is not installed here."""
    own_type = PLUGIN_TYPES.get(kind, kind)
    return get_config_class(own_type) if own_type in POLICIES else VLMConfig


def _interval(evaluation: Json) -> str:
    low, high = evaluation["confidence_interval"]
    return f"95% between {low:.0%} and {high:.0%}, {evaluation['episodes']} episodes"


def _short_count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
