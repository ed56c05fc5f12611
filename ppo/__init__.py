"""Stage 3: PPO with a KL penalty against the SFT policy and a pretraining mix (sections 3.5 and C.4)."""
