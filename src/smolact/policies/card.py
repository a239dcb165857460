"""The model card: a policy's data, recipe, results and use, from its own files. Unknown facts are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smolact.cards import Row, cell, front_matter, hub_id, signed, table, tasks
from smolact.policies.configuration import PLUGIN_TYPES, PolicyConfig, get_config_class
from smolact.policies.vlm_configuration import VLMConfig
from smolact.registry import POLICIES

PROVENANCE = "provenance.json"
"""The file in which training records a policy's provenance; LeRobot ignores it."""
_FROZEN = {
    "train_expert_only": "the VLM",
    "freeze_vision_encoder": "the vision tower",
    "freeze_connector": "the connector",
}

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
        config: its `config.json`.
        training: its `train_config.json`; empty if there is none.
        provenance: its `provenance.json`; empty if there is none.
        name: its id on the Hub, or its folder.
        evaluations: results of `smolact eval`, each in the form of its `metrics.json`, with its `environment`.
        for_lerobot: whether LeRobot opens it without a plugin.
    """
    results = list(evaluations) or ([provenance["evaluation"]] if provenance.get("evaluation") else [])
    kind = str(config.get("type"))
    title = (name or str(training.get("job_name") or kind)).rpartition("/")[2]
    parts = [
        _front_matter(title, config, training, provenance, results, for_lerobot),
        f"# {title}",
        _summary(kind, config, provenance),
        "## What it takes and gives\n\n" + _features(config),
        _data(training, provenance),
        _recipe(config, training, provenance),
        _results(provenance, results),
        _use(name or "FOLDER", results, training, for_lerobot),
        _limits(kind, provenance, results),
    ]
    return signed("\n\n".join(part for part in parts if part) + "\n")


def _front_matter(
    title: str, config: Json, training: Json, provenance: Json, evaluations: Sequence[Json], for_lerobot: bool
) -> str:
    base, relation = _base(config)
    kind = str(config.get("type"))
    is_vla = ["vision-language-action"] if _policy(kind).reads_instructions else []
    tags = ["robotics", *is_vla, "smolact", kind, *(config.get("tags") or [])]
    library = "lerobot" if for_lerobot else "smolact"
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
    return front_matter(
        {
            "library_name": library,
            "pipeline_tag": "robotics",
            "license": config.get("license"),
            "tags": list(dict.fromkeys([*tags, *(["lerobot"] if for_lerobot else [])])),
            "datasets": _hub_datasets(training, provenance),
            "base_model": base,
            "base_model_relation": relation if base else None,
            "model-index": [{"name": title, "results": results}] if results else None,
        }
    )


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


def _summary(kind: str, config: Json, provenance: Json) -> str:
    size = provenance.get("parameters") or {}
    parameters = f" of {_short_count(size['total'])} parameters" if size.get("total") else ""
    chunk, executed = config.get("chunk_size"), config.get("n_action_steps")
    plan = ""
    if chunk:
        plan = f" It predicts {chunk} actions at once" + (
            f" and carries out {executed} of them before it looks again." if executed else "."
        )
    maker = f" with smolact {provenance['smolact']}" if provenance.get("smolact") else ""
    trained = f", trained for {provenance['step']:,} steps{maker}" if provenance.get("step") else ""
    policy = _policy(kind)
    abilities = ", ".join(
        [*["sees"] * policy.uses_cameras, *["reads an instruction"] * policy.reads_instructions, "and acts"]
    )
    return f"A {policy.title or kind} policy{parameters}: it {abilities.removeprefix('and ')}{trained}.{plan}"


def _policy(kind: str) -> type[PolicyConfig]:
    """Return the configuration class of a policy type; that of any VLM if its distribution is not installed here."""
    own_type = PLUGIN_TYPES.get(kind, kind)
    return get_config_class(own_type) if own_type in POLICIES else VLMConfig


def _features(config: Json) -> str:
    lines = ["| | name | kind | size |", "|---|---|---|---|"]
    for side, section in (("takes", "input_features"), ("gives", "output_features")):
        for name, feature in (config.get(section) or {}).items():
            size = " × ".join(str(n) for n in feature.get("shape") or ())
            lines.append(f"| {side} | `{name}` | {str(feature.get('type')).lower()} | {size} |")
    if _policy(str(config.get("type"))).reads_instructions:
        lines.append("| takes | `task` | instruction | text |")
    return (
        "\n".join([*lines[:2], *sorted(lines[2:], key=lambda line: line.startswith("| gives"))])
        + "\n\nCameras are channels × height × width; states and actions are in the robot's own units: what is normalized, the "
        "checkpoint's processors do."
    )


def _data(training: Json, provenance: Json) -> str:
    parts = []
    for dataset in provenance.get("datasets") or []:
        name = dataset.get("hub_id")
        linked = (
            f"[{name}](https://huggingface.co/datasets/{name})" if name else f"{dataset.get('name')} (local)"
        )
        cameras = ", ".join(f"`{camera}`" for camera in dataset.get("cameras") or [])
        share = dataset.get("share")
        facts: list[Row] = [
            ("dataset", linked + (f", {share:.0%} of the samples" if share else "")),
            ("episodes", f"{dataset['episodes']:,}" if dataset.get("episodes") else None),
            ("frames", f"{dataset['frames']:,}" if dataset.get("frames") else None),
            ("frames a second", f"{dataset['fps']:g}" if dataset.get("fps") else None),
            ("robot", dataset.get("robot_type")),
            ("cameras", cameras),
        ]
        parts.append("\n\n".join(filter(None, (table(facts), tasks(dataset.get("tasks") or [])))))
    section = training.get("dataset") or {}
    if not parts and (section.get("repo_id") or section.get("root")):
        parts.append(f"Trained on `{section.get('repo_id') or section['root']}`.")
    return "## Data\n\n" + "\n\n".join(parts) if parts else ""


def _recipe(config: Json, training: Json, provenance: Json) -> str:
    if not training and not provenance:
        return ""
    optimizer, schedule = training.get("optimizer") or {}, training.get("scheduler") or {}
    size = provenance.get("parameters") or {}
    batch, processes = training.get("batch_size"), provenance.get("processes") or 1
    samples = provenance.get("samples_per_step")
    frozen = [part for name, part in _FROZEN.items() if config.get(name)]
    if config.get("train_expert_only"):  # the VLM includes the vision tower
        frozen = [_FROZEN["train_expert_only"]]
    rows: list[Row] = [
        ("weights", provenance.get("weights") or _initial_weights(config)),
        (
            "parameters",
            f"{size['total']:,}, of which {size['trained']:,} trained" if size.get("total") else None,
        ),
        ("frozen", ", ".join(frozen)),
        ("steps", _steps(training, provenance)),
        (
            "samples a step",
            f"{samples} ({batch} a process, {processes} processes)"
            if samples and samples != batch
            else str(batch or ""),
        ),
        (
            "optimizer",
            f"AdamW, betas {_numbers(optimizer['betas'])}, weight decay {optimizer['weight_decay']:g}, gradient norm at most "
            f"{optimizer['grad_clip_norm']:g}"
            if optimizer.keys() >= {"betas", "weight_decay", "grad_clip_norm"}
            else None,
        ),
        (
            "learning rate",
            f"{schedule['peak_lr']:g} after {schedule['num_warmup_steps']} steps, cosine to {schedule['decay_lr']:g} at step "
            f"{schedule['num_decay_steps']}"
            if schedule.keys() >= {"peak_lr", "num_warmup_steps", "decay_lr", "num_decay_steps"}
            else None,
        ),
        ("mixed precision", "bfloat16" if config.get("use_amp") else None),
        ("seed", None if training.get("seed") is None else str(training["seed"])),
        ("device", provenance.get("device")),
        (
            "versions",
            ", ".join(
                f"{name} {provenance[name]}"
                for name in ("smolact", "torch", "python")
                if provenance.get(name)
            ),
        ),
    ]
    command = provenance.get("command")
    command_block = f"\n\n```bash\n{command}\n```" if command else ""
    settings_link = "\n\nEvery setting is in [train_config.json](train_config.json)." if training else ""
    return f"## Recipe\n\n{table(rows)}{command_block}{settings_link}"


def _initial_weights(config: Json) -> str | None:
    path = config.get("pretrained_path")
    return f"from {path}" if path else None


def _steps(training: Json, provenance: Json) -> str | None:
    planned, done = training.get("steps"), provenance.get("step")
    if done and planned and done < planned:
        return f"{done:,} of {planned:,} planned"
    return f"{done or planned:,}" if done or planned else None


def _results(provenance: Json, evaluations: Sequence[Json]) -> str:
    parts = []
    for result in evaluations:
        low, high = result["confidence_interval"]
        lines = [
            "| where | success | 95% interval | episodes |",
            "|---|---|---|---|",
            f"| **{result.get('environment') or 'all'}** | **{result['success_rate']:.0%}** | {low:.0%} to {high:.0%} | {result['episodes']} |",
        ]
        for task, rate in (
            (result.get("per_task") or {}).items() if len(result.get("per_task") or {}) > 1 else ()
        ):
            ends = rate["confidence_interval"]
            lines.append(
                f"| {cell(task)} | {rate['success_rate']:.0%} | {ends[0]:.0%} to {ends[1]:.0%} | {rate['episodes']} |"
            )
        details = [
            f"{result['n_action_steps']} of {result['chunk_size']} actions of a chunk carried out"
            if result.get("n_action_steps") and result.get("chunk_size")
            else "",
            f"{result['num_steps']} denoising steps" if result.get("num_steps") else "",
            f"seed {result['seed']}" if result.get("seed") is not None else "",
            f"after step {result['step']:,} of the training" if result.get("step") else "",
            f"mean of the largest rewards {result['mean_max_reward']:.3f}"
            if result.get("mean_max_reward")
            else "",
        ]
        note = "; ".join(part for part in details if part)
        parts.append(
            "\n".join(lines) + (f"\n\n{note[0].upper()}{note[1:]}. Intervals are Wilson's." if note else "")
        )
    if not evaluations:
        parts.append("Not evaluated in closed loop: how often it does what it is told is not known.")
    losses: list[Row] = [
        (title, f"{provenance[name]:.4g}" if provenance.get(name) is not None else None)
        for name, title in (
            ("loss", "training loss, last"),
            ("validation_loss", "loss on held-out episodes, last"),
        )
    ]
    if any(value for _, value in losses):
        parts.append(table(losses))
    return "## Results\n\n" + "\n\n".join(parts)


def _use(name: str, evaluations: Sequence[Json], training: Json, for_lerobot: bool) -> str:
    env = next((result["environment"] for result in evaluations if result.get("environment")), None)
    env = env or (training.get("env") or {}).get("type")
    lines = [f"smolact doctor {name}"]
    lines += [f"smolact eval --policy.path={name} --env.type={env}"] if env else []
    lines += [f"smolact rollout --policy.path={name} --robot.type=TYPE --robot.port=PORT"]
    text = (
        "## Use it\n\n```bash\n"
        + "\n".join(lines)
        + "\n```\n\n```python\nfrom smolact import load_policy\n\n"
        f'policy, preprocess, postprocess = load_policy("{name}")\n'
        "actions = postprocess(policy.predict_action_chunk(preprocess(observation)))\n```"
    )
    if for_lerobot:
        text += (
            "\n\nLeRobot opens it as it is:\n\n```bash\n"
            f"lerobot-rollout --strategy.type=base --policy.path={name} --robot.type=TYPE --robot.port=PORT\n```"
        )
    return text


def _limits(kind: str, provenance: Json, evaluations: Sequence[Json]) -> str:
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in _known_limits(kind, provenance, evaluations))


def _known_limits(kind: str, provenance: Json, evaluations: Sequence[Json]) -> Iterator[str]:
    if not evaluations:
        yield "It has not been evaluated. Try it where a wrong motion does no harm, with the robot's limits on."
    for evaluation in evaluations:
        if int(evaluation["episodes"]) < 100:
            yield f"{evaluation['episodes']} episodes are few: the interval above is what they tell, not the rate."
    if evaluations:
        yield "The rates hold for that environment and its scenes; on another robot or in another place it has not been tried."
    datasets = provenance.get("datasets") or []
    count = sum(len(dataset.get("tasks") or []) for dataset in datasets)
    if datasets:
        episodes = sum(int(dataset.get("episodes") or 0) for dataset in datasets)
        yield (
            f"It has seen {episodes:,} episodes and {count} instruction{'s' * (count != 1)}; what it does with others is not known."
        )
    distribution = POLICIES.distribution_of(kind)
    if distribution is not None:
        yield f"smolact opens it where the distribution `{distribution}` is installed, which adds the policy type `{kind}`."
    if _policy(kind).uses_cameras:
        yield "Cameras must stand and be named as in the data, and states and actions have the data's order and units."
    else:
        yield "States and actions must have the data's order and units."


def _interval(evaluation: Json) -> str:
    low, high = evaluation["confidence_interval"]
    return f"95% between {low:.0%} and {high:.0%}, {evaluation['episodes']} episodes"


def _short_count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _numbers(values: Sequence[float]) -> str:
    return " and ".join(f"{value:g}" for value in values)
