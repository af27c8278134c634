"""Trains one round with Flower on this machine, and audits what the server saw of it.

    python examples/flower_pytorch/run.py              # needs pip install 'jaxinvert[flower]' (Flower, PyTorch)

The page is `runs/flower/audit/report.html`. The clients' images are the embedded photos, one for each client.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Runs the example and returns the exit status of the audit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/flower"))
    parser.add_argument("--clients", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300, help="steps of the attack")
    options = parser.parse_args()
    folder = options.out.resolve()

    from jaxinvert.examples_data import save_photos

    save_photos(folder / "photos.npz", options.clients)
    os.environ.update(EXAMPLE_FOLDER=str(folder), FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # for the clients
    sys.path.insert(0, str(HERE))
    import apps
    from flwr.simulation import run_simulation

    run_simulation(apps.server_app, apps.client_app, num_supernodes=options.clients)

    from jaxinvert.cli import main as jaxinvert

    capture, audit = folder / "captures" / "round-0001", folder / "audit"
    search = ["--attack", "spectral", "--restarts", "1", "--steps", str(options.steps)]
    return jaxinvert(["audit", "--capture", str(capture), "--model", "net:make", *search, "--out", str(audit)])


if __name__ == "__main__":
    sys.exit(main())
