"""What is money counted in? Whole nano-dollars wherever it is added up; US dollars, as decimals, wherever it is told."""

NANO_USD = 1_000_000_000  # So many to the dollar.
