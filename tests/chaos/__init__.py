"""Does a generation survive everything around it? Real processes, faults from a seed, and clients that check every byte."""
