"""The federation's machines on one seeded heap of events: hours of trouble in seconds, alike for a seed."""
