"""From numbers to verdicts: estimates with intervals, error rates, equivalence, claims and their criteria."""
