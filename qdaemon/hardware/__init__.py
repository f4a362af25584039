"""What the machine is and does: CPU, memory and its bandwidth, disks, networks, GPUs."""
