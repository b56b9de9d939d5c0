"""Derivatives of simulated latency: exact marginal latencies, and tuning by them."""
