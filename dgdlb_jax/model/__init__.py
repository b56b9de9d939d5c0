"""What is simulated, and where it comes from."""
