"""How rewards compare, measured through any `Scorer`: preferences, best-of-N, agreement. docs/compare.md."""
