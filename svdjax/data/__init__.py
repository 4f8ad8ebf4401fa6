"""Clips: the built-in world, video files, ArrayRecord shards, and the grain pipeline that batches them."""
