"""Sweeps: scores against KL, and against the coefficients of the pretraining mix and of the KL penalty."""
