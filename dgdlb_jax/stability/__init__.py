"""How fast a network may adapt: linearisation, limits of the step size, characteristic roots, defaults derived from them."""
