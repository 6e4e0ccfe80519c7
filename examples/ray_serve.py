"""Serve models under Ray Serve: replicas on the machines of a cluster, behind one address.

    pip install 'hanmo[serve]' 'ray[serve]'
    python examples/ray_serve.py --replicas 2 --model gpt2/model.ckpt-100000 --weights int8

Every replica opens the model; its path must be the same on all machines. Ray's proxy gives a request to a replica that
is free. If the process of a replica ends, only the requests that it was answering are lost, and it is started again.
"""

import argparse
from pathlib import Path
from typing import Any

from ray import serve

from hanmo.pipeline import SMALL


def deployment(model: Path, weights: str | None, *, replicas: int) -> Any:
    """Describe the deployment.

    At most 288 requests are with a replica at once: the rows that it generates and those that wait for them.
    """

    def build() -> Any:  # runs in each replica
        from hanmo.server.app import make_app
        from hanmo.server.models import name_of, open_served

        return make_app([open_served(name_of(model), model, weights=weights)])

    asgi: Any = serve.ingress(build)()
    options = {"num_replicas": replicas, "max_ongoing_requests": 288, "health_check_period_s": 2}
    return serve.deployment(asgi, name="hanmo", graceful_shutdown_timeout_s=60, **options).bind()


def main() -> None:
    """Read the arguments and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--weights", help="default: int8 for the small model, else the checkpoint's")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    weights = given.weights or ("int8" if given.model == SMALL else None)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    serve.run(deployment(given.model.resolve(), weights, replicas=given.replicas), name="hanmo", blocking=True)


if __name__ == "__main__":
    main()
