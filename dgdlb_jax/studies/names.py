"""Names of frontends and backends for people."""

from dgdlb_jax.model.network import Network


def backend_names(network: Network) -> tuple[str, ...]:
    """Names of the backends, made up where the network has none."""
    return network.backend_names or tuple(f"backend {j}" for j in range(network.backends))


def frontend_names(network: Network) -> tuple[str, ...]:
    """Names of the frontends, made up where the network has none."""
    return network.frontend_names or tuple(f"frontend {i}" for i in range(network.frontends))
