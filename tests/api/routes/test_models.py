"""What does a list of models say of each?"""

import pytest

from api.routes.models import entry_of


@pytest.mark.parametrize(
    ("name", "owner", "created_at"),
    [
        ("claude-sonnet-4", "anthropic", "2025-05-14T00:00:00Z"),  # By the vendor's own name for it.
        ("openai/gpt-4o-2024-08-06", "openai", "2024-08-06T00:00:00Z"),
        ("claude-3-5-haiku-20241022", "anthropic", "2024-10-22T00:00:00Z"),
        ("lab/model-20241399", "lab", "2025-01-01T00:00:00Z"),
        ("fast", "sluice", "2025-01-01T00:00:00Z"),
    ],
)
def test_a_model_has_the_date_that_its_name_tells_or_one_that_clients_take(name: str, owner: str, created_at: str):
    entry = entry_of(name, owner)

    assert entry["created_at"] == created_at
    assert entry["created"] > 1_700_000_000
    assert (entry["object"], entry["type"]) == ("model", "model")
