"""The same server as a Ray Serve deployment: `serve run ui.server.ray_app:build checkpoint=DIR replicas=2`.

With the variables of deploy/README.md, requests with the same X-Conversation-Id and the requests of one browser
(`ui.server.ray_seats`) are sent to the same replica. When that replica has died, another one reads the conversation
again from its text.

Ray evaluates the annotation of `build`, so this file does not import annotations from __future__.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import RequestRouterConfig

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


class RaySettings(BaseModel):
    """Arguments of the deployment.

    Attributes:
        checkpoint: Checkpoint folders separated by commas, the default one first.
        replicas: Number of replicas.
        cpus: CPU cores per replica.
        gpus: GPUs per replica.
        device: auto, cpu, cuda or mps.
        dtype: As for `xianliao-serve`.
        auth: File of USER:PASSWORD lines.
        api_key: File of keys.
        allow_host: Names under which clients reach the server, separated by commas.
        rate_limit: Requests per minute of each sender; each replica counts its requests.
    """

    model_config = ConfigDict(extra="forbid")

    checkpoint: str = "default"
    replicas: int = 2
    cpus: float = 1
    gpus: float = 0
    device: str = "auto"
    dtype: str = "auto"
    auth: str | None = None
    api_key: str | None = None
    allow_host: str = ""
    rate_limit: int = 120


def build(args: RaySettings) -> serve.Application:
    """Return the application for Ray Serve."""

    def build_app() -> FastAPI:  # runs in the replica's process
        from ui.checkpoints import load_bots
        from ui.options import ServeOptions
        from ui.server.access import read_keys, read_users
        from ui.server.app import create_app
        from ui.server.logs import start_log

        start_log("json")
        users = read_users([args.auth] if args.auth else [])
        keys = read_keys([args.api_key] if args.api_key else [])
        bots = load_bots(args.checkpoint.split(","), args.device, args.dtype)
        hosts = tuple(filter(None, args.allow_host.lower().split(",")))
        return create_app(bots, ServeOptions(auth=users, api_keys=keys, hosts=hosts, rate_limit=args.rate_limit))

    router: dict[str, Any] = {"request_router_class": ROUTER}
    deploy = serve.deployment(
        name="xianliao",
        num_replicas=args.replicas,
        max_ongoing_requests=512,  # the queue of the worker has its own limit
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        request_router_config=RequestRouterConfig(**router),
        graceful_shutdown_timeout_s=5,
    )
    return deploy(serve.ingress(build_app)()).bind()
