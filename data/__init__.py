"""Records, sources, curation, splits and tokenisation."""
