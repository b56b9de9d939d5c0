"""Where a network should be: the certified centralized optimum, feasibility, prices, and the point that local analyses start from."""
