"""One vector field, one engine."""

from dgdlb_jax.simulation.engine import simulate as simulate
from dgdlb_jax.simulation.engine import simulate_batch as simulate_batch
from dgdlb_jax.simulation.statistics import Statistics as Statistics
from dgdlb_jax.simulation.trajectory import SaveAt as SaveAt
from dgdlb_jax.simulation.trajectory import SimulationState as SimulationState
from dgdlb_jax.simulation.trajectory import Trajectory as Trajectory
