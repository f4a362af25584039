"""Paired pools: the ceremony that pairs them, what each may do, the links between them, and who is alive."""
