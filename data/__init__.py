"""Records, sources, curation, splits and tokenization."""
