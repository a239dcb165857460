"""The pages of the reference, made from the code: settings from the commands' own tables, names from their docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from smolact.cli.help import Row, settings_of
from smolact.cli.main import COMMANDS, Command
from smolact.policies.factory import POLICY_TYPES, get_config_class

GROUPS = ("dataset", "il-studio", "policy", "robot")

COMMAND_PAGES = {
    "settings_train": ("smolact train", ("train",)),
    "settings_record": ("smolact record, replay", ("record", "replay")),
    "settings_eval": ("smolact eval", ("eval",)),
    "settings_serve": ("smolact serve, rollout", ("serve", "rollout")),
    "settings_dataset": ("smolact dataset", ("dataset",)),
    "settings_robot": ("smolact robot", ("robot",)),
    "settings_others": ("Other commands", ()),
}
"""Page to its title and its commands."""
_TOLD = {name for _, names in COMMAND_PAGES.values() for name in names}
COMMAND_PAGES["settings_others"] = ("Other commands", tuple(name for name in COMMANDS if name not in _TOLD))

CLASSES = ("SmolVLAConfig", "SMOLANDFASTConfig")

API = {
    "Everyday": ("smolact.load_policy", "smolact.LeRobotDataset", "smolact.datasets.collate.collate"),
    "Policies": (
        "smolact.SmolVLAConfig",
        "smolact.SmolVLAPolicy",
        "smolact.policies.smolvla.network_smolvla.VLAFlowMatching",
        "smolact.policies.smolvla.smolvlm_with_expert.SmolVLMWithExpertModel",
        "smolact.policies.smolvla.engine.SmolVLAEngine",
        "smolact.SMOLANDFASTConfig",
        "smolact.SMOLANDFASTPolicy",
        "smolact.policies.smolandfast.action_tokenizer.FASTTokenizer",
        "smolact.policies.base.PreTrainedPolicy",
        "smolact.policies.factory.make_policy",
    ),
    "Processors": (
        "smolact.processors.step.ProcessorStep",
        "smolact.processors.step.register_step",
        "smolact.processors.pipeline.ProcessorPipeline",
        "smolact.policies.smolvla.processor_smolvla.make_smolvla_pre_post_processors",
    ),
    "Flow matching": (
        "smolact.policies.common.flow_matching.interpolate",
        "smolact.policies.common.flow_matching.sample_time",
        "smolact.policies.common.flow_matching.integrate",
    ),
    "Data": (
        "smolact.datasets.metadata.LeRobotDatasetMetadata",
        "smolact.datasets.writer.DatasetWriter",
        "smolact.envs.factory.make_env",
    ),
    "Robots": ("smolact.robots.base.Robot", "smolact.robots.base.Teleoperator", "smolact.robots.safety.Gate"),
    "Sizes": ("smolact.policies.summary.summarize", "smolact.policies.summary.empty_policy"),
}

SECTIONS = {"Args": "Takes", "Returns": "Gives", "Yields": "Gives", "Raises": "Raises", "Attributes": "Has"}


def pages() -> Iterator[tuple[str, str]]:
    """Name and Markdown of each page."""
    for page, (title, names) in COMMAND_PAGES.items():
        yield (
            page,
            "\n\n".join([f"# {title}", *(_command(command) for name in names for command in leaves(name))]),
        )
    for kind in POLICY_TYPES:
        yield f"settings_{kind}", _policy(kind)
    yield "api", _api()


def leaves(name: str) -> list[tuple[str, Command]]:
    """The command of a name, or those of a group, with what is typed for each."""
    if name not in GROUPS:
        return [(f"smolact {name}", COMMANDS[name])]
    inner: dict[str, Command] = COMMANDS[name].load().COMMANDS
    return [(f"smolact {name} {command.name}", command) for command in inner.values()]


def _command(found: tuple[str, Command]) -> str:
    typed, command = found
    cls, usage, summary = asked_help(command)
    groups, notes = settings_of(cls)
    notes = [f"{note} ([SmolVLA](settings_smolvla.md), [SmolAndFAST](settings_smolandfast.md))" if "policy" in note else note
             for note in map(_as_sentence, notes)]  # fmt: skip
    parts = [
        f"## {typed}",
        _plain(summary),
        f"```bash\n{textwrap.fill(usage, 72, subsequent_indent='    ')}\n```",
    ]
    return "\n\n".join([*parts, *(_table(title, rows) for title, rows in groups.items()), *notes])


def asked_help(command: Command) -> tuple[type, str, str]:
    """The class of a command's settings, an example of it and what it does: what it would print for `--help`."""
    import smolact.cli.command as shared
    import smolact_il_studio.cli as il_studio

    module = command.load()
    asked: list[Any] = []

    def heard(cls: type, usage: str, summary: str, argv: Any = ()) -> str:
        asked[:] = [cls, usage, summary]
        raise _Heard

    places: list[Any] = [place for place in (module, shared, il_studio) if hasattr(place, "help_text")]
    before = [place.help_text for place in places]
    try:
        for place in places:
            place.help_text = heard
        command.run(["--help"])
    except _Heard:
        return asked[0], asked[1], asked[2]
    finally:
        for place, kept in zip(places, before, strict=True):
            place.help_text = kept
    raise LookupError(f"{command.module} has no table of its settings")


class _Heard(Exception):  # noqa: N818
    pass


def _policy(kind: str) -> str:
    cls = get_config_class(kind)
    groups, _ = settings_of(cls)
    rows = [row._replace(name=f"policy.{row.name}") for rows in groups.values() for row in rows]
    own = [row for row in rows if row.name.removeprefix("policy.") in inspect.get_annotations(cls)]
    shared = [row for row in rows if row not in own]
    return "\n\n".join(
        [
            f"# Settings of `{cls.__name__}`",
            f"For `--policy.type={kind}`, and for a checkpoint of it: `--policy.path=CHECKPOINT` with any of these behind it. "
            "What each costs is in [What to change](../modify.md).",
            _table("Its own", own),
            _table("Of every policy", shared),
        ]
    )


def _table(title: str, rows: list[Row]) -> str:
    lines = ["| setting | default | takes | what it does |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{_cell(row.default)}`" if row.default else ""
        lines.append(f"| `--{row.name}` | {default} | {_cell(row.kind)} | {_cell(_as_sentence(row.doc))} |")
    table = "\n".join(lines)
    return (f"### {title}\n\n" if title else "") + f'<div class="settings" markdown>\n\n{table}\n\n</div>'


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _as_sentence(text: str) -> str:
    return re.sub(r"(?<![`\w])(--[a-z_]+(?:\.[a-z_]+)*\.?…?(?:=[\w:/.]+)?)", r"`\1`", text)


def _plain(text: str) -> str:
    text = re.sub(r"^`smolact [\w -]+`: ", "", text.strip())
    return text[:1].upper() + text[1:]


def _api() -> str:
    parts = [
        "# API",
        "What one calls from Python. Tensors' shapes are in the docstrings: B is a batch, A the width of an action.",
    ]
    for title, names in API.items():
        parts.append(f"## {title}")
        for name in names:
            module, _, attribute = name.rpartition(".")
            parts.append(_thing(getattr(importlib.import_module(module), attribute), name))
    return "\n\n".join(parts)


def _thing(thing: Any, name: str) -> str:
    short = name.rpartition(".")[2]
    home = f"`{thing.__module__.replace('.', '/')}.py`"
    parts = [
        f"### {short}",
        f"```python\nfrom {name.rpartition('.')[0]} import {short}\n```",
        _signature(thing),
        _doc(thing),
    ]
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if member.startswith("_") or not inspect.isfunction(inner) or not inner.__doc__:
                continue
            kind = "property" if isinstance(value, property) else "method"
            parts.append(
                f"#### {short}.{member} {{ .{kind} }}\n\n" + _signature(inner) + "\n\n" + _doc(inner)
            )
    return "\n\n".join([*parts, f"In {home}."])


def _signature(thing: Any) -> str:
    """As it stands in the source, without a body."""
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    if isinstance(node, ast.ClassDef):
        made = next(
            (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None
        )
        if made is None:
            return ""
        text = f"{node.name}({', '.join(_arguments(made.args)[1:])})"
    else:
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        text = f"{node.name}({', '.join(_arguments(node.args))}){returns}"
    if len(text) > 100:
        head, _, rest = text.partition("(")
        inner, _, tail = rest.rpartition(")")
        text = f"{head}(\n    " + ",\n    ".join(_split(inner)) + f",\n){tail}"
    return f"```python\n{text}\n```"


def _arguments(arguments: ast.arguments) -> list[str]:
    return _split(ast.unparse(arguments))


def _split(text: str) -> list[str]:
    """At commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _doc(thing: Any) -> str:
    lines: list[str] = []
    for line in (inspect.getdoc(thing) or "").splitlines():
        section = re.fullmatch(r"(\w+):", line)
        item = re.fullmatch(r"    ([\w*, `]+): (.+)", line)
        if section and section[1] in SECTIONS:
            lines += ["", f"**{SECTIONS[section[1]]}**", ""]
        elif item:
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(line.strip() if line.startswith("     ") else line.removeprefix("    "))
    return "\n".join(lines)
