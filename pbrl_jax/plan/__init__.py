"""What a run will need before a machine is rented for it: programs compiled for a topology, or worked out by hand."""
