"""The Trainer a request runs in: strategy, processes, progress, private names."""
