"""The same server as a Ray Serve deployment: `serve run ui.server.ray_app:build checkpoint=DIR replicas=2`.

With the variables of deploy/README.md, requests with the same X-Conversation-Id and the requests of one browser
(`ui.server.ray_seats`) are sent to the same replica. When that replica has died or was removed, another one reads the
conversation again from its text.

Ray evaluates the annotation of `build`, so this file does not import annotations from __future__.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from chatbot.chat.options import MAX_HISTORY_TOKENS, MIN_HISTORY_TOKENS
from chatbot.decoding.settings import MAX_STORED_LIMIT_TOKENS, Script, Thinking
from ui.server.ray_seats import split_replica

ROUTER = "ui.server.ray_app:ReplicaRouter"

METRICS_SECONDS = 10.0
"""Ray's interval at which the proxies report their numbers of requests; a shorter window needs a shorter interval."""


class ReplicaRouter(ConsistentHashRouter):
    """Ray's consistent hash, but a request that names a running replica is sent to this replica only.

    The hash alone moves half of all conversations when a second replica is added, and lets another replica answer while
    the right one is slow. On the page another replica cannot answer: log-ins and messages that wait for their answer are
    in the memory of one replica.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the candidates of a request by rank."""
        by_hash = await super().choose_replicas(candidate_replicas, pending_request)
        _, replica = split_replica(pending_request.metadata.session_id if pending_request else "")
        named = [each for each in candidate_replicas if each.replica_id.unique_id == replica]
        return [named] if named else by_hash


class RaySettings(BaseModel):
    """Arguments of the deployment.

    Attributes:
        checkpoint: Checkpoint folders separated by commas, the default one first.
        replicas: Number of replicas; with `max_replicas`, the smallest number.
        max_replicas: Largest number of replicas. Ray adds and removes replicas by the number of requests that are being
            answered or waiting. Without `max_replicas` the number of replicas is fixed.
        requests_per_replica: Number of requests per replica, answered or waiting, that Ray aims at.
        average_seconds: Period over which Ray averages the number of requests.
        upscale_seconds: Seconds for which the average must ask for more replicas before Ray adds them.
        downscale_seconds: Seconds for which the average must ask for fewer replicas before Ray removes them.
        drain_seconds: Maximum time, in seconds, that a replica has to finish its answers when it is removed.
        cpus: CPU cores per replica.
        gpus: GPUs per replica.
        device: auto, cpu, cuda or mps.
        dtype: As for `xianliao-serve`.
        auth: File of USER:PASSWORD lines.
        api_key: File of keys.
        allow_host: Names under which clients reach the server, separated by commas.
        rate_limit: Requests per minute of each sender; each replica counts its requests.
        data_dir: Folder with one folder for each replica, named after it, for its feedback.jsonl
            (default: ~/.local/share/xianliao). Two processes that write one file can lose lines.
        context_tokens, script, thinking, thinking_tokens, max_rows: As the options of `xianliao-serve`.
    """

    model_config = ConfigDict(extra="forbid")

    checkpoint: str = "default"
    replicas: PositiveInt = 2
    max_replicas: PositiveInt | None = None
    requests_per_replica: PositiveFloat = 32
    average_seconds: PositiveFloat = 30
    upscale_seconds: NonNegativeFloat = 30
    downscale_seconds: NonNegativeFloat = 600
    drain_seconds: NonNegativeFloat = 30
    cpus: float = 1
    gpus: float = 0
    device: str = "auto"
    dtype: str = "auto"
    auth: str | None = None
    api_key: str | None = None
    allow_host: str = ""
    rate_limit: int = Field(120, ge=0)
    data_dir: str | None = None
    context_tokens: int | None = Field(None, ge=MIN_HISTORY_TOKENS, le=MAX_HISTORY_TOKENS)
    script: Script | None = None
    thinking: Thinking | None = None
    thinking_tokens: int | None = Field(None, ge=1, le=MAX_STORED_LIMIT_TOKENS)
    max_rows: int = Field(64, ge=1, le=64)

    @model_validator(mode="after")
    def check_replicas(self) -> "RaySettings":
        """Refuse a largest number of replicas below the smallest one."""
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least replicas ({self.replicas}).")
        return self


def scaling(args: RaySettings) -> dict[str, Any]:
    """Return the options of the deployment for its number of replicas."""
    if args.max_replicas is None:
        return {"num_replicas": args.replicas}
    config = {
        "min_replicas": args.replicas,
        "max_replicas": args.max_replicas,
        "target_ongoing_requests": args.requests_per_replica,
        "look_back_period_s": args.average_seconds,
        "metrics_interval_s": min(METRICS_SECONDS, args.average_seconds / 3),
        "upscale_delay_s": args.upscale_seconds,
        "downscale_delay_s": args.downscale_seconds,
    }
    return {"autoscaling_config": config}


def app_of(args: RaySettings, replica: str) -> FastAPI:
    """Return the application of the replica with this name."""
    from ui.checkpoints import load_bots
    from ui.options import ServeOptions, default_data_dir
    from ui.server.access import read_keys, read_users
    from ui.server.app import create_app

    users = read_users([args.auth] if args.auth else [])
    keys = read_keys([args.api_key] if args.api_key else [])
    changes = {"script": args.script, "thinking": args.thinking, "thinking_tokens": args.thinking_tokens}
    names, tokens = args.checkpoint.split(","), args.context_tokens
    bots = load_bots(names, args.device, args.dtype, context_tokens=tokens, changes=changes)
    hosts = tuple(filter(None, args.allow_host.lower().split(",")))
    options = ServeOptions(
        auth=users,
        api_keys=keys,
        hosts=hosts,
        rate_limit=args.rate_limit,
        max_rows=args.max_rows,
        data_dir=(Path(args.data_dir) if args.data_dir else default_data_dir()) / replica,
    )
    return create_app(bots, options)


def build(args: RaySettings) -> serve.Application:
    """Return the application for Ray Serve."""

    def build_app() -> FastAPI:  # runs in the replica's process
        from ui.server.logs import start_log
        from ui.server.ray_seats import ReplicaName

        start_log("json")
        replica = serve.get_replica_context().replica_id.unique_id
        app = app_of(args, replica)
        app.add_middleware(ReplicaName, replica=replica)
        return app

    router: dict[str, Any] = {"request_router_class": ROUTER}
    deploy = serve.deployment(
        name="xianliao",
        max_ongoing_requests=512,  # the queue of the worker has its own limit
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        request_router_config=RequestRouterConfig(**router),
        graceful_shutdown_timeout_s=args.drain_seconds,
        **scaling(args),
    )
    return deploy(serve.ingress(build_app)()).bind()
