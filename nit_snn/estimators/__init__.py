"""From losses and draws to the cotangents of drifts: scores, baselines, advantages, control."""
