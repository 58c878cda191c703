"""How long is fuzzed? Shortly and always alike in CI; ``make fuzz EXAMPLES=500 SEED=7`` goes on for longer, elsewhere."""

import os

SEED = os.environ.get("FUZZ_SEED", "")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 25)
FIXED_SEED = "1"
EXAMPLE_S = 2  # What an example of each of some thirty routes may take at most, on a busy machine.
TIMEOUT_S = 1200 + EXAMPLE_S * EXAMPLES
