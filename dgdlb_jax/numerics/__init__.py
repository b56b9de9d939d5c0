"""Numerical building blocks that know nothing of load balancing."""
