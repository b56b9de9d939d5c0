"""What is asked of networks: balancers compared, verdicts, changes of the fleet, sweeps, claims."""
