"""Federated training over simulated clients, to measure the accuracy that a defense costs.

    clients = dirichlet_split(np.random.default_rng(0), labels, num_clients=100, concentration=0.5)
    population = populate(Batch(images, labels), clients)
    training = Training(
        lambda scale: federated_averaging(
            client_update, clients_per_round=8, examples_per_client=16, defense=gaussian_noise(scale)
        ),
        model.apply,
    )
    for snapshot in training(key, params, population, test, 0.1, rounds=range(0, 101, 10)):
        print(snapshot.round, snapshot.accuracy)

`federated_averaging` is pure and composes with jit, vmap and scan. `Training` runs it in chunks of rounds inside one
compiled program. Every snapshot holds the parameters that the next round's clients train on and attackers know.
"""

from jaxinvert.federation.averaging import Federation, FederationState, federated_averaging
from jaxinvert.federation.population import Population, dirichlet_split, populate
from jaxinvert.federation.training import Snapshot, Training, evaluate

__all__ = [
    "Federation",
    "FederationState",
    "Population",
    "Snapshot",
    "Training",
    "dirichlet_split",
    "evaluate",
    "federated_averaging",
    "populate",
]
