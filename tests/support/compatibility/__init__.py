"""What docs/compatibility.md says, tried: each cell, each field, and the page itself."""
