"""Arguments and router of the Ray Serve deployment, without a cluster; test_deploy.py starts one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve", reason="ray is not installed")

from pydantic import ValidationError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from ui.server.ray_app import RaySettings, ReplicaRouter, app_of, scaling

DEPLOYMENT = DeploymentID("xianliao")


class Replica:
    """A replica that never tells how many requests it has."""

    def __init__(self, name: str):
        self.replica_id = ReplicaID(name, DEPLOYMENT)
        self.multiplexed_model_ids: set[str] = set()
        self.node_id = self.availability_zone = ""
        self.max_ongoing_requests = 512

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


def ranks(kind: type[ConsistentHashRouter], replicas: str, sessions: list[str]) -> dict[str, list[list[str]]]:
    """For each session the names of the candidates by rank."""

    async def choose() -> dict[str, list[list[str]]]:
        router = kind(deployment_id=DEPLOYMENT, handle_source=DeploymentHandleSource.UNKNOWN)
        router.initialize_state()
        router.update_replicas([Replica(name) for name in replicas])
        chosen = {}
        for session in sessions:
            metadata = SimpleNamespace(session_id=session, internal_request_id="1")
            request = SimpleNamespace(metadata=metadata, routing_context=SimpleNamespace(should_backoff=False))
            ranked = await router.choose_replicas(list(router._replicas.values()), request)
            chosen[session] = [[replica.replica_id.unique_id for replica in rank] for rank in ranked]
        return chosen

    return asyncio.run(choose())


def test_a_conversation_keeps_its_replica_when_others_are_added_and_removed():
    names = [f"conversation-{number}@replica-{'ab'[number % 2]}" for number in range(20)]
    for replicas in ("ab", "abcdefgh"):
        assert ranks(ReplicaRouter, replicas, names) == {name: [[name[-1]]] for name in names}
    without = ranks(ReplicaRouter, "bcd", names)
    assert all(len(ranked) == 3 for name, ranked in without.items() if name[-1] == "a")
    assert all(ranked == [["b"]] for name, ranked in without.items() if name[-1] == "b")


def test_a_new_conversation_goes_by_the_hash():
    names = [f"conversation-{number}" for number in range(40)] + ["", "c@replica-gone"]
    chosen = ranks(ReplicaRouter, "ab", names)
    assert chosen == ranks(ConsistentHashRouter, "ab", names)
    assert {ranked[0][0] for ranked in chosen.values()} == {"a", "b"}


def test_the_hash_alone_moves_conversations():
    """The reason for ReplicaRouter, which can be deleted when this test fails."""
    names = [f"conversation-{number}" for number in range(40)]
    before, after = (ranks(ConsistentHashRouter, replicas, names) for replicas in ("a", "ab"))
    assert 5 < sum(before[name][0] != after[name][0] for name in names) < 35


def test_the_number_of_replicas_is_fixed_without_a_largest_number():
    assert scaling(RaySettings(replicas=3)) == {"num_replicas": 3}


def test_the_arguments_for_scaling_are_those_of_ray():
    config = AutoscalingConfig(**scaling(RaySettings(replicas=1, max_replicas=4))["autoscaling_config"])
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (1, 4, 32)
    ray = AutoscalingConfig()
    assert (config.look_back_period_s, config.metrics_interval_s) == (ray.look_back_period_s, ray.metrics_interval_s)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (ray.upscale_delay_s, ray.downscale_delay_s)


@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_a_short_average_gets_numbers_often_enough():
    config = AutoscalingConfig(**scaling(RaySettings(max_replicas=4, average_seconds=3))["autoscaling_config"])
    assert config.metrics_interval_s == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replicas": 3, "max_replicas": 2}, r"max_replicas \(2\) must be at least replicas \(3\)\."),
        ({"replicas": 0}, "greater than 0"),
        ({"max_replicas": 2, "requests_per_replica": 0}, "greater than 0"),
        ({"most_replicas": 2}, "not permitted"),
        ({"rate_limit": -1}, "greater than or equal to 0"),
        ({"max_rows": 65}, "less than or equal to 64"),
        ({"context_tokens": 8}, "greater than or equal to 64"),
        ({"thinking": "maybe"}, "Input should be"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ValidationError, match=message):
        RaySettings(**arguments)


def test_the_arguments_reach_the_replica(checkpoint, tmp_path):
    given = {"context_tokens": 100, "script": "asker", "thinking": "shown", "thinking_tokens": 7, "max_rows": 3}
    app = app_of(RaySettings(checkpoint=str(checkpoint), data_dir=str(tmp_path), **given), "replica-a")
    (worker,) = app.state.workers.values()
    try:
        bot = worker.bot
        assert app.state.limits.options.data_dir == tmp_path / "replica-a"
        assert (worker.max_rows, bot.context_tokens) == (3, 100)
        assert (bot.settings.script, bot.settings.thinking, bot.settings.thinking_tokens) == ("asker", "shown", 7)
    finally:
        worker.close(0)
