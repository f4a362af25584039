"""What the mesh can do beyond databases: requests, where they may run, and how they get there."""
