"""Memory and time of a run before a machine is rented: programs compiled for a topology, or estimated analytically."""
