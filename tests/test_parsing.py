"""Flags and files to dataclasses: every form, every mistake."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smolact.cli.help import help_text
from smolact.errors import ConfigError, NotFoundError
from smolact.flags import ParsedValue, name_sources, read_flags
from smolact.parsing import build, flattened, parse
from smolact.settings import Unsupported, open_section, setting


class Color(str, Enum):
    RED = "red"
    DEEP_BLUE = "deep-blue"


@dataclass
class Feature:
    type: Color
    shape: tuple[int, ...]


@dataclass
class Inner:
    depth: int = 1


@dataclass
class Arm:
    lr: float = 1e-4
    size: tuple[int, int] | None = (512, 512)
    features: dict[str, Feature] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    freeze: bool = True


def arm_fields(section: Mapping[str, Any]) -> type | None:
    if section.get("type") not in (None, "arm"):
        raise ConfigError(f"There is no policy type '{section['type']}'.")
    return Arm if section.get("type") else None


@dataclass
class PolicyPart:
    type: str | None = None
    path: str | None = None
    settings: dict[str, Any] = open_section(arm_fields)


@dataclass
class Data:
    UNSUPPORTED: ClassVar = {"streaming": Unsupported("read it from the disk.")}

    repo_id: str | None = None
    episodes: list[int] | None = None
    root: Path | None = None


@dataclass
class Config:
    data: Data = field(default_factory=Data)
    policy: PolicyPart = field(default_factory=PolicyPart)
    steps: int = 100
    rate: float = 0.5
    name: str = "run"
    resume: bool = False
    color: Color = Color.RED
    mode: Literal["a", "b"] = "a"
    kwargs: dict[str, Any] = field(default_factory=dict)
    targets: list[str] | str | None = None
    eval_freq: int = setting(5, "How often.", aliases=("env_eval_freq",))


def read(*argv: str) -> Config:
    return parse(Config, argv)


def message(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(Config, argv)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(text: str, name: str = "train.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_nothing_given_gives_the_defaults() -> None:
    assert read() == Config()


@pytest.mark.parametrize("argv", [("--steps=7",), ("--steps", "7"), ("--steps=3", "--steps=7")])
def test_a_flag_takes_its_value_with_equals_or_after_it_and_the_last_one_wins(argv: tuple[str, ...]) -> None:
    assert read(*argv).steps == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("FALSE", False), ("0", False)],
)
def test_booleans_are_true_false_1_0_in_any_case(text: str, value: bool) -> None:
    assert read(f"--resume={text}").resume is value
    assert read("--resume", text).resume is value


def test_a_bare_boolean_flag_is_true() -> None:
    assert read("--resume").resume is True
    config = read("--resume", "--steps=7")
    assert (config.resume, config.steps) == (True, 7)


def test_values_of_every_type() -> None:
    config = read(
        "--data.episodes=[0, 2]",
        "--data.root=some/where",
        "--rate=1e-4",
        "--color=deep-blue",
        "--mode=b",
        '--kwargs={"a.b": [1, null, {c: true}]}',
        "--targets=all-linear",
        "--name=007",
    )
    assert config.data.episodes == [0, 2]
    assert config.data.root == Path("some/where")
    assert config.rate == 1e-4
    assert config.color is Color.DEEP_BLUE
    assert config.mode == "b"
    assert config.kwargs == {"a.b": [1, None, {"c": True}]}
    assert config.targets == "all-linear"
    assert config.name == "007"


def test_an_enum_can_be_named_as_well() -> None:
    assert read("--color=DEEP_BLUE").color is Color.DEEP_BLUE


@pytest.mark.parametrize("text", ["null", "none", "None"])
def test_null_is_none_where_none_is_allowed_and_text_elsewhere(text: str) -> None:
    assert read("--data.episodes=[1]", f"--data.episodes={text}").data.episodes is None
    assert read(f"--name={text}").name == text


def test_a_union_of_text_and_list_takes_either() -> None:
    assert read("--targets=[a, b]").targets == ["a", "b"]


def test_text_keeps_equals_signs_colons_and_spaces() -> None:
    assert read("--name=a=b: {c} # d").name == "a=b: {c} # d"


def test_a_negative_number_can_stand_apart() -> None:
    assert read("--steps", "-3").steps == -3


def test_underscores_group_digits() -> None:
    assert read("--steps=30_000").steps == 30_000


def test_an_alias_sets_the_same_field() -> None:
    assert read("--env_eval_freq=9").eval_freq == 9
    assert [item.name for item in flattened(Config, read_flags(["--env_eval_freq=9"]))] == ["eval_freq"]


def test_a_section_can_be_given_as_one_mapping() -> None:
    assert read("--data={repo_id: me/data, episodes: [1]}").data == Data("me/data", [1])


def test_further_settings_of_a_section_are_typed_by_the_class_that_its_type_names() -> None:
    config = read("--policy.lr=1e-3", "--policy.type=arm", "--policy.size=none", "--policy.inner.depth=4")
    assert config.policy.type == "arm"
    assert config.policy.settings == {"lr": 1e-3, "size": None, "inner": Inner(4)}


def test_dataclasses_inside_a_mapping() -> None:
    config = read("--policy.type=arm", '--policy.features={"x.y": {type: red, shape: [3, 4]}}')
    assert config.policy.settings == {"features": {"x.y": Feature(Color.RED, (3, 4))}}


def test_flags_win_over_a_file_and_mistakes_of_a_file_name_its_line(write: Any) -> None:
    path = write("steps: 5\nrate: 0.1\ndata:\n  repo_id: a/b\n")
    config = read(f"--config_path={path}", "--steps=7")
    assert (config.steps, config.rate, config.data.repo_id) == (7, 0.1, "a/b")
    path = write("steps: 5\nrate: x\n")
    assert message(f"--config_path={path}").startswith(f"{path}, line 2: rate: expected a number")


@pytest.mark.parametrize(
    ("name", "value", "of"),
    [
        ("steps", 7, lambda config: config.steps),
        ("rate", 1e-9, lambda config: config.rate),
        ("name", "007", lambda config: config.name),
        ("color", Color.DEEP_BLUE, lambda config: config.color),
        ("resume", True, lambda config: config.resume),
        ("data.episodes", [0, 2], lambda config: config.data.episodes),
        ("data.root", Path("some/where"), lambda config: config.data.root),
        ("data.root", None, lambda config: config.data.root),
        ("kwargs", {"a": [1, None, {"b": "1"}]}, lambda config: config.kwargs),
        ("data", {"repo_id": "a/b"}, lambda config: {"repo_id": config.data.repo_id}),
    ],
)
def test_values_of_python_are_settings_like_flags(name: str, value: Any, of: Any) -> None:
    assert of(build(Config, [ParsedValue.of(name, value)])) == value


def test_a_wrong_value_of_python_says_what_was_expected() -> None:
    with pytest.raises(ConfigError, match=r"--steps=1.5: expected an integer, found '1.5'"):
        build(Config, [ParsedValue.of("steps", 1.5)])


# Mistakes --------------------------------------------------------------------------------------------------------------


def test_an_unknown_flag_names_the_nearest() -> None:
    assert "no flag --stesp" in message("--stesp=3")
    assert "Did you mean '--steps'?" in message("--stesp=3")
    assert "--help" in message("--stesp=3")


def test_an_unknown_flag_of_the_policy_names_the_nearest_of_its_class() -> None:
    assert "Did you mean '--policy.freeze'?" in message("--policy.type=arm", "--policy.freez=true")


def test_a_policy_setting_without_a_type_asks_for_it() -> None:
    assert "--policy.type=NAME" in message("--policy.lr=3")


def test_a_wrong_type_says_what_was_expected_and_found() -> None:
    assert message("--steps=abc") == "--steps=abc: expected an integer, found 'abc'."
    assert "expected an integer, found '1.5'" in message("--steps=1.5")
    assert "expected true or false, found 'banana'" in message("--resume=banana")
    assert "expected a number, found 'x'" in message("--rate=x")
    assert "expected a finite number" in message("--rate=nan")


def test_a_wrong_choice_lists_them_and_names_the_nearest() -> None:
    assert "one of red, deep-blue" in message("--color=deep-bleu")
    assert "Did you mean 'deep-blue'?" in message("--color=deep-bleu")
    assert "one of a, b" in message("--mode=c")


def test_a_wrong_item_says_where_in_the_value() -> None:
    assert "at [1]): expected an integer, found 'x'" in message("--data.episodes=[0, x]")
    text = message("--policy.type=arm", "--policy.features={top: {type: red, shape: [3, q]}}")
    assert "at top.shape[1]): expected an integer, found 'q'" in text


def test_a_scalar_for_a_list_says_how_lists_are_written() -> None:
    assert "a list [a, b, …]" in message("--data.episodes=3")


def test_a_tuple_of_another_length_is_refused() -> None:
    assert "a list of 2" in message("--policy.type=arm", "--policy.size=[1, 2, 3]")


def test_a_flag_without_its_value_says_so() -> None:
    assert "--steps needs a value: an integer" in message("--steps")
    assert "--steps needs a value" in message("--steps", "--resume")


def test_a_word_that_is_no_flag_is_refused() -> None:
    assert "'steps' is not understood" in message("steps")
    assert "Did you mean '--steps=3'?" in message("-steps=3")


def test_a_refused_setting_says_why_but_its_harmless_value_passes() -> None:
    for harmless in ("--data.streaming=false", "--data.streaming=null", "--data={streaming: false}"):
        assert read(harmless) == Config()
    assert "--streaming" not in help_text(Config, "", "", [])
    assert message("--data.streaming") == "--data.streaming can't be used: read it from the disk."
    assert message("--data.streaming=true") == "--data.streaming=true can't be used: read it from the disk."


def test_broken_yaml_in_a_flag_is_told() -> None:
    assert "As YAML" in message("--kwargs={a: [1")


def test_a_required_setting_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="--size is required: an integer"):
        parse(dataclasses.make_dataclass("Needs", [("size", int)]), [])


# Files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.yaml", "train.json"])
def test_yaml_and_json_files_mean_the_same(write: Any, name: str) -> None:
    values = {
        "steps": 5,
        "rate": 1e-4,
        "name": "x",
        "data": {"episodes": [1, 2], "root": None},
        "policy": {"type": "arm", "lr": 2},
    }
    text = json.dumps(values, indent="\t") if name.endswith("json") else yaml.safe_dump(values)
    config = read(f"--config_path={write(text, name)}")
    assert (config.steps, config.rate, config.name, config.data) == (5, 1e-4, "x", Data(None, [1, 2]))
    assert config.policy.settings == {"lr": 2.0}


def test_a_file_may_write_dotted_names_and_null_sections(write: Any) -> None:
    config = read(f"--config_path={write('policy.type: arm' + chr(10) + 'data: null' + chr(10))}")
    assert config.policy.type == "arm"
    assert config.data == Data()


def test_an_empty_file_sets_nothing(write: Any) -> None:
    assert read(f"--config_path={write('')}") == Config()


def test_numbers_as_yaml_1_1_misreads_them_are_numbers(write: Any) -> None:
    assert read(f"--config_path={write('rate: 1e-4')}").rate == 1e-4  # PyYAML alone makes text of it


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps: 5\nrate: abc\n", ["line 2", "rate: expected a number, found 'abc'"]),
        (
            "data:\n  episodes:\n    - 1\n    - x\n",
            ["line 4", "data.episodes[1]: expected an integer, found 'x'"],
        ),
        ("policy:\n  type: arm\n  size: [1,\n   y]\n", ["line 4", "policy.size[1]"]),
        ("steps: 5\n\nstpes: 6\n", ["line 3", "no setting 'stpes'", "Did you mean 'steps'?"]),
        (
            "policy:\n  type: arm\n  freez: true\n",
            ["line 3", "policy.freez", "Did you mean 'policy.freeze'?"],
        ),
        ("steps: 5\nsteps: 6\n", ["line 2", "each key once", "first on line 1"]),
        ("data:\n  repo_id: a\n  repo_id: b\n", ["line 3", "data", "twice"]),
        ("steps: [1\n", ["line", "not valid YAML"]),
        ("- 1\n- 2\n", ["a mapping of settings"]),
        ("just words\n", ["a mapping of settings", "found 'just words'"]),
        ("data: 3\n", ["line 1", "data: expected a mapping of settings, found '3'"]),
        ("resume: yes\n", ["line 1", "expected true or false, found 'yes'"]),
        ("steps: null\n", ["line 1", "expected an integer, found nothing (null)"]),
        ("data:\n  streaming: true\n", ["line 2", "data.streaming can't be used"]),
        ("kwargs:\n  a: !!python/object/apply:os.system ['true']\n", ["kwargs"]),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(write: Any, text: str, parts: list[str]) -> None:
    path = write(text)
    found = message(f"--config_path={path}")
    for part in [str(path), *parts]:
        assert part in found


@dataclass
class Checked:
    data: Data = field(default_factory=Data)
    steps: int = 100
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None:
            raise ConfigError(
                f"--steps={self.steps} and --minutes={self.minutes} exclude each other. Drop --minutes."
            )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "{file}, lines 1 and 4: steps=5 and minutes=2.0 exclude each other. Drop minutes."),
        (("--steps=7",), "{file}, line 4: --steps=7 and minutes=2.0 exclude each other. Drop minutes."),
        (("--steps=7", "--minutes=3"), "--steps=7 and --minutes=3.0 exclude each other. Drop --minutes."),
    ],
)
def test_a_check_names_the_line_of_a_setting_in_a_file(
    write: Any, argv: tuple[str, ...], expected: str
) -> None:
    path = write("steps: 5\ndata:\n  repo_id: a/b\nminutes: 2\n")
    with pytest.raises(ConfigError) as caught:
        parse(Checked, [f"--config_path={path}", *argv])
    assert str(caught.value) == expected.format(file=path)


def test_a_type_that_a_file_lacks_is_named_as_the_file_would_have_it(write: Any) -> None:
    path = write("policy:\n  lr: 3\n")
    said = message(f"--config_path={path}")
    assert said.startswith(f"{path}, line 2: there is no setting 'policy.lr'.")
    assert "need policy.type: NAME." in said


def test_broken_json_is_told_with_its_line(write: Any) -> None:
    assert "line 2: not valid JSON" in message(
        f"--config_path={write('{' + chr(10) + ' steps: 1}', 'a.json')}"
    )


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"steps: \xff\xfe")
    assert "UTF-8" in message(f"--config_path={tmp_path / 'a.yaml'}")


def test_a_file_that_is_not_there_says_what_is_near(write: Any, tmp_path: Path) -> None:
    write("steps: 1\n", "train.yaml")
    with pytest.raises(NotFoundError, match=r"(?s)is not there.*Did you mean 'train.yaml'"):
        read(f"--config_path={tmp_path / 'trian.yaml'}")
    with pytest.raises(NotFoundError, match="a folder"):
        read(f"--config_path={tmp_path}")


# Properties ------------------------------------------------------------------------------------------------------------

SIMPLE_TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20)


@given(SIMPLE_TEXT.filter(lambda text: not text.startswith("--")))
def test_any_text_comes_through_as_it_was_typed(text: str) -> None:
    assert read(f"--name={text}").name == text
    assert read("--name", text).name == text


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers()))
def test_numbers_and_lists_come_through(steps: int, rate: float, episodes: list[int]) -> None:
    config = read(f"--steps={steps}", f"--rate={rate!r}", f"--data.episodes={episodes}")
    assert (config.steps, config.rate, config.data.episodes) == (steps, rate, episodes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | SIMPLE_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SIMPLE_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(SIMPLE_TEXT, JSON, max_size=4))
def test_json_text_is_the_value_that_json_says(value: dict[str, Any]) -> None:
    assert read(f"--kwargs={json.dumps(value)}").kwargs == value


def outcome(*argv: str) -> Config | str:
    """The configuration, or the text of the named error; any other error comes through."""
    try:
        return read(*argv)
    except (ConfigError, NotFoundError) as error:
        return str(error)


@given(st.lists(st.text(max_size=12), max_size=4))
def test_no_words_make_anything_but_a_config_or_a_named_error(words: list[str]) -> None:
    found = outcome(*words)
    assert isinstance(found, Config) or any(word[:8] in found for word in words)


@given(st.text(max_size=60))
def test_no_file_makes_anything_but_a_config_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    found = outcome(f"--config_path={path}")
    assert isinstance(found, Config) or str(path) in found


def test_a_file_is_not_blamed_for_what_a_message_suggests() -> None:
    in_file = ParsedValue("robot.port", "a", "s.yaml", 1)
    error = ConfigError("There is no flag --robot.prot. Did you mean '--robot.port'? Add --help.")
    name_sources(error, [in_file])
    assert str(error) == "There is no flag --robot.prot. Did you mean '--robot.port'? Add --help."
    blamed = ConfigError("--robot.port is taken. Did you mean '--robot.id'?")
    name_sources(blamed, [in_file])
    assert str(blamed).startswith("s.yaml, line 1: robot.port is taken.")
