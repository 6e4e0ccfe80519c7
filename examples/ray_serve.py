"""Serve models under Ray Serve: replicas on the machines of a cluster, behind one address.

    pip install 'hanmo[serve]' 'ray[serve]'
    python examples/ray_serve.py --replicas 2 --model gpt2/model.ckpt-100000 --weights int8
    python examples/ray_serve.py --host 0.0.0.0 --api-keys keys.txt

Every replica opens the model; its path must be the same on all machines. Ray's proxy gives a request to a replica that
is free. If the process of a replica ends, only the requests that it was answering are lost, and it is started again.
"""

import argparse
from pathlib import Path
from typing import Any

from ray import serve

from hanmo.pipeline import SMALL
from hanmo.server.security import check_host, read_keys


def deployment(given: argparse.Namespace, keys: list[str]) -> Any:
    """Describe the deployment: each replica has at most the requests that it generates and those that wait for them."""
    model, limits = given.model.resolve(), {"max_rows": given.max_rows, "max_queue": given.max_queue}
    weights = given.weights or ("int8" if given.model == SMALL else None)

    def build() -> Any:  # runs in each replica
        from hanmo.server.app import make_app
        from hanmo.server.models import name_of, open_served

        served = open_served(name_of(model), model, weights=weights, **limits)
        return make_app([served], keys=keys, max_requests=2 * sum(limits.values()))

    asgi: Any = serve.ingress(build)()
    options = {"num_replicas": given.replicas, "max_ongoing_requests": sum(limits.values()), "health_check_period_s": 2}
    return serve.deployment(asgi, name="hanmo", graceful_shutdown_timeout_s=60, **options).bind()


def main() -> None:
    """Read the arguments and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--weights", help="default: int8 for the small model, else the checkpoint's")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--max-rows", type=int, default=32, help="texts that a replica generates at once")
    parser.add_argument("--max-queue", type=int, default=256, help="texts that wait at a replica")
    parser.add_argument("--host", default="127.0.0.1", help="address on which every machine of the cluster listens")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-keys", type=Path, help="a file of keys, one a line, of which requests must send one")
    given = parser.parse_args()
    keys = read_keys(given.api_keys) if given.api_keys else []
    check_host(given.host, keys, anonymous=False)
    serve.start(http_options={"host": given.host, "port": given.port})
    serve.run(deployment(given, keys), name="hanmo", blocking=True)


if __name__ == "__main__":
    main()
