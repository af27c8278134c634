"""Trains one round with NVFlare on this machine, and audits what the server saw of it.

    python examples/nvflare_pytorch/run.py             # needs pip install 'jaxinvert[nvflare,torch]'

The page is `runs/nvflare/audit/report.html`. Each client has one of the embedded photos.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import photos


def main() -> int:
    """Runs the example and returns the exit status of the audit."""
    options = photos.options(__doc__, "nvflare")
    photos.save(options.out, options.clients)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # of the clients
    import job

    job.run(options.out, options.clients)
    return photos.audit(options.out / "captures" / "round-0000", HERE, options.out / "audit", options.steps)


if __name__ == "__main__":
    sys.exit(main())
