"""Model providers, one folder each. A new provider is one folder and one line in `registry`."""
