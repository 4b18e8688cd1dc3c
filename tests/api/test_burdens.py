"""Under load and trouble: messages at once, pages while rows are added, a database that is away."""
