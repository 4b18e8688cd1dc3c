"""The worker process: the coroutine pool, the consumer, resources, and the turn runner."""
