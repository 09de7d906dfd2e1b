"""Audio on disk: manifests, reading, batching and corpus preparation."""
