"""Stage 3, PPO with a KL penalty against the SFT policy and pretraining gradients mixed in (sections 3.5 and C.4)."""
