"""What is asked of a network: comparisons of balancers, verdicts, pictures and files."""
