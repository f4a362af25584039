"""Model files: kept by content, understood, chosen by what the machine can do, and swapped."""
