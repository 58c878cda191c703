"""What unit is money counted in? Whole nano-dollars for sums; decimal US dollars in everything that people or clients read."""

NANO_USD = 1_000_000_000  # Nano-dollars per US dollar.
