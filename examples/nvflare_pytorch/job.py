"""The NVFlare job, as in NVFlare's quickstart. The lines with (1) and (2) write the capture."""

from pathlib import Path

import client
import net
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from jaxinvert.integrations import nvflare

HERE = Path(__file__).resolve().parent


def run(folder: Path, num_clients: int) -> None:
    """Runs one round of FedAvg in NVFlare's simulator.

    Args:
      folder: where `photos.npz` is, and where the captures go.
      num_clients: number of simulated clients.
    """
    recipe = FedAvgRecipe(
        name="photos",
        model=net.make(),
        min_clients=num_clients,
        num_rounds=1,
        train_script=str(HERE / "client.py"),
        train_args=f"--folder {folder}",
    )
    facts = {"input_shape": [32, 32, 3], "num_classes": 10}
    facts["local"] = {"optimizer": "sgd", "learning_rate": client.RATE, "epochs": 1, "batch_size": client.BATCH_SIZE}
    options = {"mean": list(client.MEAN), "std": list(client.STD), "facts": facts}
    captures = str(folder / "captures")
    recipe.add_server_output_filter(nvflare.CaptureFilter(captures, "sent", **options), tasks=["train"])  # (1)
    recipe.add_server_input_filter(nvflare.CaptureFilter(captures, "back", **options), tasks=["train"])  # (2)
    recipe.execute(SimEnv(num_clients=num_clients, num_threads=2, workspace_root=str(folder / "nvflare")))
