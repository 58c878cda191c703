"""How long do the fuzz tests run? In CI briefly, with fixed inputs. ``make fuzz EXAMPLES=500 SEED=7`` runs longer."""

import os

SEED = os.environ.get("FUZZ_SEED", "")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 25)
FIXED_SEED = "1"
EXAMPLE_S = 2  # Longest time for one example of each of some thirty routes, on a busy machine.
TIMEOUT_S = 1200 + EXAMPLE_S * EXAMPLES
