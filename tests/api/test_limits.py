"""What a request may be, how a refusal looks, and what is open to everybody."""
