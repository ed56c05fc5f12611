"""The data report: the paper's tables for whatever data came in, what curation did to them, and warnings."""
