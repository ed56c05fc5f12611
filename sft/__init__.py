"""Stage 1, supervised fine-tuning on prompt and answer pairs (Ouyang et al. 2022, sections 3.5 and C.1)."""
