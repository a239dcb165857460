"""A policy here and the same one on a server are one policy; a remote one drives whatever a local one drives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from smolact.envs.factory import make_env
from smolact.errors import BadObservationError, ConfigError, FeatureError, ServerError
from smolact.evaluation.rollout import evaluate
from smolact.policies.embodiment import Embodiment
from smolact.policies.factory import LoadedPolicy, load_policy
from smolact.robots.base import RobotFeatures
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.controller import ChunkController
from smolact.runtime.fit import check_robot
from smolact.runtime.inference import Inference, SyncInference
from smolact.runtime.local import LocalPolicy
from smolact.runtime.policy import Chunk, Policy, Request
from smolact.runtime.remote import connect
from smolact.serving.background import serving
from smolact.serving.inference_worker import InferenceWorker
from smolact.types import TASK, EmptyInstruction
from smolact_client import ObservationError, PolicyFailedError, RemotePolicy, Schema
from smolact_client.policy import ChunkPolicy
from tests.evaluation.test_suite import checkpoint
from tests.serving.test_sessions import metric

IMAGE, STATE = "observation.image", "observation.state"
WORDS = "push the red block to the left zone"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return load_policy(checkpoint(tmp_path_factory.mktemp("policy"), 0), device="cpu")


def seen(number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    return {
        IMAGE: random.integers(0, 256, (64, 64, 3), np.uint8).astype(np.uint8),
        STATE: random.uniform(0, 1, 2).astype(np.float32),
    }


def test_a_policy_tells_what_it_looks_at(loaded: LoadedPolicy) -> None:
    loaded.policy.config.of_robot(Embodiment(fps=10, names={"action": ("x", "y"), STATE: ("one",)}))
    schema = LocalPolicy(*loaded).schema
    loaded.policy.config.of_robot(None)
    assert (schema.policy, schema.cameras, schema.vectors) == ("smolvla", {IMAGE: (64, 64)}, {STATE: 2})
    assert (schema.action, schema.chunk_size, schema.n_action_steps) == (2, 8, 8)
    assert schema.names == {"action": ("x", "y")}  # names that do not fit belong to other data
    assert schema.fps == 10
    assert schema.action_range is None  # the checkpoint has no min and max


def test_here_and_there_give_the_same_chunks(loaded: LoadedPolicy) -> None:
    local = LocalPolicy(*loaded)
    with serving(local) as url, RemotePolicy(url, timeout=60) as remote:
        for policy in (local, remote):
            assert isinstance(policy, ChunkPolicy)
        assert remote.schema == local.schema
        for number in range(3):
            chunks = [one.predict_action_chunk(seen(number), WORDS, seed=number) for one in (local, remote)]
            np.testing.assert_array_equal(*chunks)
            assert chunks[0].shape == (8, 2)
        assert not np.array_equal(*(remote.predict_action_chunk(seen(0), WORDS) for _ in range(2)))


def test_an_engine_serves_as_its_policy_does(loaded: LoadedPolicy) -> None:
    engine = loaded.policy.build_engine(dtype=torch.float32)
    served = LocalPolicy(engine, loaded.preprocess, loaded.postprocess)
    served.warm_up()
    expected = LocalPolicy(*loaded).predict_action_chunk(seen(1), WORDS, seed=2)
    np.testing.assert_allclose(
        served.predict_action_chunk(seen(1), WORDS, seed=2), expected, rtol=1e-4, atol=1e-5
    )


def test_the_units_are_the_robots(loaded: LoadedPolicy) -> None:
    """What `LocalPolicy` gives is what policy and processors give by hand."""
    policy, preprocess, postprocess = loaded
    noise = torch.randn(policy.noise_shape, generator=torch.Generator().manual_seed(5))  # type: ignore[attr-defined]
    batch = {
        IMAGE: torch.from_numpy(seen(1)[IMAGE]).permute(2, 0, 1)[None] / 255,
        STATE: torch.from_numpy(seen(1)[STATE])[None],
        TASK: [WORDS],
    }
    expected = postprocess(policy.predict_action_chunk(preprocess(batch), noise[None]))[0]
    found = LocalPolicy(*loaded).predict_action_chunk(seen(1), WORDS, seed=5)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_batch_gives_each_what_it_would_get_alone(loaded: LoadedPolicy) -> None:
    local = LocalPolicy(*loaded)
    questions = [Request(seen(number), WORDS[: 20 + number], number) for number in range(3)]
    together = local.predict(questions)
    for question, chunk in zip(questions, together, strict=True):
        np.testing.assert_allclose(local.predict([question])[0], chunk, rtol=1e-4, atol=1e-5)


def test_pictures_keep_their_channels(loaded: LoadedPolicy) -> None:
    """A red picture is red to the policy, not a third of a grey one."""
    shown: list[Any] = []

    def look(batch: dict[str, Any]) -> dict[str, Any]:
        shown.append(batch[IMAGE])
        return loaded.preprocess(batch)

    red = np.zeros((64, 32, 3), np.uint8)
    red[..., 0] = 255
    LocalPolicy(loaded.policy, look, loaded.postprocess).predict_action_chunk({**seen(0), IMAGE: red}, WORDS)
    assert shown[0].shape == (1, 3, 64, 32) and shown[0].dtype == torch.uint8
    assert shown[0].float().mean((0, 2, 3)).tolist() == [255, 0, 0]


def test_what_is_wrong_with_an_observation_or_an_answer_is_told(loaded: LoadedPolicy) -> None:
    local = LocalPolicy(*loaded)
    with pytest.raises(ObservationError, match=r"lacks observation\.image"):
        local.predict_action_chunk({STATE: np.zeros(2)}, WORDS)
    broken = LocalPolicy(loaded.policy, loaded.preprocess, lambda chunk: chunk * torch.nan)
    with pytest.raises(FeatureError, match="not finite"):
        broken.predict_action_chunk(seen(0), WORDS)
    narrow = LocalPolicy(loaded.policy, loaded.preprocess, lambda chunk: chunk[..., :1])
    with pytest.raises(FeatureError, match=r"expected \(1, 8, 2\)"):
        narrow.predict_action_chunk(seen(0), WORDS)


def test_evaluation_takes_a_remote_policy(loaded: LoadedPolicy) -> None:
    with make_env("tabletop", 2) as envs, serving(LocalPolicy(*loaded)) as url:
        remote = connect(url, timeout=60, n_action_steps=7)
        found = evaluate(remote, envs, n_episodes=2, seed=1)
        here = evaluate(replace_steps(LocalPolicy(*loaded), 7), envs, n_episodes=2, seed=1)
        remote.close()
    assert all(0 < one.steps <= 80 for one in found.results)
    assert (found.n_action_steps, found.chunk_size) == (7, 8)
    assert found.results == here.results


def replace_steps(policy: LocalPolicy, steps: int) -> LocalPolicy:
    policy.schema = replace(policy.schema, n_action_steps=steps)
    return policy


def test_requests_of_one_connection_are_answered_together(loaded: LoadedPolicy) -> None:
    local = LocalPolicy(*loaded)
    requests = [Request(seen(number), WORDS, number) for number in range(7)]
    with serving(local, max_batch=3) as url, RemotePolicy(url, timeout=60) as remote:
        assert remote.limits.requests == 3 and remote.sessions == 1
        together = remote.predict(requests)
        assert metric(url, "batch_size_sum") == 7 and metric(url, "batch_size_count") < 7
        for request, chunk in zip(requests, together, strict=True):
            np.testing.assert_allclose(local.predict([request])[0], chunk, rtol=1e-4, atol=1e-5)
        with pytest.raises(ObservationError, match="at fault"):
            remote.predict([*requests[:2], Request(NOWHERE, WORDS, 1)])
        assert len(remote.predict(requests[:1])) == 1


def test_a_remote_policy_drives_a_robot_as_a_local_one_does(loaded: LoadedPolicy) -> None:
    features = RobotFeatures(("x", "y"), {STATE: ("x", "y")}, {IMAGE: (64, 64)})

    class Seeded(Policy):
        def __init__(self, inner: Policy) -> None:
            self.inner, self.schema = inner, inner.schema

        def predict(self, requests: Sequence[Request]) -> list[Chunk]:
            return self.inner.predict([replace(request, seed=3) for request in requests])

    def driven(policy: Policy) -> Any:
        gate = Gate(make_limits(features.action, {}, {}, float("inf")))
        controller = ChunkController(SyncInference(Seeded(policy)), Inference(), gate)
        controller.begin(WORDS)
        return np.stack([controller.get_action(seen(2)) for _ in range(8)])  # type: ignore[arg-type]

    with serving(LocalPolicy(*loaded)) as url:
        remote = connect(url, timeout=60)
        assert check_robot(remote, features) == ()
        np.testing.assert_array_equal(driven(remote), driven(LocalPolicy(*loaded)))
        less = RobotFeatures(("x",), features.vectors, features.cameras)
        with pytest.raises(FeatureError, match=r"does not fit the policy in action"):
            check_robot(remote, less)
        remote.close()


def test_an_empty_instruction_on_purpose_arrives_as_one(loaded: LoadedPolicy) -> None:
    heard: list[Any] = []

    def listen(batch: dict[str, Any]) -> dict[str, Any]:
        heard.extend(batch[TASK])
        return loaded.preprocess(batch)

    with serving(LocalPolicy(loaded.policy, listen, loaded.postprocess)) as url:
        remote = connect(url, timeout=60)
        remote.predict([Request(seen(0), None)])
        assert isinstance(heard[-1], EmptyInstruction)
        with pytest.raises(BadObservationError, match="instruction is empty"):
            remote.predict([Request(seen(0), "")])
        remote.close()
    with pytest.raises(ServerError, match="Nobody answers"):
        connect(url)


def test_names_and_ranges_come_from_the_checkpoint(loaded: LoadedPolicy, tmp_path: Path) -> None:
    class Step:
        rename_map: ClassVar[Any] = {"observation.images.front": IMAGE}
        statistics: ClassVar[Any] = {
            "action": {"min": torch.tensor([0.0, -1.0]), "max": torch.tensor([1.0, 2.0])}
        }

    class Steps:
        steps = (Step(),)

        def __call__(self, value: Any) -> Any:
            return value

    schema = LocalPolicy(loaded.policy, Steps(), Steps()).schema
    assert schema.cameras == {"observation.images.front": (64, 64)}
    assert schema.action_range == ((0.0, 1.0), (-1.0, 2.0))


@pytest.fixture
def named(loaded: LoadedPolicy) -> Iterator[LoadedPolicy]:
    """The policy, which knows what the numbers of its training's state are called."""
    loaded.policy.config.of_robot(Embodiment(names={STATE: ("pan", "lift")}))
    yield loaded
    loaded.policy.config.of_robot(None)


NOWHERE = {IMAGE: seen(0)[IMAGE], STATE: np.array([0.5, 3e38], np.float32)}


def test_a_state_from_nowhere_is_the_observations_fault_here_and_there(
    named: LoadedPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    local = LocalPolicy(*named)
    with serving(local) as url, RemotePolicy(url, timeout=60) as remote:
        for policy in (local, remote):
            with pytest.raises(ObservationError, match=r"'lift' of observation\.state is 3e\+38.*at fault"):
                policy.predict_action_chunk(NOWHERE, WORDS)
        assert metric(url, 'questions_total{outcome="failed"}') == 1
        remote.predict_action_chunk(seen(0), WORDS)
    assert "policy_failed" not in caplog.text and "Traceback" not in caplog.text


def test_one_bad_observation_of_a_batch_fails_alone(named: LoadedPolicy) -> None:
    local = LocalPolicy(*named)
    good, bad = Request(seen(0), WORDS, 1), Request(NOWHERE, WORDS, 1)
    answering = InferenceWorker(local, 2**20)
    first, second, third = answering._predict([good, bad, good])
    answering.close()
    assert isinstance(second, ObservationError)
    np.testing.assert_array_equal(first, third)


def test_who_records_or_evaluates_is_told_the_same(loaded: LoadedPolicy) -> None:
    loaded.policy.config.of_robot(Embodiment(names={STATE: ("pan", "lift")}))
    named = LocalPolicy(*loaded)
    loaded.policy.config.of_robot(None)
    controller = ChunkController(SyncInference(named), Inference(), Gate(make_limits(("x", "y"), {}, {})))
    controller.begin(WORDS)
    with pytest.raises(FeatureError, match=r"'lift' of observation\.state is 3e\+38"):
        controller.get_action(NOWHERE)
    with make_env("tabletop", 2) as envs:
        real = envs.reset

        def broken(*arguments: Any) -> Any:
            observations, infos = real(*arguments)
            return {**observations, STATE: np.full_like(observations[STATE], 3e38)}, infos

        envs.reset = broken  # type: ignore[method-assign]
        with pytest.raises(
            FeatureError, match=r"Number 0 \(counted from 0\) of observation\.state is 3e\+38"
        ):
            evaluate(LocalPolicy(*loaded), envs, n_episodes=2)


def test_a_policy_of_ones_own_is_a_class_with_a_schema_and_predict() -> None:
    class Still(Policy):
        schema = Schema("still", {}, {STATE: 2}, action=2, chunk_size=4, n_action_steps=4)

        def predict(self, requests: Sequence[Request]) -> list[Chunk]:
            return [np.tile(request.observation[STATE], (4, 1)) for request in requests]

    with make_env("tabletop", 2, obs_type="environment_state_agent_pos") as envs:
        assert len(evaluate(Still(), envs, n_episodes=3).results) == 3
        with serving(Still()) as url:
            served = connect(url, timeout=60)
            state = np.array([0.25, 0.5], np.float32)
            (chunk,) = served.predict([Request({STATE: state}, WORDS)])
            assert chunk.tolist() == [[0.25, 0.5]] * 4
            served.close()


def test_requests_of_several_kinds_are_answered_in_their_order(loaded: LoadedPolicy) -> None:
    local = LocalPolicy(*loaded)
    wide = {**seen(1), IMAGE: np.zeros((64, 96, 3), np.uint8)}
    requests = [Request(seen(0), WORDS, 1), Request(wide, WORDS, 2), Request(seen(2), WORDS, 3)]
    for request, chunk in zip(requests, local.predict(requests), strict=True):
        np.testing.assert_allclose(local.predict([request])[0], chunk, rtol=1e-4, atol=1e-5)
    assert local.predict([]) == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request({**seen(0), STATE: ["a", "b"]}, WORDS), "holds no numbers"),  # type: ignore[dict-item]
        (Request(seen(0), 3), "expected a text"),  # type: ignore[arg-type]
        (Request(seen(0), WORDS, 2**64), "seed"),
    ],
)
def test_what_no_policy_can_be_given_is_named(loaded: LoadedPolicy, request_: Request, words: str) -> None:
    with pytest.raises(BadObservationError, match=words):
        LocalPolicy(*loaded).predict([request_])


def test_predicting_leaves_a_training_as_it_was(loaded: LoadedPolicy) -> None:
    policy = loaded.policy.train()
    frozen = next(policy.children()).eval()
    modes: list[bool] = []

    def noting(batch: dict[str, Any]) -> dict[str, Any]:
        modes.append(policy.training)
        return loaded.preprocess(batch)

    LocalPolicy(policy, noting, loaded.postprocess).predict([Request(seen(0), WORDS, 1)])
    assert modes == [False] and policy.training and not frozen.training
    policy.eval()


WRONG: dict[str, Any] = {
    "a number": lambda requests: 3,
    "too many": lambda requests: [np.zeros((8, 2), np.float32)] * (len(requests) + 1),
    "not finite": lambda requests: [np.full((8, 2), np.nan)] * len(requests),
    "words": lambda requests: [np.full((8, 2), "x")] * len(requests),
    "nothing": lambda requests: [None] * len(requests),
    "with a gradient": lambda requests: [torch.zeros(8, 2, requires_grad=True)] * len(requests),
    "of another size": lambda requests: [np.zeros((8, 3), np.float32)] * len(requests),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_of_a_policy_of_ones_own_is_named_everywhere(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(Policy):
        schema = Schema("wrong", {}, {STATE: 2}, action=2, chunk_size=8, n_action_steps=8)

        def predict(self, requests: Sequence[Request]) -> list[Chunk]:
            return answer(requests)  # type: ignore[no-any-return]

        def warm_up(self, max_batch: int = 1) -> None: ...

    with (
        make_env("tabletop", 2, obs_type="environment_state_agent_pos") as envs,
        pytest.raises(FeatureError, match="The policy"),
    ):
        evaluate(Wrong(), envs, n_episodes=2)
    with (
        serving(Wrong()) as url,
        RemotePolicy(url, timeout=60) as remote,
        pytest.raises(PolicyFailedError),
    ):
        remote.predict([Request({STATE: np.zeros(2, np.float32)}, WORDS)])
    assert "event=policy_failed" in caplog.text
    if answer is not WRONG["of another size"]:  # the gate finds that
        controller = ChunkController(
            SyncInference(Wrong()), Inference(), Gate(make_limits(("x", "y"), {}, {}))
        )
        controller.begin(WORDS)
        with pytest.raises(FeatureError, match="The policy"):
            controller.get_action({STATE: np.zeros(2, np.float32)})


def test_one_bad_request_of_several_keeps_the_connection(loaded: LoadedPolicy) -> None:
    class Picky(LocalPolicy):
        def predict(self, requests: Sequence[Request]) -> list[Chunk]:
            if any(request.task == "fail" for request in requests):
                raise FeatureError("no")
            return super().predict(requests)

    with serving(Picky(*loaded)) as url, RemotePolicy(url, timeout=60) as remote:
        for _ in range(3):
            with pytest.raises(PolicyFailedError):
                remote.predict([Request(seen(n), "fail" if n == 1 else WORDS, n) for n in range(5)])
            assert len(remote.predict([Request(seen(n), WORDS, n) for n in range(5)])) == 5
        assert remote.sessions == 1


@pytest.mark.parametrize(("steps", "words"), [(0, "at least one"), (9, "a chunk of this policy has 8")])
def test_more_or_fewer_actions_than_a_chunk_has_are_refused(
    loaded: LoadedPolicy, steps: int, words: str
) -> None:
    with serving(LocalPolicy(*loaded)) as url, pytest.raises(ConfigError, match=words):
        connect(url, timeout=60, n_action_steps=steps)
