"""Around the updates: processes, checkpoints, batches, replicas, projection."""
