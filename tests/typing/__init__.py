"""What type checkers make of the public API, as users write it."""
