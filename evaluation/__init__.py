"""Is the model better, by how much, and at what price: metrics, judge, plots and the report."""
