"""Trains one round with Flower on this machine, and audits what the server saw of it.

    python examples/flower_pytorch/run.py              # needs pip install 'jaxinvert[flower,torch]'

The page is `runs/flower/audit/report.html`. Each client has one of the embedded photos.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import photos


def main() -> int:
    """Runs the example and returns the exit status of the audit."""
    options = photos.options(__doc__, "flower")
    photos.save(options.out, options.clients)
    os.environ.update(EXAMPLE_FOLDER=str(options.out), FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # of the clients
    import apps
    from flwr.simulation import run_simulation

    run_simulation(apps.server_app, apps.client_app, num_supernodes=options.clients)
    return photos.audit(options.out / "captures" / "round-0001", HERE, options.out / "audit", options.steps)


if __name__ == "__main__":
    sys.exit(main())
