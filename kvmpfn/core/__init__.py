"""The compiled engine: numbers and arrays only."""
