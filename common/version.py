"""Which version of Sluice is this? The only place that says so: the package's metadata, ``sluice --version`` and the API's
description read it here, and ``make release`` writes it.
"""

VERSION = "0.1.0"
