"""Sessions: the handshake, answers that find their way, the newest question, batches, and who is at fault."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from smolact.errors import FeatureError
from smolact.runtime.policy import Request
from smolact.serving.background import serving
from smolact.serving.sessions import RequestQueue
from smolact_client import (
    ClosedError,
    DroppedError,
    MissingFeatureError,
    ObservationError,
    Offer,
    PolicyFailedError,
    RemotePolicy,
    SchemaMismatchError,
    TaskTooLongError,
)
from smolact_client.images import encode_jpeg
from smolact_client.policy import ChunkPolicy
from smolact_client.protocol import Jpeg, Message, MessageKind
from tests.serving.worlds import CAMERA, JOINTS, OFFER, SCHEMA, STATE, Echo, observation, raw, until


def test_a_question_is_answered() -> None:
    with serving(Echo()) as url, RemotePolicy(url, offer=OFFER) as policy:
        assert isinstance(policy, ChunkPolicy)
        assert policy.schema == SCHEMA
        chunk = policy.predict_action_chunk(observation(0.5, 8), "go on", seed=3)
        assert chunk.dtype == np.float32
        assert chunk[0].tolist() == [0.5] * 3
        assert chunk[-1].tolist() == [8, 5, 3]
        answer = policy.ask(
            {**observation(), STATE: [1, 2, 3]}, None
        )  # numbers of any kind; no instruction on purpose
        assert answer.chunk[0].tolist() == [1, 2, 3]
        assert 0 <= answer.waited <= answer.seconds and 0 <= answer.inference <= answer.seconds


def test_pictures_may_be_jpeg_of_any_size() -> None:
    with serving(Echo()) as url, RemotePolicy(url, images="jpeg") as policy:
        big = {**observation(), CAMERA: np.full((200, 100, 3), 77, np.uint8)}
        assert policy.predict_action_chunk(big, "go")[-1, 0] == pytest.approx(77, abs=2)


def test_a_damaged_picture_is_its_senders_alone() -> None:
    gate = threading.Event()
    echo = Echo(gate)
    with serving(echo) as url, raw(url) as first, raw(url) as second, raw(url) as third:
        first.ask(1)
        until(echo.entered.is_set)
        noise = np.random.default_rng(0).integers(0, 100, (48, 64, 3), np.uint8)
        whole = encode_jpeg(noise.astype(np.uint8))
        for client, data in ((second, whole[:-500]), (third, whole)):
            client.sequence += 1
            arrays = {CAMERA: Jpeg(data), STATE: observation(9)[STATE]}
            asked = Message(
                MessageKind.OBSERVATION,
                client.session,
                client.sequence,
                client.sequence,
                {"task": "go"},
                arrays,
            )
            client.send(asked)
        until(lambda: metric(url, "waiting") == 2)
        gate.set()
        assert second.receive().fields["code"] == "bad_observation"
        assert third.receive().arrays["action"][-1, 0] == pytest.approx(50, abs=5)  # type: ignore[index]


@pytest.mark.parametrize(
    ("offer", "wrong"),
    [
        (Offer({"observation.images.wrist": (4, 4)}, OFFER.vectors, JOINTS), f"policy in {CAMERA}:"),
        (Offer(OFFER.cameras, {STATE: ("pan", "grip", "lift")}, JOINTS), f"policy in {STATE}:"),
        (Offer(OFFER.cameras, {}, JOINTS), f"policy in {STATE}:"),
        (Offer(OFFER.cameras, OFFER.vectors, (*JOINTS, "roll")), "policy in action:"),
        (Offer(), f"policy in {CAMERA}, {STATE}, action:"),
    ],
)
def test_a_robot_that_does_not_fit_sees_both_sides(offer: Offer, wrong: str) -> None:
    with serving(Echo()) as url, pytest.raises(SchemaMismatchError) as found:
        RemotePolicy(url, offer=offer)
    message = str(found.value)
    assert wrong in message
    assert (
        "the policy" in message and "the robot" in message and "✗" in message and "pan, lift, grip" in message
    )


def test_what_can_not_be_looked_at_is_told_here_and_there() -> None:
    with serving(Echo()) as url, RemotePolicy(url) as policy:
        with pytest.raises(MissingFeatureError, match=f"lacks {CAMERA}"):
            policy.predict_action_chunk({STATE: np.zeros(3)}, "go")
        with pytest.raises(TaskTooLongError, match="reads 1000"):
            policy.predict_action_chunk(observation(), "x" * 1001)
        with pytest.raises(ObservationError, match="no numbers"):
            policy.predict_action_chunk({**observation(), STATE: ["a", "b", "c"]}, "go")
        with raw(url) as client:
            for fields, code in (
                ({"task": "x" * 1001}, "task_too_long"),
                ({"task": 5}, "bad_observation"),
                ({"seed": -1}, "bad_observation"),
                ({"seed": 1.5}, "bad_observation"),
                ({"deadline_ms": 0}, "bad_observation"),
            ):
                asked = client.ask(0.0, **fields)
                answer = client.receive()
                assert (answer.kind, answer.observation, answer.fields["code"]) == (
                    MessageKind.ERROR,
                    asked,
                    code,
                )
            client.ask(4.0)  # and goes on
            assert client.receive().arrays["action"][0, 0] == 4.0  # type: ignore[index]


def test_answers_never_cross_sessions() -> None:
    wrong: list[Any] = []

    def live(url: str, number: int) -> None:
        with RemotePolicy(url, timeout=30) as policy:
            for turn in range(15):
                mine = 100 * number + turn
                chunk = policy.predict_action_chunk(observation(mine, number), "x" * (number + 1), seed=turn)
                if chunk[0].tolist() != [mine] * 3 or chunk[-1].tolist() != [number, number + 1, turn]:
                    wrong.append((number, turn, chunk))

    echo = Echo()
    with serving(echo) as url:
        threads = [threading.Thread(target=live, args=(url, number)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong
    assert sorted(value for batch in echo.asked for value in batch) == sorted(
        100 * number + turn for number in range(12) for turn in range(15)
    )
    assert max(map(len, echo.asked)) <= 8


def test_several_threads_may_share_a_client() -> None:
    with serving(Echo()) as url, RemotePolicy(url, timeout=30) as policy:
        found: dict[int, float] = {}

        def ask(number: int) -> None:
            found[number] = float(policy.predict_action_chunk(observation(number), "go")[0, 0])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == {number: float(number) for number in range(8)}


def test_the_newest_question_waits_and_questions_that_wait_together_are_answered_together() -> None:
    gate = threading.Event()
    echo = Echo(gate)
    with serving(echo) as url, raw(url) as first, raw(url) as second, raw(url) as third:
        first.ask(1)
        until(echo.entered.is_set)
        second.ask(2)
        second.ask(20)
        third.ask(3)
        last = second.ask(200)
        until(lambda: metric(url, 'questions_total{outcome="superseded"}') == 2)
        gate.set()
        answer = second.receive()
        assert (answer.kind, answer.observation) == (MessageKind.CHUNK, last)
        assert third.receive().arrays["action"][0, 0] == 3  # type: ignore[index]
        assert first.receive().arrays["action"][0, 0] == 1  # type: ignore[index]
    assert echo.asked == [[1], [200, 3]]  # the turn is that of the first of them


def test_a_reset_drops_what_waits() -> None:
    gate = threading.Event()
    echo = Echo(gate)
    with serving(echo) as url, RemotePolicy(url, timeout=30) as policy:
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                policy.predict_action_chunk(observation(1), "go")
            except DroppedError as error:
                failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        until(echo.entered.is_set)
        before = metric(url, "received_bytes_total")
        policy.reset()
        thread.join(10)
        assert len(failed) == 1
        until(lambda: metric(url, "received_bytes_total") > before)
        gate.set()
        assert policy.predict_action_chunk(observation(2), "go")[0, 0] == 2
        until(lambda: metric(url, 'questions_total{outcome="dropped"}') == 1)


def test_a_closed_client_says_so() -> None:
    gate = threading.Event()
    with serving(Echo(gate)) as url:
        policy = RemotePolicy(url, timeout=30)
        threading.Timer(0.2, policy.close).start()
        with pytest.raises(ClosedError):
            policy.predict_action_chunk(observation(), "go")
        with pytest.raises(ClosedError):
            policy.predict_action_chunk(observation(), "go")
        with pytest.raises(ClosedError):
            policy.reset()
        policy.close()
        gate.set()


class Choosy(Echo):
    """Fails at a batch that holds 13; gives NaN for 14 and one chunk too few for 15."""

    def predict(self, questions: Sequence[Request]) -> list[NDArray[np.float32]]:
        values = [one.observation[STATE][0] for one in questions]
        chunks = super().predict(questions)
        if 13 in values:
            raise RuntimeError("/home/secret/weights.bin exploded")
        if 14 in values:
            raise FeatureError("The state is odd.")
        return chunks[1:] if 15 in values else chunks


def test_one_that_makes_the_policy_fail_fails_alone() -> None:
    gate = threading.Event()
    with serving(Choosy(gate)) as url, raw(url) as first, raw(url) as second, raw(url) as third:
        first.ask(1)
        second.ask(13)
        third.ask(3)
        gate.set()
        assert second.receive().fields["code"] == "policy_failed"
        assert third.receive().arrays["action"][0, 0] == 3  # type: ignore[index]
        assert first.receive().arrays["action"][0, 0] == 1  # type: ignore[index]


def test_a_failure_is_told_without_its_inside() -> None:
    with serving(Choosy()) as url, RemotePolicy(url) as policy:
        with pytest.raises(PolicyFailedError) as found:
            policy.predict_action_chunk(observation(13), "go")
        assert "secret" not in str(found.value) and "Error" not in str(found.value)
        assert "incident" in str(found.value)
        with pytest.raises(PolicyFailedError, match="The state is odd"):
            policy.predict_action_chunk(observation(14), "go")
        with pytest.raises(PolicyFailedError, match="0 chunks for 1"):
            policy.predict_action_chunk(observation(15), "go")
        assert policy.predict_action_chunk(observation(16), "go")[0, 0] == 16


def test_who_came_first_is_first_and_only_alike_ones_go_together() -> None:
    waiting: RequestQueue[str, int] = RequestQueue()
    for session, question in (("a", 1), ("b", 20), ("c", 3), ("d", 5), ("a", 7)):
        replaced = waiting.put((session, 0), question)
    assert replaced == 1
    assert waiting.take(2, lambda question: question % 2) == [("a", 7), ("c", 3)]
    assert waiting.drop(("nobody", 0)) is None
    assert waiting.drop(("d", 0)) == 5
    assert waiting.take(2, lambda question: question % 2) == [("b", 20)]
    assert waiting.take(2, lambda question: question % 2) == []


def test_a_session_that_fills_its_slots_delays_others_by_one_request() -> None:
    waiting: RequestQueue[str, int] = RequestQueue()
    for slot in range(5):
        waiting.put(("greedy", slot), slot)
    waiting.put(("polite", 0), 100)
    assert waiting.take(3, lambda request: 0) == [("greedy", 0), ("polite", 100), ("greedy", 1)]
    assert [request for _, request in waiting.take(9, lambda request: 0)] == [2, 3, 4]


def metric(url: str, name: str) -> float:
    import urllib.request

    address = url.replace("ws://", "http://") + "/metrics"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=10) as reply:
        lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[0] != "#")
    return float(lines["smolact_" + name])
