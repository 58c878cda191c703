"""What would the vendor refuse? A judge of the requests that Sluice sends, written from the vendors' own pages.

It is independent of the table of models (common/vendors/models.toml), so that it finds its mistakes: nothing here may be
copied from there. Each rule names its source.
"""

from tests.support.upstreams.strict.judge import refusal

__all__ = ["refusal"]
