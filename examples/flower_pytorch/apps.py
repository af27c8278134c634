"""A Flower server and client in PyTorch, as in Flower's quickstart. The lines with (1) to (3) write the capture."""

import os
from pathlib import Path

import net
import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from jaxinvert.integrations import flower  # (1)

FOLDER = Path(os.environ["EXAMPLE_FOLDER"])
NORMALIZATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RATE, BATCH_SIZE = 0.1, 1


def examples(message: Message, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The client's own images [B, 32, 32, 3] in bytes, and their labels."""
    del message
    with np.load(FOLDER / "photos.npz") as photos:
        own = slice(BATCH_SIZE * int(context.node_config["partition-id"]), None)
        return photos["images"][own][:BATCH_SIZE], photos["labels"][own][:BATCH_SIZE]


client_app = ClientApp(mods=[flower.truth_mod(FOLDER / "captures", examples)])  # (2)
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One pass over the client's images."""
    model = net.make()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = examples(message, context)
    mean, std = torch.tensor(NORMALIZATION).reshape(2, 1, 3, 1, 1)
    inputs = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    torch.nn.functional.cross_entropy(model(inputs), torch.tensor(labels)).backward()
    optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(labels)})}
    return Message(content=RecordDict(content), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """One round of FedAvg over all clients."""
    del context
    strategy = FedAvg(fraction_evaluate=0.0)
    facts = {"input_shape": [32, 32, 3], "num_classes": 10}
    facts["local"] = {"optimizer": "sgd", "learning_rate": RATE, "epochs": 1, "batch_size": BATCH_SIZE}
    strategy = flower.Recording(strategy, FOLDER / "captures", normalization=NORMALIZATION, facts=facts)  # (3)
    strategy.start(grid, ArrayRecord(net.make().state_dict()), num_rounds=1, train_config=ConfigRecord())
