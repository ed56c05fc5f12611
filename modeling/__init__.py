"""What every stage's models need: loading, adapters, heads, generation, log-probabilities, saving."""
