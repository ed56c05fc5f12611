"""Alignment tax: saved models on public benchmarks, before and after training (Ouyang et al. 2022, appendix D)."""
