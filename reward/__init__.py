"""Stage 2, the reward model trained with the pairwise ranking loss over K ranked answers (sections 3.5 and C.2)."""
