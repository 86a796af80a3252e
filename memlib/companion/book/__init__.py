"""Running the notebooks and making the book: execute, ledger, build, check."""
