"""Service curves: how many requests per second a backend completes when it holds a given workload."""

from dgdlb_jax.model.service.analytic import Exponential as Exponential
from dgdlb_jax.model.service.analytic import Hyperbolic as Hyperbolic
from dgdlb_jax.model.service.analytic import Logarithmic as Logarithmic
from dgdlb_jax.model.service.analytic import ManyServer as ManyServer
from dgdlb_jax.model.service.analytic import Power as Power
from dgdlb_jax.model.service.base import AbstractService as AbstractService
from dgdlb_jax.model.service.composed import PerBackend as PerBackend
from dgdlb_jax.model.service.composed import Replicas as Replicas
from dgdlb_jax.model.service.composed import Scaled as Scaled
from dgdlb_jax.model.service.composed import align as align
from dgdlb_jax.model.service.composed import concatenate as concatenate
from dgdlb_jax.model.service.composed import replicas as replicas
from dgdlb_jax.model.service.fit import ServiceFit as ServiceFit
from dgdlb_jax.model.service.fit import fit_service as fit_service
from dgdlb_jax.model.service.fit import redrawn as redrawn
from dgdlb_jax.model.service.fit import scatter as scatter
from dgdlb_jax.model.service.registry import CURVES as CURVES
from dgdlb_jax.model.service.registry import register_curve as register_curve
from dgdlb_jax.model.service.tabulated import Tabulated as Tabulated
