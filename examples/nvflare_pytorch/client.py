"""An NVFlare client in PyTorch, as in NVFlare's quickstart. The line with (3) writes the truth, for the auditor."""

import argparse
from pathlib import Path

import net
import numpy as np
import nvflare.client as flare
import torch

from jaxinvert.integrations import capture

MEAN, STD, RATE, BATCH_SIZE = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0.1, 1


def main() -> None:
    """One pass over the client's images in every round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    folder = parser.parse_args().folder
    flare.init()
    site = flare.get_site_name()
    with np.load(folder / "photos.npz") as photos:
        own = slice(BATCH_SIZE * (int(site.removeprefix("site-")) - 1), None)
        images, labels = photos["images"][own][:BATCH_SIZE], photos["labels"][own][:BATCH_SIZE]
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    inputs, targets = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std, torch.tensor(labels)

    while flare.is_running():
        received = flare.receive()
        capture.write_truth(folder / "captures" / f"round-{received.current_round:04d}", site, images, labels)  # (3)
        model = net.make()
        model.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        meta = {"NUM_STEPS_CURRENT_ROUND": 1, "num_examples": len(labels)}
        flare.send(flare.FLModel(params=model.state_dict(), meta=meta))


if __name__ == "__main__":
    main()
