"""Where batches of records come from: the running kernel or a capture file; what is watched, and how its TLS stacks are found."""
