"""Evaluation: metrics, judges, plots and the reports."""
