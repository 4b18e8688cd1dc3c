"""The worker process: the pool, the consumer, the resources that turns share, the watchdog. Imports nothing of tasks/."""
